"""
Layout of a store on disk: every name below its root.

::

    ROOT/            0700, on btrfs
      store/         the header of the store
      lock           flock; the holder's pid, command and socket inside
      empty/         read-only subvolume; contents of a view without parent
      snapshots/
        17/          0700; the record of snapshot 17
          fs/        the subvolume of an active snapshot
          layer/     the read-only subvolume of a committed snapshot
      quarantine/    entries without a usable record, moved here by a repair
"""

import os
import stat
from typing import NamedTuple, Self

from pybtrfs import ioctl
from snapshotter.errors import InvalidArgumentError, quoted

STORE, LOCK, EMPTY, SNAPSHOTS, QUARANTINE = "store", "lock", "empty", "snapshots", "quarantine"
FS, LAYER = "fs", "layer"

PATH_MAX, NAME_MAX = 4095, 255  # bytes; limits of the kernel


class Place(NamedTuple):
    """
    The place of a directory or subvolume: *name*, relative to the open directory *dir_fd*, and its whole *path*.
    """

    dir_fd: int
    name: str
    path: str


class Directory:
    """
    The open directory of one snapshot, closed at the end of a ``with``.

    Attributes:
        fd: Its file descriptor; -1 once closed, so that a later use fails instead of reaching another file.
        path: Its absolute path.
    """

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)


def real_path(path: str | os.PathLike[str]) -> str:
    """
    Return the absolute *path* without symbolic links; it need not exist.

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


def is_subvolume(dir_fd: int, name: str) -> bool:
    """
    Return whether *name* in the directory *dir_fd* is a subvolume; a symbolic link to one is not.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return status.st_ino == ioctl.FIRST_FREE_OBJECTID and stat.S_ISDIR(status.st_mode)
