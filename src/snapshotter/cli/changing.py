"""
The commands that change a store.
"""

import argparse

from snapshotter import display
from snapshotter.cli import arguments, output
from snapshotter.cli.codes import DONE, report
from snapshotter.contract import Snapshotter
from snapshotter.errors import Error, InvalidArgumentError
from snapshotter.store import real_path


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
    for name, run, what in ("prepare", _prepare, "an active snapshot"), ("view", _view, "a read-only view"):
        new = commands.add(
            name,
            run,
            f"make {what}, and print how to mount it",
            arguments.LABELS,
            arguments.JSON,
            example=f"snapshotter {name} web base --label owner=me",
        )
        new.add_argument("key", metavar="KEY", type=arguments.key)
        new.add_argument(
            "parent", metavar="PARENT", type=arguments.parent, nargs="?", default="", help="none for empty"
        )
    commit = commands.add("commit", _commit, "freeze an active snapshot under a name", arguments.LABELS)
    commit.add_argument("name", metavar="NAME", type=arguments.key)
    commit.add_argument("key", metavar="KEY", type=arguments.key)
    fork = commands.add(
        "fork", _fork, "copy an active snapshot while it runs, and print how to mount the copy", arguments.JSON
    )
    fork.add_argument("key", metavar="KEY", type=arguments.key)
    fork.add_argument("new", metavar="NEW", type=arguments.key)
    commands.add("rm", _rm, "remove snapshots, and wait for their space", arguments.KEYS)
    commands.add("cleanup", _cleanup, "destroy what is left of removed snapshots, and wait for their space")


def _init(parsed: argparse.Namespace) -> None:
    root = arguments.root(parsed)
    if parsed.adopt:
        if parsed.image or parsed.image_file or parsed.sparse:
            raise InvalidArgumentError("--adopt takes the store as it is, without an image")
        with arguments.alone("init --adopt"):
            Snapshotter.adopt(root, client=None).close()
        print(f"adopted {display.printable(root)}")
    elif parsed.image is not None:
        from snapshotter import image_store

        file = parsed.image_file or real_path(root) + ".img"
        image_store.create(root, file, parsed.image, sparse=parsed.sparse)
        print(image_store.mount_unit(root, file), end="")
    elif parsed.image_file or parsed.sparse:
        raise InvalidArgumentError("--image-file and --sparse need --image SIZE")
    else:
        Snapshotter.create(root).close()
        print(f"made a store in {display.printable(root)}")


def _prepare(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.prepare(parsed.key, parsed.parent, dict(parsed.label)))


def _view(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.view(parsed.key, parsed.parent, dict(parsed.label)))


def _commit(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        store.commit(parsed.name, parsed.key, dict(parsed.label))


def _fork(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.fork(parsed.key, parsed.new))


def _rm(parsed: argparse.Namespace) -> int:
    code = DONE
    with arguments.changing(parsed) as store:
        for key in parsed.keys:
            try:
                store.remove(key)
            except Error as error:
                failure = report(error)
                code = code or failure
        store.cleanup()
    return code


def _cleanup(parsed: argparse.Namespace) -> None:
    with arguments.changing(parsed) as store:
        store.cleanup()
