"""
What is big in a snapshot: the bytes on disk of each directory, by whether anybody else has them as well.
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
    A directory with all that is below it; sizes are in bytes on disk.

    Args:
        path: From the root of the snapshot, which itself is ``.``.
        exclusive: Of extents that no other snapshot, and nothing else on the filesystem, has.
        shared: Of the others. The content of files up to 2 KiB, which is kept with their inodes, is in neither.
        inodes: It and what is below it.
    """

    path: str
    exclusive: int
    shared: int
    inodes: int


def measure(store: Snapshotter, key: str, depth: int = 1, track: Track = iter) -> list[DirectoryUsage]:
    """
    Measure the directories of the snapshot *key* down to *depth*, by path; the root is the first.

    What has several names counts at the first, as does an extent that several files have. Reads the whole tree of the
    subvolume, and opens none of its files. What is not written back is not seen, what is removed and not yet destroyed
    is taken for gone, and nested subvolumes are not looked into. Needs ``CAP_SYS_ADMIN``.

    Args:
        track: Passes on what is read, and then what is asked for.

    Raises:
        NotFoundError: No snapshot has the key.
        DataLossError: Its subvolume is gone.
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
        # What is in a leaf from before its parent was frozen is the parent's, too, and need not be asked for.
        frozen = parent.volume.info.ctransid if parent and parent.volume else 0
        for item in track(tree_search.search(fd, tree_id=subvolid, min_key=Key(_ROOT, 0, 0), max_key=_LAST)):
            content.add(item, shared=item.transid <= frozen)
        relatives = [volume.info.id for volume in (parent and parent.volume, child) if volume]
        unknown = [
            found
            for found in track(list(content.unknown()))
            if not any(has_reference(fd, relative, found) for relative in relatives)
        ]
        owners = {subvolid, *(subvolid for volume in taken.pending for subvolid in volume.subvolids)}
        return list(content.directories(unshared(fd, unknown, owners, track), depth))


class _Content:
    """
    The items of a subvolume, as far as they tell what its directories hold.
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

    def unknown(self) -> Iterator[Extent]:
        """
        The extents that may be shared, or not.
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
        The directory that an inode counts for; what has no name any more counts for the root.
        """
        if number in self._directories:
            return number
        return self._names[number].directory if number in self._names else _ROOT

    def _paths(self) -> dict[int, tuple[bytes, int]]:
        """
        The paths of the directories, and how deep they are, each behind the one it is in.
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
