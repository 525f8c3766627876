"""
``snapshotter report``.
"""

import argparse
from datetime import UTC, datetime

from pybtrfs import tree_search
from snapshotter.analysis import inventory, report, space
from snapshotter.cli import arguments, output, used_by
from snapshotter.maintenance import doctor


def add(commands: arguments.Commands) -> None:
    write = commands.add("report", _report, example="snapshotter report -o store.html")
    write.add_argument("-o", "--output", metavar="FILE", help="file to write (default: standard output)")


def _report(parsed: argparse.Namespace) -> None:
    with arguments.measuring(parsed) as store:
        taken = inventory.take(store)
        users = used_by.find(store)
        seen = report.Report(
            store.root,
            datetime.now(UTC),
            taken.entries,
            space.of_store(store, taken),
            space.of_filesystem(store.root),
            doctor.of_store(store),
            walked=not tree_search.is_permitted(store.root),
            used_by={key: users.text(key) for key in taken.entries},
        )
    page = report.render(seen)
    if parsed.output:
        with output.replaced(parsed.output) as file:
            file.write(page.encode())
    else:
        print(page, end="")
