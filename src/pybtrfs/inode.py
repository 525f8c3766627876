"""
What btrfs does with the data of one file, or of what is made in one directory: compression, and copying on write.

New files and directories take both from the directory they are made in, but do not show ``"none"`` as theirs; snapshots
have those of their source.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pybtrfs import ioctl, syscall
from pybtrfs.errors import NotBtrfsError
from pybtrfs.path import Target, opened

_COMPRESSION = "btrfs.compression"


def get_compression(target: Target) -> str | None:
    """
    Return how new data of *target* is compressed whatever the mount says: ``"zlib"``, ``"lzo"``, ``"zstd"`` or
    ``"none"``, or None when the mount decides.

    Issues fgetxattr(2) of ``btrfs.compression``, for which the caller must be able to open *target*.
    """
    with _opened(target) as fd:
        try:
            return os.fsdecode(os.getxattr(fd, _COMPRESSION))
        except OSError as error:
            if error.errno != errno.ENODATA:
                error.filename = target
                raise
            return None


def set_compression(target: Target, algorithm: str | None) -> None:
    """
    Let new data of *target* be compressed by ``"zlib"``, ``"lzo"`` or ``"zstd"``, not at all for ``"none"``, or as the
    mount says for None. Data that is there stays as it is.

    Issues fsetxattr(2) of ``btrfs.compression``, for None fremovexattr(2) and, where that leaves "not at all" behind,
    ``FS_IOC_SETFLAGS``. The caller must be able to write to *target*, and in the last case own it.

    Raises:
        OSError: EINVAL: the kernel does not know *algorithm*, as Linux 5.10 does not know ``"none"``, or *target* is
            not copied on write, which Linux 5.10 does not mind. EROFS: its subvolume is read-only.
    """
    with _opened(target) as fd:
        try:
            if algorithm is None:
                os.removexattr(fd, _COMPRESSION)
            else:
                os.setxattr(fd, _COMPRESSION, os.fsencode(algorithm))
        except OSError as error:
            if error.errno != errno.ENODATA:
                error.filename = target
                raise
        # What was made in a directory with "none" has no attribute, and to Linux 5.10 removing one means "none".
        flags = ioctl.getflags(fd) if algorithm is None else 0
        if flags & ioctl.FS_NOCOMP_FL:
            ioctl.setflags(fd, flags & ~ioctl.FS_NOCOMP_FL)


def get_nodatacow(target: Target) -> bool:
    """
    Return whether the data of *target* is overwritten in place: not copied on write, compressed or checksummed.

    Issues ``FS_IOC_GETFLAGS``, which needs no privilege.
    """
    with _opened(target) as fd:
        return bool(ioctl.getflags(fd) & ioctl.FS_NOCOW_FL)


def set_nodatacow(target: Target, nodatacow: bool = True) -> None:
    """
    Let the data of the empty file *target*, or of files yet to be made in the directory *target*, be overwritten in
    place.

    Issues ``FS_IOC_SETFLAGS``. The caller must own *target* or have ``CAP_FOWNER``.

    Raises:
        OSError: EINVAL: *target* is a file with data, or compressed. EROFS: its subvolume is read-only.
    """
    with _opened(target) as fd:
        flags = ioctl.getflags(fd)
        ioctl.setflags(fd, flags | ioctl.FS_NOCOW_FL if nodatacow else flags & ~ioctl.FS_NOCOW_FL)
        # Of a file with data the kernel ignores it.
        if bool(ioctl.getflags(fd) & ioctl.FS_NOCOW_FL) != nodatacow:
            raise OSError(errno.EINVAL, "a file with data keeps how it is written", target)


@contextmanager
def _opened(target: Target) -> Iterator[int]:
    with opened(target) as fd:
        if syscall.fstatfs_type(fd) != syscall.BTRFS_SUPER_MAGIC:
            raise NotBtrfsError(errno.ENOTTY, "not a btrfs filesystem", target)
        yield fd
