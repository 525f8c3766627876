"""
A btrfs filesystem as a whole: what it is, what it holds, its devices and its transactions.

*target* is any file of the filesystem.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from pybtrfs import ioctl
from pybtrfs.path import Target, opened

if TYPE_CHECKING:
    from uuid import UUID


class FilesystemInfo(NamedTuple):
    """
    A filesystem; sizes are in bytes.

    Attributes:
        generation: The running transaction, or the last one when none is.
        max_id: The largest devid in use.
    """

    max_id: int
    num_devices: int
    fsid_bytes: bytes
    nodesize: int
    sectorsize: int
    clone_alignment: int
    csum_type: int
    csum_size: int
    flags: int
    generation: int
    metadata_uuid_bytes: bytes

    @property
    def fsid(self) -> UUID:
        return _uuid(self.fsid_bytes)

    @property
    def metadata_uuid(self) -> UUID:
        return _uuid(self.metadata_uuid_bytes)


class SpaceInfo(NamedTuple):
    """
    The block groups of one type and profile: how much they can hold and do hold, in bytes.
    """

    flags: int
    total_bytes: int
    used_bytes: int

    @property
    def type(self) -> str:
        """
        ``data``, ``metadata``, ``system``, ``data+metadata`` (mixed) or ``global reserve``, which is part of metadata.
        """
        if self.flags & ioctl.SPACE_INFO_GLOBAL_RSV:
            return "global reserve"
        return "+".join(name for flag, name in _TYPES if self.flags & flag)

    @property
    def profile(self) -> str:
        """
        How it is laid out on the devices: ``single``, ``dup``, ``raid0``, ``raid1`` and so on.
        """
        return next((name for flag, name in _PROFILES if self.flags & flag), "single")


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


_TYPES = (
    (ioctl.BLOCK_GROUP_DATA, "data"),
    (ioctl.BLOCK_GROUP_METADATA, "metadata"),
    (ioctl.BLOCK_GROUP_SYSTEM, "system"),
)
_PROFILES = (
    (ioctl.BLOCK_GROUP_DUP, "dup"),
    (ioctl.BLOCK_GROUP_RAID0, "raid0"),
    (ioctl.BLOCK_GROUP_RAID1, "raid1"),
    (ioctl.BLOCK_GROUP_RAID10, "raid10"),
    (ioctl.BLOCK_GROUP_RAID5, "raid5"),
    (ioctl.BLOCK_GROUP_RAID6, "raid6"),
    (ioctl.BLOCK_GROUP_RAID1C3, "raid1c3"),
    (ioctl.BLOCK_GROUP_RAID1C4, "raid1c4"),
)


def get_info(target: Target) -> FilesystemInfo:
    """
    Return what *target*'s filesystem is.

    Issues ``BTRFS_IOC_FS_INFO``, which needs no privilege.

    Raises:
        NotBtrfsError: *target* is not on btrfs.
    """
    with opened(target) as fd:
        return FilesystemInfo(*ioctl.fs_info(fd))


def get_space(target: Target) -> tuple[SpaceInfo, ...]:
    """
    Return what the filesystem's block groups can hold and do hold, by type and profile.

    Issues ``BTRFS_IOC_SPACE_INFO``, which needs no privilege.
    """
    with opened(target) as fd:
        total, spaces = ioctl.space_info(fd, 0)
        # There may be more by the time of the next call.
        while len(spaces) < total:
            total, spaces = ioctl.space_info(fd, total)
        return tuple(SpaceInfo(*space) for space in spaces)


def get_device_info(target: Target, devid: int) -> DeviceInfo:
    """
    Return the device *devid* of the filesystem.

    Issues ``BTRFS_IOC_DEV_INFO``, which needs no privilege.

    Raises:
        OSError: ENODEV: the filesystem has no such device.
    """
    with opened(target) as fd:
        return _device_info(fd, devid)


def iterate_devices(target: Target) -> Iterator[DeviceInfo]:
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


def get_device_stats(target: Target, devid: int = 1, *, reset: bool = False) -> DeviceStats:
    """
    Return the error counters of the device *devid*, and set them to zero at the same time if *reset* is true.

    Data that could not be written because the device itself is out of space (an image on a full host) is not counted.

    Issues ``BTRFS_IOC_GET_DEV_STATS``, which needs no privilege, but ``CAP_SYS_ADMIN`` to reset.

    Raises:
        OSError: ENODEV: the filesystem has no such device.
    """
    with opened(target) as fd:
        return DeviceStats(*ioctl.get_dev_stats(fd, devid, ioctl.DEV_STATS_RESET if reset else 0))


def sync(target: Target) -> None:
    """
    Write everything of the filesystem to disk, whoever wrote it, and commit. Deleted subvolumes begin to be cleaned.

    Data whose write-back failed is not reported: os.fsync and `pybtrfs.syscall.syncfs` do.

    Issues ``BTRFS_IOC_SYNC``, which needs no privilege.
    """
    with opened(target) as fd:
        ioctl.sync(fd)


def start_sync(target: Target) -> int:
    """
    Begin to commit the running transaction, and return its id for `wait_sync`; of an idle filesystem, the last one's.

    Data not yet written back is not part of it.

    Issues ``BTRFS_IOC_START_SYNC``, which needs no privilege. See the warning at `wait_sync`.
    """
    with opened(target) as fd:
        return ioctl.start_sync(fd)


def wait_sync(target: Target, transid: int = 0) -> None:
    """
    Wait until the transaction *transid*, or the one being committed for 0, is on disk.

    Warning: the kernel may lose the wake-up that `start_sync` gives to its committing thread when other transactions
    are committed at the same time. The wait then lasts until the next periodic commit, up to 30 seconds (seen on Linux
    6.18 and 7.3, with one caller as with several). Where the latency matters use os.fsync of the directory in which a
    subvolume was created or deleted: it commits the transaction itself.

    On a filesystem that was aborted after an error, a wait for 0 returns as if nothing had happened.

    Issues ``BTRFS_IOC_WAIT_SYNC``, which needs no privilege.

    Raises:
        OSError: EINVAL: *transid* lies in the future.
    """
    with opened(target) as fd:
        ioctl.wait_sync(fd, transid)


def resize(target: Target, size: int | Literal["max"], *, devid: int = 1) -> None:
    """
    Grow or shrink the filesystem on the device *devid* to *size* bytes, or to the whole device with ``"max"``.

    Issues ``BTRFS_IOC_RESIZE``, which needs ``CAP_SYS_ADMIN``.

    Raises:
        OSError: EFBIG: the device is smaller than *size*. ENOSPC: what it holds does not fit into *size*.
    """
    if size != "max" and (not isinstance(size, int) or size <= 0):
        raise ValueError(f"{size!r} is neither a size in bytes nor 'max'")
    with opened(target) as fd:
        ioctl.resize(fd, f"{devid}:{size}".encode())


def _device_info(fd: int, devid: int) -> DeviceInfo:
    info = ioctl.dev_info(fd, devid)
    return DeviceInfo(info.devid, info.uuid, info.bytes_used, info.total_bytes, os.fsdecode(info.path))


def _uuid(value: bytes) -> UUID:
    from uuid import UUID

    return UUID(bytes=value)
