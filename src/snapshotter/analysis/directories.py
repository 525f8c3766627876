"""
The bytes on disk of each directory of a snapshot: exclusive to the snapshot, or shared with others.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pybtrfs import items, subvolume, tree_search
from pybtrfs.extent import Extent, Track, has_reference, unshared
from pybtrfs.items import (
    EXTENT_DATA_KEY,
    FIRST_FREE_OBJECTID,
    INODE_EXTREF_KEY,
    INODE_ITEM_KEY,
    INODE_REF_KEY,
    LAST_FREE_OBJECTID,
    FileExtent,
    Item,
    Key,
)
from pybtrfs.path import opened
from pybtrfs.subvolume.files import Name, file_type, names
from snapshotter.analysis import inventory
from snapshotter.contract import Snapshotter
from snapshotter.errors import quoted, translating
from snapshotter.model import Kind

_ROOT = FIRST_FREE_OBJECTID
_LAST = Key(LAST_FREE_OBJECTID, EXTENT_DATA_KEY, tree_search.MAX)


@dataclass(frozen=True, slots=True)
class DirectoryUsage:
    """
    The usage of a directory with everything below it.

    Neither size includes the content of files up to 2 KiB, because btrfs keeps that with their inodes.

    Args:
        path: The path from the root of the snapshot; ``.`` for the root.
        exclusive: The size on disk of extents that nothing else on the filesystem refers to, in bytes.
        shared: The size on disk of all other extents, in bytes.
        inodes: The number of inodes, including the directory's own.
    """

    path: str
    exclusive: int
    shared: int
    inodes: int


def measure(store: Snapshotter, key: str, depth: int = 1, track: Track = iter) -> list[DirectoryUsage]:
    """
    Return the usage of the directories of the snapshot *key* down to *depth*, sorted by path; the root comes first.

    An inode with several names, and an extent of several files, count once, at the first. Removed snapshots count as
    gone even before they are destroyed. Data that has not been written back is not seen. Nested subvolumes are not
    searched.

    Reads the whole tree of the subvolume, but opens none of its files. Needs ``CAP_SYS_ADMIN``.

    Args:
        track: Wraps the items while they are read, then the extents while they are checked, to show progress.

    Raises:
        NotFoundError: No snapshot has the key.
        DataLossError: The subvolume of the snapshot is gone.
    """
    path = store.subvolume(key)
    info = store.stat(key)
    if info.kind is Kind.VIEW and info.parent:
        info = store.stat(info.parent)
    taken = inventory.take(store, measured=False)
    parent = taken.entries.get(info.parent)
    children = (entry.volume for entry in taken.entries.values() if entry.info.parent == info.name and entry.volume)
    child = next(children, None)
    with translating(f"measure the directories of snapshot {quoted(key)}"), opened(store.root) as fd:
        subvolid = subvolume.get_id(path)
        content = _Content()
        # Items in a leaf that is not newer than the parent are shared with it, so their extents need no check.
        frozen = parent.volume.info.ctransid if parent and parent.volume else 0
        for item in track(tree_search.search(fd, tree_id=subvolid, min_key=Key(_ROOT, 0, 0), max_key=_LAST)):
            content.add(item, shared=item.transid <= frozen)
        relatives = [volume.info.id for volume in (parent and parent.volume, child) if volume]
        candidates = [
            extent
            for extent in track(list(content.candidates()))
            if not any(has_reference(fd, relative, extent) for relative in relatives)
        ]
        owners = {subvolid, *(subvolid for volume in taken.pending for subvolid in volume.subvolids)}
        return list(content.directories(unshared(fd, candidates, owners, track), depth))


class _Content:
    """
    The inodes, names and extents of a subvolume, collected from its items.
    """

    def __init__(self) -> None:
        self._extents: dict[int, Extent] = {}
        self._shared: set[int] = set()
        self._inodes: list[int] = []
        self._names: dict[int, Name] = {}
        self._directories = {_ROOT}

    def add(self, item: Item, *, shared: bool) -> None:
        number = item.objectid
        if item.type == INODE_ITEM_KEY:
            self._inodes.append(number)
            if file_type(items.inode_item(item.data)) == "directory":
                self._directories.add(number)
        elif item.type in (INODE_REF_KEY, INODE_EXTREF_KEY) and number != _ROOT:
            for name in names(item):
                self._names.setdefault(number, name)
        elif item.type == EXTENT_DATA_KEY:
            found = items.extent_data(item.data)
            if isinstance(found, FileExtent) and found.disk_bytenr:
                extent = Extent(found.disk_bytenr, found.disk_num_bytes, number, item.offset)
                self._extents.setdefault(found.disk_bytenr, extent)
                if shared:
                    self._shared.add(found.disk_bytenr)

    def candidates(self) -> Iterator[Extent]:
        """
        Return the extents that may be exclusive: all that are not known to be shared.
        """
        return (extent for bytenr, extent in self._extents.items() if bytenr not in self._shared)

    def directories(self, unshared: Collection[int], depth: int) -> Iterator[DirectoryUsage]:
        exclusive: Counter[int] = Counter()
        shared: Counter[int] = Counter()
        inodes = Counter(map(self._home, self._inodes))
        for extent in self._extents.values():
            (exclusive if extent.bytenr in unshared else shared)[self._home(extent.inum)] += extent.size
        paths = self._paths()
        for directory in reversed(paths):
            if directory != _ROOT:
                for sizes in exclusive, shared, inodes:
                    sizes[self._names[directory].directory] += sizes[directory]
        for path, directory in sorted(
            (path, directory) for directory, (path, level) in paths.items() if level <= depth
        ):
            yield DirectoryUsage(os.fsdecode(path) or ".", exclusive[directory], shared[directory], inodes[directory])

    def _home(self, number: int) -> int:
        """
        Return the directory that an inode counts for; the root for an inode without a name, such as a deleted file.
        """
        if number in self._directories:
            return number
        return self._names[number].directory if number in self._names else _ROOT

    def _paths(self) -> dict[int, tuple[bytes, int]]:
        """
        Return the path and the depth of each directory, every directory after its parent.
        """
        inside: dict[int, list[int]] = {}
        for directory in self._directories - {_ROOT}:
            if directory in self._names:
                inside.setdefault(self._names[directory].directory, []).append(directory)
        paths = {_ROOT: (b"", 0)}
        pending = [_ROOT]
        while pending:
            above = pending.pop()
            path, level = paths[above]
            for directory in inside.get(above, ()):
                paths[directory] = (path + b"/" * (level > 0) + self._names[directory].name, level + 1)
                pending.append(directory)
        return paths
