"""
``snapshotter doctor`` and ``purge``.
"""

import argparse
import sys

from snapshotter.analysis import inventory, space
from snapshotter.cli import arguments, output, waiting
from snapshotter.cli.codes import DONE, INCONSISTENT
from snapshotter.errors import InvalidArgumentError
from snapshotter.maintenance import doctor, quarantine, repair
from snapshotter.store.layout import QUARANTINE
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    examine = commands.add("doctor", _doctor, arguments.JSON, example="snapshotter doctor")
    examine.add_argument(
        "--fix",
        action="store_true",
        help="repair the store, and move unusable entries to the quarantine; deletes nothing",
    )
    purge = commands.add("purge", _purge, arguments.BYTES, example="snapshotter purge --dry-run")
    purge.add_argument("--yes", action="store_true", help="delete without asking")
    purge.add_argument("--dry-run", action="store_true", help="only list the quarantine")


def _doctor(parsed: argparse.Namespace) -> int:
    root = arguments.root(parsed)
    repairs = []
    if parsed.fix:
        with arguments.exclusive("doctor --fix"):
            repairs = repair.fix(root)
    problems = doctor.examine(root)
    if parsed.json:
        left = [problem._asdict() for problem in problems]
        output.print_json(
            {"repairs": [output.values(each) for each in repairs], "problems": left} if parsed.fix else left
        )
    else:
        for each in repairs:
            print(printable(f"{each.subject}: {each.what}"))
        for problem in problems:
            print(printable(f"{problem.subject}: {problem.what}"))
            print(printable(f"  cure: {problem.cure}"))
        if not problems:
            print("nothing is wrong")
    return INCONSISTENT if problems else DONE


def _purge(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        paths = quarantine.quarantined(store.root)
        for path in paths:
            print(printable(path))
        if not paths:
            print("the quarantine is empty")
            return
        orphaned = inventory.take(store, measured=False).orphaned
        theirs = [volume for volume in orphaned if volume.path.startswith(f"{QUARANTINE}/")]
        size = output.amount(parsed)(space.of_volumes(store.root, theirs).reclaimable)
        print(f"entries in the quarantine: {len(paths)}; deleting their subvolumes frees {size}")
        if parsed.dry_run:
            return
        if not parsed.yes and not _agreed():
            return
        quarantine.purge(store, paths)
        waiting.wait(store.root, {subvolid for volume in theirs for subvolid in volume.subvolids})


def _agreed() -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        raise InvalidArgumentError("cannot ask for confirmation, because standard input is not a terminal: give --yes")
    try:
        return input("delete them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
