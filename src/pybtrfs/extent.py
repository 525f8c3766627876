"""
Extents: who refers to the data at a place of the filesystem.
"""

import errno
import os
from typing import NamedTuple

from pybtrfs import ioctl
from pybtrfs.path import Target, opened

_SMALL, _LARGEST = 1 << 12, 1 << 24  # bytes of an answer; the kernel gives no more


class ExtentReference(NamedTuple):
    """
    A part of a file that is in an extent: inode number, offset in bytes, and the subvolume.
    """

    inum: int
    offset: int
    root: int


def get_references(filesystem: Target, bytenr: int) -> tuple[ExtentReference, ...]:
    """
    Return what refers to the extent at *bytenr*, or to any part of it: in every subvolume, also in one that is deleted
    and not yet cleaned. An extent that is free has no references.

    Issues ``BTRFS_IOC_LOGICAL_INO_V2`` (Linux 4.15), which needs ``CAP_SYS_ADMIN`` and takes the longer the more
    there are: some microseconds each.

    Raises:
        OSError: EOVERFLOW: there are more than 699,000.
    """
    with opened(filesystem) as fd:
        size = _SMALL
        while True:
            try:
                found, missed = ioctl.logical_ino_v2(fd, bytenr, size, ioctl.LOGICAL_INO_ARGS_IGNORE_OFFSET)
            except FileNotFoundError:
                return ()
            if not missed:
                return tuple(map(ExtentReference._make, found))
            if size == _LARGEST:
                raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW), filesystem)
            size = _LARGEST
