"""
Storage of records: each lies in or on its snapshot's directory, so that neither can be lost without the other.
"""

import contextlib
import errno
import os
from typing import Protocol

from pybtrfs import syscall
from pybtrfs.path import open_directory

DIRECTORY_MODE = 0o700
XATTR = "user.snapshotter"
FILE = "record"
_NEW_FILE = "record.new"


class RecordStorage(Protocol):
    """
    Storage of the records of directories, as bytes.
    """

    def make_directory(self, dir_fd: int, name: str, data: bytes) -> int:
        """
        Create the directory *name* with its record atomically, and return its file descriptor.

        Raises:
            FileExistsError: *name* exists.
        """

    def read(self, fd: int) -> bytes | None:
        """
        Return the record of the directory *fd*, or None if the directory has no record.
        """

    def write(self, fd: int, data: bytes) -> None:
        """
        Replace the record of the directory *fd* atomically; durable after `Volumes.barrier`.
        """

    def delete(self, fd: int) -> None:
        """
        Delete the files that hold the record of the directory *fd*, so that the directory can be removed.
        """


class Xattrs:
    """
    `RecordStorage` in extended attributes, for btrfs.
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
        pass  # rmdir(2) deletes the xattr


class Files:
    """
    `RecordStorage` in files, for filesystems with smaller xattrs or without xattrs.
    """

    def make_directory(self, dir_fd: int, name: str, data: bytes) -> int:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=dir_fd)
        fd = -1
        try:
            fd = open_directory(dir_fd, name)
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
