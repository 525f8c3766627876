"""
How much a store takes of its filesystem, and how full that is.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pybtrfs import device, extent, space, subvolume
from pybtrfs.extent import Track
from pybtrfs.path import opened
from pybtrfs.space import SpaceInfo
from snapshotter.analysis import inventory
from snapshotter.analysis.inventory import Entry, Inventory, Volume
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, quoted, translating
from snapshotter.model import Kind


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


def of_store(store: Snapshotter, inventory: Inventory) -> dict[str, Amount]:
    """
    The snapshots of each kind, what is left of removed ones, and what no record accounts for.
    """
    kinds = {str(kind).lower(): amount for kind, amount in of_snapshots(inventory).items()}
    pending, orphaned = (of_volumes(store.root, volumes) for volumes in (inventory.pending, inventory.orphaned))
    return kinds | {"pending": pending, "orphaned": orphaned}


def of_snapshots(inventory: Inventory) -> dict[Kind, Amount]:
    """
    The snapshots of each kind. One that is lost counts, and has no size.
    """
    used = _used(inventory)
    entries = inventory.entries.values()

    def of(kind: Kind) -> Amount:
        own = [entry for entry in entries if entry.info.kind is kind]
        return Amount(len(own), _size(own), _size(entry for entry in own if entry.info.name not in used))

    return {kind: of(kind) for kind in (Kind.COMMITTED, Kind.ACTIVE, Kind.VIEW)}


def of_volumes(root: str, volumes: Collection[Volume]) -> Amount:
    """
    Subvolumes of the store at *root* that are no snapshot's, with what comes back when all of them are destroyed.
    """
    with translating(f"measure what is no snapshot's in {root!r}"), opened(root) as fd:
        size = _only_theirs(fd, volumes, volumes)
    return Amount(len(volumes), size, size)


def frees(store: Snapshotter, keys: Collection[str], track: Track = iter) -> int:
    """
    The bytes of data that come back when the snapshots *keys* are removed, what several of them share counted once.

    Exact for what is written back, also where files were cloned, or the filesystem deduplicated. Not counted are names
    and inodes, and the content of files up to 2 KiB, which is kept with them. What is removed and not yet destroyed is
    taken for gone. Costs a search of what they changed, and a call for each extent that they wrote; needs
    ``CAP_SYS_ADMIN``.

    Args:
        track: Passes on what is found, and then what is asked for.

    Raises:
        NotFoundError: No snapshot has one of the keys.
        FailedPreconditionError: A snapshot that is none of *keys* rests on one.
    """
    wanted = set(keys)
    for key in wanted:
        store.stat(key)
    for info in store.walk():
        if info.parent in wanted and info.name not in wanted:
            raise FailedPreconditionError(
                f"cannot remove snapshot {quoted(info.parent)} with child {quoted(info.name)}: name that, too"
            )
    taken = inventory.take(store, measured=False)
    volumes = [entry.volume for key, entry in taken.entries.items() if key in wanted and entry.volume]
    with translating(f"measure snapshots of {store.root!r}"), opened(store.root) as fd:
        return _only_theirs(fd, volumes, [*volumes, *taken.pending], track)


def _only_theirs(fd: int, volumes: Iterable[Volume], owners: Iterable[Volume], track: Track = iter) -> int:
    """
    The bytes of what *volumes* added to what they began as, and no subvolume but those of *owners* has.
    """
    found = (
        added
        for volume in volumes
        for subvolid in volume.subvolids
        for added in extent.iterate(fd, subvolid, volume.base if subvolid == volume.info.id else None)
    )
    subvolids = {subvolid for owner in owners for subvolid in owner.subvolids}
    return sum(extent.unshared(fd, track(found), subvolids, track).values())


def of_filesystem(root: str) -> FilesystemSpace:
    """
    The filesystem of the store at *root*. Needs no privilege.
    """
    with translating(f"look at the filesystem of {root!r}"), opened(root) as fd:
        devices = list(device.iterate(fd))
        size = sum(device.total_bytes for device in devices)
        allocated = sum(device.bytes_used for device in devices)
        status = os.fstatvfs(fd)
        return FilesystemSpace(
            size,
            allocated,
            size - allocated,
            status.f_bavail * status.f_frsize,
            subvolume.count_deleted(fd),
            tuple(map(_block_groups, space.get(fd))),
        )


def _block_groups(space: SpaceInfo) -> BlockGroups:
    return BlockGroups(space.type, space.profile, space.total_bytes, space.used_bytes)


def _used(inventory: Inventory) -> set[str]:
    """
    The keys of what is mounted, and of the layers that active snapshots and views rest on.
    """
    used: set[str] = set()
    for entry in inventory.entries.values():
        if entry.info.kind is not Kind.COMMITTED:
            if entry.mounted:
                used.add(entry.info.name)
            parent = entry.info.parent
            while parent in inventory.entries and parent not in used:
                used.add(parent)
                parent = inventory.entries[parent].info.parent
    return used


def _size(entries: Iterable[Entry]) -> int:
    return sum(entry.usage.size for entry in entries if entry.usage)
