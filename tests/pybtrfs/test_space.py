"""
Block groups of a filesystem, on real btrfs.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pybtrfs import filesystem, ioctl, space


@pytest.mark.btrfs
def test_get_space(btrfs_mount: Callable[..., Path]) -> None:
    """
    Each space has a type and a profile, and written data counts as used.
    """
    top = btrfs_mount()
    spaces = {space.type: space for space in space.get(top)}
    assert spaces.keys() == {"data", "metadata", "system", "global reserve"}
    assert {space.profile for space in spaces.values()} <= {"single", "dup"}
    before = spaces["data"].used_bytes
    (top / "file").write_bytes(os.urandom(1 << 20))
    filesystem.sync(top)
    (data,) = (space for space in space.get(top) if space.type == "data")
    assert data.used_bytes - before == 1 << 20
    assert data.total_bytes >= data.used_bytes


@pytest.mark.parametrize(
    ("flags", "type_", "profile"),
    [
        (ioctl.BLOCK_GROUP_DATA, "data", "single"),
        (ioctl.BLOCK_GROUP_SYSTEM | ioctl.BLOCK_GROUP_DUP, "system", "dup"),
        (ioctl.BLOCK_GROUP_METADATA | ioctl.BLOCK_GROUP_RAID1C4, "metadata", "raid1c4"),
        (ioctl.BLOCK_GROUP_DATA | ioctl.BLOCK_GROUP_METADATA | ioctl.BLOCK_GROUP_RAID10, "data+metadata", "raid10"),
        (ioctl.SPACE_INFO_GLOBAL_RSV | ioctl.BLOCK_GROUP_METADATA, "global reserve", "single"),
    ],
)
def test_names_of_space(flags: int, type_: str, profile: str) -> None:
    """
    Types and profiles have the names that btrfs uses.
    """
    info = space.SpaceInfo(flags, 2, 1)
    assert (info.type, info.profile) == (type_, profile)
