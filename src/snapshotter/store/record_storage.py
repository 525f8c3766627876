"""
How the record of a directory is kept: with the directory itself, so that one goes with the other.
"""

import contextlib
import errno
import os
from typing import Protocol

from pybtrfs import syscall

DIRECTORY_MODE = 0o700
XATTR = "user.snapshotter"
FILE = "record"
_NEW_FILE = "record.new"


class RecordStorage(Protocol):
    """
    How directories carry their records, which are bytes here.
    """

    def make_directory(self, dir_fd: int, name: str, data: bytes) -> int:
        """
        Make the directory *name* with its record, or nothing, and return its fd.

        Raises:
            FileExistsError: There is one.
        """

    def read(self, fd: int) -> bytes | None:
        """
        The record of the directory *fd*, or None when it has none.
        """

    def write(self, fd: int, data: bytes) -> None:
        """
        Replace the record of the directory *fd*, atomically; durable only after a barrier.
        """

    def delete(self, fd: int) -> None:
        """
        Delete what the record of the directory *fd* has in it, so that the directory is empty.
        """


class Xattrs:
    """
    `RecordStorage` of btrfs.
    """

    def make_directory(self, dir_fd: int, name: str, data: bytes) -> int:
        return syscall.make_directory(dir_fd, name, DIRECTORY_MODE, XATTR, data)

    def read(self, fd: int) -> bytes | None:
        try:
            return os.getxattr(fd, XATTR)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise

    def write(self, fd: int, data: bytes) -> None:
        os.setxattr(fd, XATTR, data)

    def delete(self, fd: int) -> None:
        pass  # it goes with the directory


class Files:
    """
    `RecordStorage` of other filesystems, where an xattr holds less, or is refused.
    """

    def make_directory(self, dir_fd: int, name: str, data: bytes) -> int:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=dir_fd)
        fd = -1
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
            self.write(fd, data)
        except BaseException:
            with contextlib.suppress(OSError):
                if fd >= 0:
                    self.delete(fd)
                    os.close(fd)
                os.rmdir(name, dir_fd=dir_fd)
            raise
        return fd

    def read(self, fd: int) -> bytes | None:
        with (
            contextlib.suppress(FileNotFoundError),
            open(os.open(FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd), "rb") as file,
        ):
            return file.read()
        return None

    def write(self, fd: int, data: bytes) -> None:
        new = os.open(_NEW_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=fd)
        with open(new, "wb") as file:
            file.write(data)
        os.rename(_NEW_FILE, FILE, src_dir_fd=fd, dst_dir_fd=fd)

    def delete(self, fd: int) -> None:
        for name in (FILE, _NEW_FILE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
