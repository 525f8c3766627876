"""
The ioctls on file attributes.
"""

from __future__ import annotations

from pybtrfs import kernel
from pybtrfs._ffi import ffi, lib, new

FS_IMMUTABLE_FL: int = lib.PYBTRFS_FS_IMMUTABLE_FL
FS_APPEND_FL: int = lib.PYBTRFS_FS_APPEND_FL
FS_NOCOMP_FL: int = lib.PYBTRFS_FS_NOCOMP_FL
FS_NOCOW_FL: int = lib.PYBTRFS_FS_NOCOW_FL


def getflags(fd: int) -> int:
    flags = ffi.new("unsigned int *")
    kernel.current.ioctl(fd, "FS_IOC_GETFLAGS", flags)
    return int(flags[0])


def setflags(fd: int, flags: int) -> None:
    kernel.current.ioctl(fd, "FS_IOC_SETFLAGS", new("unsigned int *", flags))
