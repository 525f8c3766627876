"""
Space of a filesystem, by the type and profile of its block groups.
"""

from __future__ import annotations

from typing import NamedTuple

from pybtrfs import ioctl
from pybtrfs.path import Target, opened


class SpaceInfo(NamedTuple):
    """
    The block groups of one type and profile. Sizes are in bytes.
    """

    flags: int
    total_bytes: int
    used_bytes: int

    @property
    def type(self) -> str:
        """
        The type: ``data``, ``metadata``, ``system``, ``data+metadata`` (mixed) or ``global reserve``, a part of
            metadata.
        """
        if self.flags & ioctl.SPACE_INFO_GLOBAL_RSV:
            return "global reserve"
        return "+".join(name for flag, name in _TYPES if self.flags & flag)

    @property
    def profile(self) -> str:
        """
        The layout on the devices: ``single``, ``dup``, ``raid0``, ``raid1`` and so on.
        """
        return next((name for flag, name in _PROFILES if self.flags & flag), "single")


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


# The number of devices whose loss a profile survives for sure. RAID5 and RAID6 have none, because of their write hole.
_SURVIVABLE = {"raid1": 1, "raid10": 1, "raid1c3": 2, "raid1c4": 3}


def get(target: Target) -> tuple[SpaceInfo, ...]:
    """
    Return the total and used bytes of the block groups, by type and profile.

    Issues ``BTRFS_IOC_SPACE_INFO``, which needs no privilege.
    """
    with opened(target) as fd:
        total, spaces = ioctl.space_info(fd, 0)
        # The number of spaces can grow between two calls.
        while len(spaces) < total:
            total, spaces = ioctl.space_info(fd, total)
        return tuple(SpaceInfo(*space) for space in spaces)


def get_survivable(target: Target) -> int:
    """
    Return the number of devices whose loss every block group of the filesystem survives.

    RAID5 and RAID6 count as no survivor, because a torn write of a stripe can lose data that was there before.

    Issues ``BTRFS_IOC_SPACE_INFO``, which needs no privilege.
    """
    # The global reserve is a part of metadata, and has no block groups.
    groups = (each for each in get(target) if not each.flags & ioctl.SPACE_INFO_GLOBAL_RSV)
    return min((_SURVIVABLE.get(each.profile, 0) for each in groups), default=0)
