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


def count_commits(fsid: bytes) -> int | None:
    """
    Return the number of transactions that were committed since the filesystem was mounted.

    Reads ``commit_stats`` (Linux 6.0), which needs no privilege and waits for no lock. Returns None if it is missing.
    """
    words = read(f"{directory(fsid)}/commit_stats").split(maxsplit=2)
    return int(words[1]) if words[:1] == ["commits"] else None


def read(path: str) -> str:
    """
    Return the content of the file *path* without the final newline, or "" if it cannot be read.
    """
    with contextlib.suppress(OSError), open(path, errors="surrogateescape") as file:
        return file.read().removesuffix("\n")
    return ""
