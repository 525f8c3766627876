"""
Errors whose errno is misleading. Every other refusal of the kernel is the plain `OSError` of its errno.
"""

import errno
import fcntl
from typing import TypeVar

from pybtrfs import ioctl, syscall

_PATH_ONLY = "the file descriptor was opened with O_PATH: open the file for reading"

_Error = TypeVar("_Error", bound=OSError)


class NotBtrfsError(OSError):
    """
    The file is not on a btrfs filesystem.
    """


class NotSubvolumeError(OSError):
    """
    The file is not the root of a subvolume.

    This includes the empty directory that a snapshot has in place of a subvolume nested in its source.
    """


def explained(error: OSError, fd: int, filename: object) -> OSError:
    """
    Return the error to raise for *error*, the refusal of an ioctl on *fd*.

    It has *filename*, and a class or note that explains ENOTTY or EBADF. An error that has a path already keeps it. A
    file descriptor is replaced, because a nested call was given the descriptor for *filename*.
    """
    if error.errno == errno.EBADF and _is_path_only(fd) and _PATH_ONLY not in getattr(error, "__notes__", ()):
        error.add_note(_PATH_ONLY)
    if error.filename2 is not None or not isinstance(error.filename, int | None):
        return error
    error.filename = filename
    if error.errno != errno.ENOTTY or isinstance(error, NotBtrfsError):
        return error
    if syscall.fstatfs_type(fd) != syscall.BTRFS_SUPER_MAGIC:
        return noted(NotBtrfsError(errno.ENOTTY, "not a btrfs filesystem", filename), error)
    if syscall.fstat_ino(fd) == ioctl.EMPTY_SUBVOL_DIR_OBJECTID:
        return not_subvolume(filename, error)
    error.add_note("this kernel does not have the ioctl")
    return error


def _is_path_only(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & syscall.O_PATH != 0
    except OSError:
        return False  # not open at all


def check_btrfs(fd: int) -> None:
    """
    Raise NotBtrfsError if *fd* is not on btrfs, for calls that other filesystems do not refuse.
    """
    if syscall.fstatfs_type(fd) != syscall.BTRFS_SUPER_MAGIC:
        raise NotBtrfsError(errno.ENOTTY, "not a btrfs filesystem")


def not_subvolume(filename: object, cause: OSError | None = None) -> NotSubvolumeError:
    """
    Return the error to raise for a file that is not the root of a subvolume.
    """
    return noted(NotSubvolumeError(errno.EINVAL, "not the root of a subvolume", filename), cause)


def noted(error: _Error, cause: OSError | None) -> _Error:
    """
    Return *error* with the notes of *cause*.
    """
    for note in getattr(cause, "__notes__", ()):
        error.add_note(note)
    return error
