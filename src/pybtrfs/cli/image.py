"""
``pybtrfs image``: create, mount and unmount image files.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pybtrfs import size
from pybtrfs.cli.arguments import add_command, add_group

if TYPE_CHECKING:
    from pybtrfs.cli.arguments import Commands

# pybtrfs.image is imported on use, because its imports take longer than most other commands run.


def add_commands(commands: Commands) -> None:
    """
    Declare the commands.
    """
    group = add_group(commands, "image", "create, mount and unmount image files that hold a btrfs")
    create = add_command(group, "create", _create, "create an image", "FILE")
    create.add_argument("size", metavar="SIZE", type=_size, help="the size, such as 20G")
    create.add_argument("--sparse", action="store_true", help="do not reserve the space")
    mount = add_command(group, "mount", _mount, "mount an image", "FILE", "TARGET")
    mount.add_argument("-o", metavar="OPTIONS", dest="options", default="", help="mount options, separated by commas")
    add_command(group, "unmount", _unmount, "unmount an image", "TARGET")


def _size(text: str) -> int:
    try:
        return size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _create(arguments: argparse.Namespace) -> None:
    from pybtrfs import image

    image.create(arguments.file, arguments.size, sparse=arguments.sparse)


def _mount(arguments: argparse.Namespace) -> None:
    from pybtrfs import image

    image.mount(arguments.file, arguments.target, options=arguments.options)


def _unmount(arguments: argparse.Namespace) -> None:
    from pybtrfs import syscall

    syscall.umount2(arguments.target, syscall.UMOUNT_NOFOLLOW)
