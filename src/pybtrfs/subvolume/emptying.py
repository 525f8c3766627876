"""
Deletion of a subvolume file by file, for callers without ``CAP_SYS_ADMIN``.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from pybtrfs import ioctl, syscall
from pybtrfs.errors import not_subvolume, noted
from pybtrfs.ioctl import SUBVOL_RDONLY
from pybtrfs.path import open_beneath, owned
from pybtrfs.subvolume.info import is_root, set_read_only
from pybtrfs.subvolume.listing import children

_PROTECTED = (
    "needs CAP_LINUX_IMMUTABLE to delete an immutable or append-only file, or a file in such a directory; needs "
    "ownership in a sticky directory; nobody may delete an active swap file or the default subvolume"
)


class _Level(NamedTuple):
    """
    A directory on the way from the root of the subvolume to the current directory.

    Attributes:
        identity: The device and inode number.
        left: The names of the directories in it that are not deleted yet.
    """

    name: str
    identity: tuple[int, int]
    left: list[str]


def unlink_subvolume(dirfd: int, name: bytes, *, recursive: bool) -> None:
    """
    Delete the subvolume *name* in an open directory: by the ioctl once it is writable, or else by rmdir(2) once it is
    empty.
    """
    try:
        with owned(_open_path(dirfd, name)) as fd:
            if not is_root(fd):
                raise not_subvolume(name)
        with owned(_open(dirfd, name)) as fd:
            if not recursive and any(children(fd)):
                raise _not_empty()
            if not _destroy(dirfd, name, fd):
                _Emptying(fd, recursive=recursive).run()
                os.rmdir(name, dir_fd=dirfd)
    except OSError as error:
        error.filename = None  # the caller's own argument takes its place
        if error.errno == errno.EPERM and not hasattr(error, "__notes__"):
            error.add_note(_PROTECTED)
        raise


def _destroy(dirfd: int, name: str | bytes, fd: int) -> bool:
    """
    Make the subvolume *name* with the root *fd* writable, and return whether the kernel deletes it as a whole.
    """
    try:
        # The kernel checks the permission to remove before the emptiness. A subvolume that cannot be removed in the end
        # keeps its content.
        os.rmdir(name, dir_fd=dirfd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
    else:
        return True
    if ioctl.subvol_getflags(fd) & SUBVOL_RDONLY:
        set_read_only(fd, read_only=False, clear_received=True)
    _unlock(fd)
    try:
        ioctl.snap_destroy(dirfd, os.fsencode(name))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTEMPTY):
            raise
        return False
    return True


class _Emptying:
    """
    The deletion of the content of a subvolume, with one directory open at a time.

    So neither the number of open files, nor the length of a path, nor the stack limits the depth.

    Args:
        fd: The current directory, first the root. This class moves the descriptor to other directories.
    """

    def __init__(self, fd: int, *, recursive: bool) -> None:
        self._fd = fd
        self._recursive = recursive
        self._levels: list[_Level] = []
        self._name = ""  # of the file in the current directory that is being deleted

    def run(self) -> None:
        """
        Delete everything below the root.

        Raises:
            OSError: A file cannot be deleted. The message has its path from the root.
        """
        try:
            self._clear("")
            while True:
                if left := self._levels[-1].left:
                    self._descend(left[-1])
                elif len(self._levels) > 1:
                    self._ascend()
                else:
                    return
        except OSError as error:
            path = "/".join((*(level.name for level in self._levels[1:]), self._name))
            text = f"{error.strerror}: {path!r} inside of the subvolume, which may be partly deleted"
            raise noted(OSError(error.errno, text), error) from error

    def _clear(self, name: str) -> None:
        """
        Delete the files and the empty directories in the current directory, whose name is *name*.
        """
        self._name = ""
        level = _Level(name, _identity(self._fd), [])
        self._levels.append(level)
        _unlock(self._fd)
        for entry in os.listdir(self._fd):
            self._name = entry
            try:
                os.unlink(entry, dir_fd=self._fd)
            except FileNotFoundError:
                pass  # deleted concurrently
            except IsADirectoryError:
                if not self._remove_directory():
                    level.left.append(entry)

    def _remove_directory(self) -> bool:
        try:
            os.rmdir(self._name, dir_fd=self._fd)
        except FileNotFoundError:
            pass  # deleted concurrently
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return False
        return True

    def _descend(self, name: str) -> None:
        self._name = name
        with owned(_open(self._fd, name)) as fd:
            if is_root(fd):
                if not self._recursive:
                    raise _not_empty()
                if _destroy(self._fd, name, fd):
                    self._levels[-1].left.pop()
                    return
            os.dup2(fd, self._fd, inheritable=False)
        self._clear(name)

    def _ascend(self) -> None:
        self._name = self._levels.pop().name
        parent = self._levels[-1]
        with owned(os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)) as fd:
            # A nested subvolume can be moved to any directory of the filesystem.
            if _identity(fd) != parent.identity:
                raise OSError(errno.EBUSY, "moved concurrently")
            os.dup2(fd, self._fd, inheritable=False)
        if not self._remove_directory():
            raise _not_empty()
        parent.left.pop()


def _open(dirfd: int, name: str | bytes) -> int:
    """
    Open the directory *name* in *dirfd*, which nothing may be mounted on, also if its mode forbids reading.
    """
    try:
        return open_beneath(dirfd, name)
    except PermissionError:
        with owned(_open_path(dirfd, name)) as fd, suppress(PermissionError):
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IRWXU)
        return open_beneath(dirfd, name)


def _open_path(dirfd: int, name: str | bytes) -> int:
    return open_beneath(dirfd, name, syscall.O_PATH | os.O_DIRECTORY)


def _unlock(fd: int) -> None:
    """
    Let the owner of the directory *fd* list, search and change it.
    """
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        with suppress(PermissionError):  # the group or the others may have the permissions
            os.fchmod(fd, mode | stat.S_IRWXU)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _not_empty() -> OSError:
    return OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
