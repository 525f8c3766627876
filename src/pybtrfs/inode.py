"""
Compression and copy-on-write of a file, or of the files created in a directory.

New files and directories inherit both from their directory, except that they do not show an inherited ``"none"``.
Snapshots keep both from their source.
"""

import errno
import os

from pybtrfs import ioctl
from pybtrfs.errors import check_btrfs
from pybtrfs.path import Target, opened

_COMPRESSION = "btrfs.compression"


def get_compression(target: Target) -> str | None:
    """
    Return the compression of new data of *target*: ``"zlib"``, ``"lzo"``, ``"zstd"`` or ``"none"``, or None if the
    mount options decide.

    Issues fgetxattr(2) of ``btrfs.compression``. The caller must be able to open *target*.
    """
    with opened(target) as fd:
        check_btrfs(fd)
        try:
            return os.fsdecode(os.getxattr(fd, _COMPRESSION))
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return None


def set_compression(target: Target, algorithm: str | None) -> None:
    """
    Set the compression of new data of *target*; existing data stays as it is.

    Issues fsetxattr(2) of ``btrfs.compression``, or fremovexattr(2) for None, and ``FS_IOC_SETFLAGS`` if the removal
    leaves "no compression" set. The caller must be able to write to *target*, and own it for ``FS_IOC_SETFLAGS``.

    Args:
        algorithm: ``"zlib"``, ``"lzo"``, ``"zstd"``, ``"none"`` for no compression, or None to let the mount options
            decide.

    Raises:
        OSError: EINVAL: the kernel does not know *algorithm* (Linux 5.10 does not know ``"none"``), or *target* is
            nodatacow (Linux 5.10 accepts it). EROFS: the subvolume is read-only.
    """
    with opened(target) as fd:
        check_btrfs(fd)
        try:
            if algorithm is None:
                os.removexattr(fd, _COMPRESSION)
            else:
                os.setxattr(fd, _COMPRESSION, os.fsencode(algorithm))
        except OSError as error:
            if error.errno == errno.EINVAL:
                error.add_note(f"the kernel does not know {algorithm!r}, or the file is nodatacow")
            if error.errno != errno.ENODATA:
                raise
        # Files created in a directory with "none" have the flag but no attribute, and on Linux 5.10 removing the
        # attribute sets the flag.
        flags = ioctl.getflags(fd) if algorithm is None else 0
        if flags & ioctl.FS_NOCOMP_FL:
            ioctl.setflags(fd, flags & ~ioctl.FS_NOCOMP_FL)


def get_nodatacow(target: Target) -> bool:
    """
    Return whether the data of *target* is overwritten in place, without copy-on-write, compression and checksums.

    Issues ``FS_IOC_GETFLAGS``, which needs no privilege.
    """
    with opened(target) as fd:
        check_btrfs(fd)
        return bool(ioctl.getflags(fd) & ioctl.FS_NOCOW_FL)


def set_nodatacow(target: Target, *, nodatacow: bool = True) -> None:
    """
    Set whether the data of *target* is overwritten in place: an empty file, or a directory for its new files.

    Issues ``FS_IOC_SETFLAGS``. The caller must own *target* or have ``CAP_FOWNER``.

    Raises:
        OSError: EINVAL: *target* is a file with data, or compressed. EROFS: the subvolume is read-only.
    """
    with opened(target) as fd:
        check_btrfs(fd)
        flags = ioctl.getflags(fd)
        ioctl.setflags(fd, flags | ioctl.FS_NOCOW_FL if nodatacow else flags & ~ioctl.FS_NOCOW_FL)
        # The kernel ignores the change for a file with data.
        if bool(ioctl.getflags(fd) & ioctl.FS_NOCOW_FL) != nodatacow:
            raise OSError(errno.EINVAL, "cannot change nodatacow of a file with data", target)
