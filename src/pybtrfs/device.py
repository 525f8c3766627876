"""
Devices of a filesystem, with their sizes and error counters.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import ioctl
from pybtrfs.path import Target, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID


class DeviceInfo(NamedTuple):
    """
    A device of a filesystem. Sizes are in bytes.

    Attributes:
        bytes_used: The bytes allocated to block groups.
    """

    devid: int
    uuid_bytes: bytes
    bytes_used: int
    total_bytes: int
    path: str

    @property
    def uuid(self) -> UUID:
        from uuid import UUID

        return UUID(bytes=self.uuid_bytes)


class DeviceStats(NamedTuple):
    """
    The error counters of a device, since the filesystem was created or the counters were reset.
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
    Yield the devices of the filesystem, by devid. A device that is removed concurrently is skipped.

    Issues ``BTRFS_IOC_FS_INFO``, and ``BTRFS_IOC_DEV_INFO`` for each devid up to the largest. They need no privilege.
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
    Return the error counters of the device *devid*, and atomically reset them to 0 if *reset* is true.

    Writes that fail because the device itself is out of space, such as an image on a full host, are not counted.

    Issues ``BTRFS_IOC_GET_DEV_STATS``, which needs no privilege, or ``CAP_SYS_ADMIN`` to reset.

    Raises:
        OSError: ENODEV: the filesystem has no such device.
    """
    with opened(target) as fd:
        return DeviceStats(*ioctl.get_dev_stats(fd, devid, ioctl.DEV_STATS_RESET if reset else 0))


def _device_info(fd: int, devid: int) -> DeviceInfo:
    info = ioctl.dev_info(fd, devid)
    return DeviceInfo(info.devid, info.uuid, info.bytes_used, info.total_bytes, os.fsdecode(info.path))
