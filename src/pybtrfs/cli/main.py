"""
Entry point of the command ``pybtrfs``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pybtrfs._version import __version__
from pybtrfs.cli.image import _image_create, _image_mount, _image_unmount, _size
from pybtrfs.cli.output import DONE, FAILED, INTERRUPTED, _complain
from pybtrfs.cli.subvolume import (
    _create,
    _delete,
    _get_default,
    _list,
    _qgroup,
    _set_default,
    _show,
    _snapshot,
    _sort,
    _sync,
)
from pybtrfs.cli.usage import _usage


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command with *argv*, by default the process's arguments, and return its exit code: 0 done, 1 failed, 130
    interrupted.

    Wrong usage raises SystemExit with 2, and ``--help`` and ``--version`` with 0.
    """
    arguments = parser().parse_args(argv)
    try:
        code: int | None = arguments.run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # who read has seen enough
    except (OSError, ValueError) as error:
        return _complain(error)
    return code or DONE


def parser() -> argparse.ArgumentParser:
    """
    All the arguments of the command.
    """
    whole = argparse.ArgumentParser(
        prog="pybtrfs",
        description="btrfs with nothing but the kernel: some of the btrfs command, in its words and columns.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    groups = whole.add_subparsers(metavar="COMMAND", required=True)

    def group(name: str, text: str) -> Any:
        return groups.add_parser(name, help=text, allow_abbrev=False).add_subparsers(metavar="COMMAND", required=True)

    def command(place: Any, name: str, run: Any, text: str, *paths: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = place.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        added.set_defaults(run=run)
        for path in paths:
            added.add_argument(path.lower().rstrip("+"), metavar=path.rstrip("+"), nargs="+" if "+" in path else None)
        return added

    volumes = group("subvolume", "make, delete, list and show subvolumes")
    listing = command(volumes, "list", _list, "list subvolumes; to ordinary users, those below the path", "PATH")
    for option, text in (
        ("-o", "only those directly below the subvolume that contains the path"),
        ("-p", "the id of the subvolume that contains each"),
        ("-c", "the generation of its creation"),
        ("-g", "its generation, which is shown anyway"),
        ("-u", "its uuid"),
        ("-q", "the uuid of what it is a snapshot of"),
        ("-R", "the uuid of what it was received as"),
        ("-s", "only snapshots, with the time of their creation"),
        ("-r", "only read-only ones"),
        ("-d", "only deleted ones that are not yet cleaned"),
        ("-t", "as a table"),
    ):
        listing.add_argument(option, action="store_true", help=text)
    listing.add_argument(
        "--sort",
        metavar="KEY,...",
        type=_sort,
        default=[],
        help="by rootid, gen, ogen or path, each with - in front for the largest first",
    )
    show = command(volumes, "show", _show, "show a subvolume and its snapshots", "PATH")
    create = command(volumes, "create", _create, "create empty subvolumes", "DEST+")
    snapshot = command(volumes, "snapshot", _snapshot, "make a snapshot, at a name or in a directory", "SOURCE", "DEST")
    snapshot.add_argument("-r", action="store_true", dest="read_only", help="read-only")
    snapshot.add_argument(
        "-R", "--recursive", action="store_true", help="of the subvolumes in it as well, one after the other"
    )
    for parser_of_new in (create, snapshot):
        parser_of_new.add_argument(
            "-i",
            metavar="QGROUP",
            type=_qgroup,
            action="append",
            dest="qgroups",
            help="let it join this one, as in 1/5",
        )
    delete = command(volumes, "delete", _delete, "delete subvolumes", "PATH+")
    delete.add_argument("-c", "--commit-after", action="store_true", help="have it on disk at the end")
    delete.add_argument("-C", "--commit-each", action="store_true", help="have each on disk before the next")
    delete.add_argument("-i", "--subvolid", metavar="ID", type=int, help="the one with this id, of the filesystem PATH")
    delete.add_argument("-R", "--recursive", action="store_true", help="with the subvolumes in them")
    sync = command(volumes, "sync", _sync, "wait until deleted subvolumes are cleaned", "PATH")
    sync.add_argument("ids", metavar="ID", nargs="*", type=int, help="by default all of them")
    default = command(volumes, "get-default", _get_default, "show the one mounted when none is named", "PATH")
    set_default = command(volumes, "set-default", _set_default, "let one be mounted when none is named")
    set_default.add_argument("target", metavar="{PATH | ID PATH}", nargs="+", help="the subvolume")

    usage = command(groups, "usage", _usage, "show what a filesystem holds and can hold", "PATH")
    usage.add_argument("-b", "--raw", action="store_true", help="in bytes")
    for parser_of_reading in (listing, show, default, usage):
        parser_of_reading.add_argument("--json", action="store_true", help="print JSON")

    images = group("image", "make a btrfs in a file, and mount it")
    image_create = command(images, "create", _image_create, "make an image", "FILE")
    image_create.add_argument("size", metavar="SIZE", type=_size, help="as in 20G")
    image_create.add_argument("--sparse", action="store_true", help="do not reserve its space")
    command(images, "mount", _image_mount, "mount an image", "FILE", "TARGET").add_argument(
        "-o", metavar="OPTIONS", dest="options", default="", help="mount options"
    )
    command(images, "unmount", _image_unmount, "unmount an image", "TARGET")
    return whole
