"""
``pybtrfs send``: write the stream of a subvolume, as ``btrfs send`` does.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pybtrfs.cli.arguments import add_command
from pybtrfs.path import owned
from pybtrfs.send import get_stream_version, send

if TYPE_CHECKING:
    import argparse

    from pybtrfs.cli.arguments import Commands


def add_commands(commands: Commands) -> None:
    """
    Declare the command.
    """
    parser = add_command(commands, "send", _send, "write the stream of a read-only subvolume", "SUBVOL")
    parser.add_argument("-p", metavar="PARENT", dest="parent", help="send only the changes to the subvolume PARENT")
    parser.add_argument(
        "-c",
        metavar="CLONE-SRC",
        dest="clone_sources",
        action="append",
        default=[],
        help="allow clones from this subvolume; needs -p",
    )
    parser.add_argument("-f", metavar="FILE", dest="file", help="write to FILE instead of standard output")
    parser.add_argument("--no-data", action="store_true", help="send the places of changed data without the data")
    parser.add_argument(
        "--proto", metavar="N", type=int, help="the version of the stream; 0 for the newest of this kernel"
    )
    parser.add_argument("--compressed-data", action="store_true", help="send compressed data as it is on disk")


def _send(arguments: argparse.Namespace) -> None:
    if arguments.clone_sources and arguments.parent is None:
        raise ValueError("-c needs -p: name the parent, because it is not chosen among the clone sources")
    if arguments.file is not None:
        with owned(os.open(arguments.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)) as fd:
            _write(arguments, fd)
    elif sys.stdout.isatty():
        raise ValueError("the output is a terminal: redirect it, or name a file with -f")
    else:
        _write(arguments, sys.stdout.fileno())


def _write(arguments: argparse.Namespace, output: int) -> None:
    print("At subvol", arguments.subvol, file=sys.stderr)
    send(
        arguments.subvol,
        output,
        parent=arguments.parent,
        clone_sources=arguments.clone_sources,
        version=get_stream_version() if arguments.proto == 0 else arguments.proto,
        compressed_data=arguments.compressed_data,
        no_file_data=arguments.no_data,
    )
