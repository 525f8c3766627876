"""
The ioctls on the devices of a filesystem and their space.
"""

from __future__ import annotations

from typing import NamedTuple

from pybtrfs import kernel
from pybtrfs._ffi import ffi, lib, new

DEV_STATS_RESET: int = lib.PYBTRFS_DEV_STATS_RESET

BLOCK_GROUP_DATA: int = lib.PYBTRFS_BLOCK_GROUP_DATA
BLOCK_GROUP_SYSTEM: int = lib.PYBTRFS_BLOCK_GROUP_SYSTEM
BLOCK_GROUP_METADATA: int = lib.PYBTRFS_BLOCK_GROUP_METADATA
BLOCK_GROUP_RAID0: int = lib.PYBTRFS_BLOCK_GROUP_RAID0
BLOCK_GROUP_RAID1: int = lib.PYBTRFS_BLOCK_GROUP_RAID1
BLOCK_GROUP_DUP: int = lib.PYBTRFS_BLOCK_GROUP_DUP
BLOCK_GROUP_RAID10: int = lib.PYBTRFS_BLOCK_GROUP_RAID10
BLOCK_GROUP_RAID5: int = lib.PYBTRFS_BLOCK_GROUP_RAID5
BLOCK_GROUP_RAID6: int = lib.PYBTRFS_BLOCK_GROUP_RAID6
BLOCK_GROUP_RAID1C3: int = lib.PYBTRFS_BLOCK_GROUP_RAID1C3
BLOCK_GROUP_RAID1C4: int = lib.PYBTRFS_BLOCK_GROUP_RAID1C4
SPACE_INFO_GLOBAL_RSV: int = lib.PYBTRFS_SPACE_INFO_GLOBAL_RSV


class DevInfo(NamedTuple):
    """
    ``struct btrfs_ioctl_dev_info_args``.
    """

    devid: int
    uuid: bytes
    bytes_used: int
    total_bytes: int
    path: bytes


def dev_info(fd: int, devid: int) -> DevInfo:
    info = new("struct pybtrfs_ioctl_dev_info_args *", {"devid": devid})
    kernel.current.ioctl(fd, "BTRFS_IOC_DEV_INFO", info)
    return DevInfo(info.devid, bytes(info.uuid), info.bytes_used, info.total_bytes, ffi.string(info.path))


def get_dev_stats(fd: int, devid: int, flags: int = 0) -> tuple[int, ...]:
    """
    Return the counters of write, read, flush, corruption and generation errors.

    Args:
        flags: ``DEV_STATS_RESET`` resets the counters.
    """
    stats = new(
        "struct pybtrfs_ioctl_get_dev_stats *",
        {"devid": devid, "nr_items": lib.PYBTRFS_DEV_STAT_VALUES_MAX, "flags": flags},
    )
    kernel.current.ioctl(fd, "BTRFS_IOC_GET_DEV_STATS", stats)
    return tuple(stats.values)


def space_info(fd: int, space_slots: int) -> tuple[int, list[tuple[int, int, int]]]:
    """
    Return the number of spaces, and the (flags, total_bytes, used_bytes) of at most *space_slots* of them.
    """
    arguments = new("struct pybtrfs_ioctl_space_args *", {"space_slots": space_slots, "spaces": space_slots})
    kernel.current.ioctl(fd, "BTRFS_IOC_SPACE_INFO", arguments)
    total = int(arguments.total_spaces)
    spaces = [arguments.spaces[i] for i in range(min(total, space_slots))]
    return total, [(space.flags, space.total_bytes, space.used_bytes) for space in spaces]
