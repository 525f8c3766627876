"""
``pybtrfs image``: create, mount and unmount image files.
"""

from __future__ import annotations

import argparse
import re

from pybtrfs import image, syscall


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(iB)?", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 512M or 20G")
    return int(match[1]) << 10 * "_KMGT".index(match[2].upper() or "_")


def _image_create(arguments: argparse.Namespace) -> None:
    image.create(arguments.file, arguments.size, sparse=arguments.sparse)


def _image_mount(arguments: argparse.Namespace) -> None:
    options = {"options": arguments.options} if arguments.options else {}
    image.mount(arguments.file, arguments.target, **options)


def _image_unmount(arguments: argparse.Namespace) -> None:
    syscall.umount2(arguments.target, syscall.UMOUNT_NOFOLLOW)
