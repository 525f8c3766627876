"""
``snapshotter du``.
"""

import argparse

from snapshotter.cli import arguments, display, output
from snapshotter.cli.progress import with_progress


def _du(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import directories

    with arguments.reading(parsed) as store:
        found = directories.measure(store, parsed.key, parsed.depth, with_progress)
    found.sort(key=lambda directory: (-directory.exclusive - directory.shared, directory.path))
    if parsed.json:
        output.print_json([output.values(directory) for directory in found])
        return
    amount = output.amount(parsed)
    display.table(
        ("EXCLUSIVE", "SHARED", "INODES", "PATH"),
        [(amount(each.exclusive), amount(each.shared), str(each.inodes), each.path) for each in found],
    )
