"""
Space that a store takes on its filesystem, and the space of the filesystem itself.
"""

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from pybtrfs import device, extent, space, subvolume
from pybtrfs.extent import Extent, Track
from pybtrfs.path import opened
from pybtrfs.space import SpaceInfo
from pybtrfs.subvolume import SubvolumeInfo
from snapshotter.analysis import inventory
from snapshotter.analysis.inventory import Entry, Inventory, Volume
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, is_damage, quoted, translating
from snapshotter.model import Kind
from snapshotter.store import usage


@dataclass(frozen=True, slots=True)
class Amount:
    """
    The number and size of the snapshots or subvolumes of one kind.

    Args:
        size: Bytes on disk that they added.
        reclaimable: Bytes added by unused snapshots: unmounted active ones, and committed ones with no active snapshot
            or view on top. Unmounted subvolumes that belong to no snapshot count, too.
    """

    count: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class BlockGroups:
    """
    The block groups of one type, in bytes. Copies that their profile keeps count once.
    """

    type: str
    profile: str
    size: int
    used: int


@dataclass(frozen=True, slots=True)
class FilesystemSpace:
    """
    The space of a filesystem, in bytes of its devices.

    Args:
        allocated: The space that block groups take.
        unallocated: The space left for further block groups. If it is 0 and the metadata is full, so is the filesystem.
        available: The estimate of statvfs(3) for the data that can still be written.
        deleted: The number of deleted subvolumes that the kernel has not cleaned yet, in the store and outside.
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
        The used fraction of the metadata block groups, from 0 to 1.
        """
        groups = [group for group in self.block_groups if "metadata" in group.type]
        return sum(group.used for group in groups) / (sum(group.size for group in groups) or 1)


def of_store(store: Snapshotter, inventory: Inventory) -> dict[str, Amount]:
    """
    Return the amounts of an open *store* by kind: the kinds of snapshots in lower case, "pending" and "orphaned".

    The quarantine is part of "orphaned".
    """
    kinds = {str(kind).lower(): amount for kind, amount in of_snapshots(inventory).items()}
    pending, orphaned = (of_volumes(store.root, volumes) for volumes in (inventory.pending, inventory.orphaned))
    return kinds | {"pending": pending, "orphaned": orphaned}


def of_snapshots(inventory: Inventory) -> dict[Kind, Amount]:
    """
    Return the amount of snapshots of each kind. A snapshot whose subvolume is missing counts with size 0.
    """
    used = _used(inventory)
    entries = inventory.entries.values()

    def of(kind: Kind) -> Amount:
        own = [entry for entry in entries if entry.info.kind is kind]
        return Amount(len(own), _size(own), _size(entry for entry in own if entry.info.name not in used))

    return {kind: of(kind) for kind in (Kind.COMMITTED, Kind.ACTIVE, Kind.VIEW)}


def of_volumes(root: str, volumes: Collection[Volume]) -> Amount:
    """
    Return the amount of *volumes*, subvolumes of the store at *root* that belong to no snapshot.

    The size is the space that is freed when all of them are destroyed. Volumes that are mounted are not reclaimable.
    Without ``CAP_SYS_ADMIN``, the size is that of all their files.
    """
    free = [volume for volume in volumes if not volume.mounts]
    with translating(f"measure subvolumes of {root!r}"), opened(root) as fd:
        try:
            size = _only_theirs(fd, volumes, volumes)
            reclaimable = size if len(free) == len(volumes) else _only_theirs(fd, free, free)
        except PermissionError:
            size, reclaimable = _walked(root, volumes), _walked(root, free)
    return Amount(len(volumes), size, reclaimable)


def frees(store: Snapshotter, keys: Collection[str], track: Track = iter) -> int:
    """
    Return the bytes of data that are freed when the snapshots *keys* are removed.

    Data that several of them share counts once. The number is exact for data that has been written back, even if files
    were cloned or deduplicated. Metadata does not count: names, inodes, and the content of files up to 2 KiB. Removed
    snapshots count as gone even before they are destroyed.

    Issues a tree search for the changes of each snapshot, and an ioctl for each extent found. Needs ``CAP_SYS_ADMIN``.

    Args:
        track: Wraps the extents while they are found, then while they are checked, to show progress.

    Raises:
        NotFoundError: No snapshot has one of the keys.
        FailedPreconditionError: A snapshot in *keys* has a child that is not in *keys*.
    """
    wanted = set(keys)
    for key in wanted:
        store.stat(key)
    for info in store.walk():
        if info.parent in wanted and info.name not in wanted:
            raise FailedPreconditionError(
                f"cannot remove snapshot {quoted(info.parent)} with child {quoted(info.name)}: name the child too"
            )
    taken = inventory.take(store, measured=False)
    volumes = [entry.volume for key, entry in taken.entries.items() if key in wanted and entry.volume]
    with translating(f"measure snapshots of {store.root!r}"), opened(store.root) as fd:
        return _only_theirs(fd, volumes, [*volumes, *taken.pending], track)


def _only_theirs(fd: int, volumes: Iterable[Volume], owners: Iterable[Volume], track: Track = iter) -> int:
    """
    Return the bytes of the extents that *volumes* added to their bases and that only *owners* refer to.
    """
    found = (
        added
        for volume in volumes
        for subvolid in volume.subvolids
        for added in _extents(fd, subvolid, volume.base if subvolid == volume.info.id else None)
    )
    subvolids = {subvolid for owner in owners for subvolid in owner.subvolids}
    return sum(extent.unshared(fd, track(found), subvolids, track).values())


def _walked(root: str, volumes: Iterable[Volume]) -> int:
    """
    Return the sizes of the files in *volumes*, as far as they can be read.
    """
    size = 0
    for volume in volumes:
        with contextlib.suppress(OSError), opened(os.path.join(root, volume.path)) as fd:
            size += usage.walk(fd, None).added.size
    return size


def _extents(fd: int, subvolid: int, base: SubvolumeInfo | None) -> Iterator[Extent]:
    """
    Yield the extents of a subvolume; of a damaged one, those before the damage.
    """
    try:
        yield from extent.iterate(fd, subvolid, base)
    except OSError as error:
        if not is_damage(error):
            raise


def of_filesystem(root: str) -> FilesystemSpace:
    """
    Return the space of the filesystem of the store at *root*. Needs no privilege.
    """
    with translating(f"read the space of the filesystem of {root!r}"), opened(root) as fd:
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
    Return the keys of mounted snapshots, and of the layers below active snapshots and views.
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
