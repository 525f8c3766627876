"""
Devices of a filesystem: their sizes and error counters.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import ioctl
from pybtrfs.filesystem import _uuid
from pybtrfs.path import Target, opened

if TYPE_CHECKING:
    from uuid import UUID


class DeviceInfo(NamedTuple):
    """
    A device of a filesystem; sizes are in bytes, *bytes_used* is what block groups have taken of it.
    """

    devid: int
    uuid_bytes: bytes
    bytes_used: int
    total_bytes: int
    path: str

    @property
    def uuid(self) -> UUID:
        return _uuid(self.uuid_bytes)


class DeviceStats(NamedTuple):
    """
    The errors a device was seen to make, counted since the filesystem was made or the counters were reset.
    """

    write_errs: int
    read_errs: int
    flush_errs: int
    corruption_errs: int
    generation_errs: int


def get_info(target: Target, devid: int) -> DeviceInfo:
    """
    Return the device *devid* of the filesystem.

    Issues ``BTRFS_IOC_DEV_INFO``, which needs no privilege.

    Raises:
        OSError: ENODEV: the filesystem has no such device.
    """
    with opened(target) as fd:
        return _device_info(fd, devid)


def iterate(target: Target) -> Iterator[DeviceInfo]:
    """
    Yield the devices of the filesystem, by devid. A device removed meanwhile is left out.

    Issues ``BTRFS_IOC_FS_INFO``, and ``BTRFS_IOC_DEV_INFO`` for each devid up to the largest, which need no privilege.
    """
    with opened(target) as fd:
        for devid in range(1, ioctl.fs_info(fd).max_id + 1):
            try:
                device = _device_info(fd, devid)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
            else:
                yield device


def get_stats(target: Target, devid: int = 1, *, reset: bool = False) -> DeviceStats:
    """
    Return the error counters of the device *devid*, and set them to zero at the same time if *reset* is true.

    Data that could not be written because the device itself is out of space (an image on a full host) is not counted.

    Issues ``BTRFS_IOC_GET_DEV_STATS``, which needs no privilege, but ``CAP_SYS_ADMIN`` to reset.

    Raises:
        OSError: ENODEV: the filesystem has no such device.
    """
    with opened(target) as fd:
        return DeviceStats(*ioctl.get_dev_stats(fd, devid, ioctl.DEV_STATS_RESET if reset else 0))


def _device_info(fd: int, devid: int) -> DeviceInfo:
    info = ioctl.dev_info(fd, devid)
    return DeviceInfo(info.devid, info.uuid, info.bytes_used, info.total_bytes, os.fsdecode(info.path))
