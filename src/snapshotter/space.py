"""
How much a store takes of its filesystem, and how full that is.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pybtrfs import filesystem, subvolume
from pybtrfs.filesystem import SpaceInfo
from snapshotter import usage
from snapshotter.inventory import Entry, Inventory, Volume
from snapshotter.session import translating
from snapshotter.snapshot import Kind


@dataclass(frozen=True, slots=True)
class Amount:
    """
    How much there is of one kind.

    Args:
        size: What all of them added on disk, in bytes.
        reclaimable: What those of them added that nothing uses: active ones that are not mounted, committed ones that
            no active snapshot and no view rests on, and all that is no snapshot's.
    """

    count: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class BlockGroups:
    """
    The block groups of one type, in bytes, without the copies that their profile keeps.
    """

    type: str
    profile: str
    size: int
    used: int


@dataclass(frozen=True, slots=True)
class FilesystemSpace:
    """
    A filesystem, in bytes of its devices.

    Args:
        allocated: What block groups have taken.
        unallocated: What they can still take; with none, a filesystem whose metadata is full is full.
        available: What can be written before it is full, as statvfs(3) estimates it.
        deleted: Deleted subvolumes, whoever's, that the kernel has not cleaned yet.
    """

    size: int
    allocated: int
    unallocated: int
    available: int
    deleted: int
    block_groups: tuple[BlockGroups, ...]

    @property
    def metadata_full(self) -> float:
        """
        How full the block groups of metadata are, from 0 to 1.
        """
        groups = [group for group in self.block_groups if "metadata" in group.type]
        return sum(group.used for group in groups) / (sum(group.size for group in groups) or 1)


def of_snapshots(inventory: Inventory, kind: Kind) -> Amount:
    """
    The snapshots of one kind. One that is lost counts, and has no size.
    """
    entries = [entry for entry in inventory.entries.values() if entry.info.kind is kind]
    used = _used(inventory)
    return Amount(len(entries), _size(entries), _size(entry for entry in entries if entry.info.name not in used))


def of_volumes(root: str, volumes: Iterable[Volume]) -> Amount:
    """
    Subvolumes of the store at *root* that are no snapshot's.
    """
    sizes = list(_sizes(root, volumes))
    return Amount(len(sizes), sum(sizes), sum(sizes))


def of_filesystem(root: str) -> FilesystemSpace:
    """
    The filesystem of the store at *root*. Needs no privilege.
    """
    with translating(f"look at the filesystem of {root!r}"):
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            devices = list(filesystem.iterate_devices(fd))
            size = sum(device.total_bytes for device in devices)
            allocated = sum(device.bytes_used for device in devices)
            status = os.fstatvfs(fd)
            return FilesystemSpace(
                size,
                allocated,
                size - allocated,
                status.f_bavail * status.f_frsize,
                subvolume.count_deleted(fd),
                tuple(map(_block_groups, filesystem.get_space(fd))),
            )
        finally:
            os.close(fd)


def _block_groups(space: SpaceInfo) -> BlockGroups:
    return BlockGroups(space.type, space.profile, space.total_bytes, space.used_bytes)


def _used(inventory: Inventory) -> set[str]:
    """
    The keys of what is mounted, and of what snapshots in use or active rest on.
    """
    used: set[str] = set()
    for entry in inventory.entries.values():
        if entry.mounted and entry.info.kind is not Kind.COMMITTED:
            used.add(entry.info.name)
        if entry.info.kind is not Kind.COMMITTED:
            parent = entry.info.parent
            while parent in inventory.entries and parent not in used:
                used.add(parent)
                parent = inventory.entries[parent].info.parent
    return used


def _size(entries: Iterable[Entry]) -> int:
    return sum(entry.usage.size for entry in entries if entry.usage)


def _sizes(root: str, volumes: Iterable[Volume]) -> Iterator[int]:
    for volume in volumes:
        fd = os.open(os.path.join(root, volume.path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield usage.measure(fd, volume.info.otransid if volume.info.parent_uuid else 0, None).added.size
        finally:
            os.close(fd)
