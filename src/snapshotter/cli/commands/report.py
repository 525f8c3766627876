"""
The command that shows a store as a page.
"""

import argparse
from datetime import UTC, datetime

from snapshotter.cli import arguments, output


def add(commands: arguments.Commands) -> None:
    report = commands.add(
        "report",
        _report,
        "write a page of HTML that shows what is in a store, what takes its space, and what is wrong",
        example="snapshotter report -o store.html",
    )
    report.add_argument("-o", "--output", metavar="FILE", help="by default standard output")


def _report(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import inventory, report, space
    from snapshotter.maintenance import doctor

    with arguments.reading(parsed) as store:
        taken = inventory.take(store)
        seen = report.Report(
            store.root,
            datetime.now(UTC),
            taken.entries,
            space.of_store(store, taken),
            space.of_filesystem(store.root),
            doctor.of_store(store),
        )
    page = report.render(seen)
    if parsed.output:
        with output.replaced(parsed.output) as file:
            file.write(page.encode())
    else:
        print(page, end="")
