"""
``snapshotter tree``.
"""

import argparse

from snapshotter.analysis import family, inventory
from snapshotter.cli import arguments, display, output, used_by


def add(commands: arguments.Commands) -> None:
    commands.add("tree", _tree, arguments.JSON, arguments.BYTES, arguments.NO_TRUNC, example="snapshotter tree --bytes")


def _tree(parsed: argparse.Namespace) -> None:
    with arguments.measuring(parsed) as store:
        entries = inventory.take(store).entries
        users = used_by.find(store)
    lines = list(family.walk(entry.info for entry in entries.values()))
    totals = family.totals(lines, {key: entry.usage.size if entry.usage else 0 for key, entry in entries.items()})
    if parsed.json:
        output.print_json(
            [
                output.detailed(entries[info.name])
                | users.json(info.name)
                | {"depth": depth, "total": totals[info.name]}
                for depth, _, info in lines
            ]
        )
        return
    amount = output.amount(parsed)
    rows = []
    for _, branch, info in lines:
        entry = entries[info.name]
        lost = "lost" if entry.problem else ""
        size, inodes = (amount(entry.usage.size), str(entry.usage.inodes)) if entry.usage else (lost, "")
        state = "broken" if entry.problem else "mounted" if entry.mounted else ""
        row = (branch + info.name, str(info.kind), size, amount(totals[info.name]), inodes, state)
        rows.append((*row, users.text(info.name)) if users.asked else row)
    headings = ("KEY", "KIND", "SIZE", "TOTAL", "INODES", "STATE", *(["USED BY"] if users.asked else []))
    display.table(headings, rows, whole=parsed.no_trunc)
