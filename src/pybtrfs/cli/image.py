"""
``pybtrfs image``: create, mount and unmount image files.
"""

from __future__ import annotations

import argparse

from pybtrfs import image, size, syscall


def _size(text: str) -> int:
    try:
        return size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _image_create(arguments: argparse.Namespace) -> None:
    image.create(arguments.file, arguments.size, sparse=arguments.sparse)


def _image_mount(arguments: argparse.Namespace) -> None:
    options = {"options": arguments.options} if arguments.options else {}
    image.mount(arguments.file, arguments.target, **options)


def _image_unmount(arguments: argparse.Namespace) -> None:
    syscall.umount2(arguments.target, syscall.UMOUNT_NOFOLLOW)
