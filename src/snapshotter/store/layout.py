"""
Layout of a store on disk: every name below its root.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple, Self

from pybtrfs import ioctl
from snapshotter.errors import (
    InvalidArgumentError,
    quoted,
)

STORE, LOCK, SNAPSHOTS, QUARANTINE = "store", "lock", "snapshots", "quarantine"

PATH_MAX, NAME_MAX = 4095, 255  # bytes, as the kernel takes them


def real_path(path: str | os.PathLike[str]) -> str:
    """
    The absolute *path* without symlinks; it need not exist.

    Raises:
        InvalidArgumentError: No file can have such a path.
    """
    try:
        real = os.path.realpath(path)
        size = len(os.fsencode(real))
    except ValueError as error:
        raise InvalidArgumentError(f"{quoted(os.fspath(path))} is not a path: {error}") from error
    if size > PATH_MAX or any(len(os.fsencode(name)) > NAME_MAX for name in real.split("/")):
        raise InvalidArgumentError(
            f"path {quoted(real)} has more than {PATH_MAX} bytes, or a name in it more than {NAME_MAX}"
        )
    return real


def _open_directory(name: str, dir_fd: int | None = None) -> int:
    # The root may be reached through a symlink, nothing inside a store is one.
    no_follow = os.O_NOFOLLOW if dir_fd is not None else 0
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_follow, dir_fd=dir_fd)


FS = "fs"  # the subvolume of an active snapshot
LAYER = "layer"  # the read-only subvolume of a committed one
EMPTY = "empty"  # what a view without parent shows


class Directory(NamedTuple):
    """
    The directory of one snapshot: open, until the end of a ``with``, and where it is.
    """

    fd: int
    path: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class Place(NamedTuple):
    """
    Where a subvolume or directory of a store is: *name*, relative to the open directory *dir_fd*, and its whole *path*.
    """

    dir_fd: int
    name: str
    path: str


@contextlib.contextmanager
def opened(dir_fd: int, name: str) -> Iterator[int]:
    """
    A directory in *dir_fd*, open for the time of a ``with``; a symlink is refused.
    """
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def is_subvolume(dir_fd: int, name: str) -> bool:
    """
    Whether *name* in the directory *dir_fd* is one, and no symlink to one.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return status.st_ino == ioctl.FIRST_FREE_OBJECTID and stat.S_ISDIR(status.st_mode)
