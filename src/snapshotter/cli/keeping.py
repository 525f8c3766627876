"""
The commands about a store as a whole.
"""

import argparse
import sys

from snapshotter.cli import arguments, output, waiting
from snapshotter.cli.codes import DONE, INCONSISTENT
from snapshotter.contract import Snapshotter
from snapshotter.errors import AlreadyExistsError, InvalidArgumentError
from snapshotter.model import LOCAL
from snapshotter.store import QUARANTINE, real_path
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    init = commands.add(
        "init",
        _init,
        "make a store, on a btrfs or in an image file",
        example="snapshotter init --root /var/lib/snapshots --image 20G",
    )
    init.add_argument("--image", metavar="SIZE", type=arguments.size, help="make a btrfs of this size, as in 20G")
    init.add_argument("--image-file", metavar="FILE", help="in that file; by default the root with .img behind it")
    init.add_argument("--sparse", action="store_true", help="do not reserve its space: a full disk loses data then")
    init.add_argument("--adopt", action="store_true", help="make a store of one that was moved here")
    init.add_argument(
        "--client", metavar="NAME", help=f"whose its snapshots are; {LOCAL} is this command. Also of a store there is"
    )
    commands.add(
        "doctor",
        _doctor,
        "look for what is wrong with a store, and say how to mend it; 5 if something is",
        arguments.JSON,
        example="snapshotter doctor",
    ).add_argument("--fix", action="store_true", help="mend what can be known, and move away the rest; deletes nothing")
    purge = commands.add(
        "purge",
        _purge,
        "delete what `doctor --fix` moved to the quarantine",
        arguments.BYTES,
        example="snapshotter purge --dry-run",
    )
    purge.add_argument("--yes", action="store_true", help="do not ask")
    purge.add_argument("--dry-run", action="store_true", help="only say what there is")


def _init(parsed: argparse.Namespace) -> None:
    root = arguments.root(parsed)
    if parsed.adopt and (parsed.image or parsed.image_file or parsed.sparse):
        raise InvalidArgumentError("--adopt takes the store as it is, without an image")
    if parsed.image is None and (parsed.image_file or parsed.sparse):
        raise InvalidArgumentError("--image-file and --sparse need --image SIZE")
    if parsed.client == "":
        raise InvalidArgumentError("the client of --client NAME is empty")
    said = ""
    with arguments.alone("init"):
        if parsed.adopt:
            Snapshotter.adopt(root, client=None).close()
            said = f"adopted {printable(root)}\n"
        elif parsed.image is not None:
            from snapshotter import image_store

            file = parsed.image_file or real_path(root) + ".img"
            image_store.create(root, file, parsed.image, sparse=parsed.sparse)
            said = image_store.mount_unit(root, file)
        else:
            try:
                Snapshotter.create(root).close()
                said = f"made a store in {printable(root)}\n"
            except AlreadyExistsError:
                if parsed.client is None:
                    raise
        if parsed.client is not None:
            with Snapshotter(root, client=None) as store:
                store.bind(parsed.client)
            said = said or f"{printable(root)} is of client {printable(parsed.client)} now\n"
    print(said, end="")


def _doctor(parsed: argparse.Namespace) -> int:
    from snapshotter import doctor

    root = arguments.root(parsed)
    repairs = []
    if parsed.fix:
        from snapshotter import repair

        with arguments.alone("doctor --fix"):
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
    from snapshotter import repair
    from snapshotter.analysis import inventory, space

    with arguments.reading(parsed) as store:
        paths = repair.quarantined(store.root)
        for path in paths:
            print(printable(path))
        if not paths:
            print("nothing is in the quarantine")
            return
        orphaned = inventory.take(store, measured=False).orphaned
        theirs = [volume for volume in orphaned if volume.path.startswith(f"{QUARANTINE}/")]
        size = output.amount(parsed)(space.of_volumes(store.root, theirs).reclaimable)
        print(f"{len(paths)} in the quarantine, of which the subvolumes free {size}")
        if parsed.dry_run:
            return
        if not parsed.yes and not _agreed():
            return
        repair.purge(store, paths)
        waiting.wait(store.root, {subvolid for volume in theirs for subvolid in volume.subvolids})


def _agreed() -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        raise InvalidArgumentError("whether to delete them is asked on a terminal: give --yes")
    try:
        return input("delete them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
