"""
``snapshotter du``.
"""

import argparse

from snapshotter.analysis import directories
from snapshotter.cli import arguments, display, keys, output
from snapshotter.cli.progress import with_progress


def add(commands: arguments.Commands) -> None:
    du = commands.add(
        "du",
        _du,
        arguments.KEY,
        arguments.JSON,
        arguments.BYTES,
        arguments.NO_TRUNC,
        example="snapshotter du web --depth 2",
    )
    du.add_argument(
        "--depth",
        metavar="N",
        type=arguments.count,
        default=1,
        help="levels of directories to show (default: %(default)s)",
    )


def _du(parsed: argparse.Namespace) -> None:
    with arguments.measuring(parsed) as store:
        key = keys.resolve(parsed, store, parsed.key)
        found = directories.measure(store, key, parsed.depth, with_progress)
    found.sort(key=lambda directory: (-directory.exclusive - directory.shared, directory.path))
    if parsed.json:
        output.print_json([output.values(directory) for directory in found])
        return
    amount = output.amount(parsed)
    display.table(
        ("EXCLUSIVE", "SHARED", "INODES", "PATH"),
        [(amount(each.exclusive), amount(each.shared), str(each.inodes), each.path) for each in found],
        whole=parsed.no_trunc,
    )
