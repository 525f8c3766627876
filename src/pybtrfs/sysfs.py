"""
Files in ``/sys`` that describe filesystems and block devices.
"""

import contextlib

from pybtrfs.items import uuid_text


def directory(fsid: bytes) -> str:
    """
    Return the directory of the filesystem whose identity is *fsid*.
    """
    return f"/sys/fs/btrfs/{uuid_text(fsid)}"


def read(path: str) -> str:
    """
    Return the content of the file *path* without the final newline, or "" if it cannot be read.
    """
    with contextlib.suppress(OSError), open(path, errors="surrogateescape") as file:
        return file.read().removesuffix("\n")
    return ""
