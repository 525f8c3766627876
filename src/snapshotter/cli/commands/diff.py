"""
``snapshotter diff``.
"""

import argparse

from snapshotter.analysis import difference
from snapshotter.cli import arguments, display, keys, output


def add(commands: arguments.Commands) -> None:
    diff = commands.add(
        "diff", _diff, arguments.JSON, arguments.BYTES, arguments.NO_TRUNC, example="snapshotter diff base web"
    )
    diff.add_argument(
        "key", metavar="KEY", help="snapshot before the changes; without OTHER, snapshot to compare with its parent"
    )
    diff.add_argument("other", metavar="OTHER", nargs="?", help="snapshot after the changes")


def _diff(parsed: argparse.Namespace) -> None:
    with arguments.measuring(parsed) as store:
        key = keys.resolve(parsed, store, parsed.key)
        if parsed.other is None:
            changes = difference.from_parent(store, key)
        else:
            changes = difference.between(store, key, keys.resolve(parsed, store, parsed.other))
    if parsed.json:
        output.print_json([change._asdict() for change in changes])
        return
    amount = output.amount(parsed)
    rows = []
    for change in changes:
        size, before = ("" if each is None else amount(each) for each in (change.size, change.size_before))
        path = f"{change.path} from {change.source}" if change.source else change.path
        rows.append((change.change, change.type, before, size, path))
    display.table(("CHANGE", "TYPE", "BEFORE", "SIZE", "PATH"), rows, whole=parsed.no_trunc)
