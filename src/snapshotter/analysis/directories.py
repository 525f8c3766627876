"""
The bytes on disk of each directory of a snapshot: exclusive to the snapshot, or shared with others.
"""

import contextlib
import os
import stat
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
from pybtrfs.subvolume import listing
from pybtrfs.subvolume.files import Name, file_type, names
from snapshotter.analysis import inventory
from snapshotter.contract import Snapshotter
from snapshotter.errors import quoted, translating
from snapshotter.model import Kind
from snapshotter.store import usage

_ROOT = FIRST_FREE_OBJECTID
_TREE = 1 << 64  # more than any inode number
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
    gone even before they are destroyed. Data that has not been written back is not seen. A nested subvolume counts
    as a directory.

    Reads the whole trees of the subvolume and its nested subvolumes, but opens none of their files. Without
    ``CAP_SYS_ADMIN``, walks over them: a file that is the same in the parent is then shared, and any other exclusive.

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
    if not tree_search.is_permitted(path):
        with translating(f"measure the directories of snapshot {quoted(key)}"):
            return _walked(path, store.subvolume(info.parent) if info.parent else "", depth)
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
        bases = {subvolid: 0}
        for index, nested in enumerate(listing.nested(fd, subvolid), 1):
            base = bases[nested.id] = index * _TREE
            content.attach(base, bases[nested.parent_id] + nested.dir_id, os.fsencode(nested.name))
            with contextlib.suppress(FileNotFoundError):  # deleted concurrently
                for item in track(tree_search.search(fd, tree_id=nested.id, min_key=Key(_ROOT, 0, 0), max_key=_LAST)):
                    content.add(item, shared=False, base=base)
        relatives = [volume.info.id for volume in (parent and parent.volume, child) if volume]
        candidates = [
            extent
            for extent in track(list(content.candidates()))
            if not any(has_reference(fd, relative, extent) for relative in relatives)
        ]
        owners = {*bases, *(subvolid for volume in taken.pending for subvolid in volume.subvolids)}
        return list(content.directories(unshared(fd, candidates, owners, track), depth))


def _walked(path: str, parent: str, depth: int) -> list[DirectoryUsage]:
    exclusive: Counter[str] = Counter()
    shared: Counter[str] = Counter()
    inodes: Counter[str] = Counter()
    seen = set()
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(opened(path))
        parent_fd = stack.enter_context(opened(parent)) if parent else None
        for name, now, before in usage.compare(fd, parent_fd):
            if (now.st_dev, now.st_ino) in seen:
                continue
            seen.add((now.st_dev, now.st_ino))
            sizes = exclusive if before is None or usage.stat_differs(now, before, "st_ctime_ns") else shared
            is_directory = stat.S_ISDIR(now.st_mode)
            names = os.path.normpath(name).split("/") if name != "." else []
            for level in range(min(len(names) - (not is_directory), depth) + 1):
                directory = "/".join(names[:level]) or "."
                inodes[directory] += 1
                sizes[directory] += 0 if is_directory else now.st_blocks * 512
    return [DirectoryUsage(each, exclusive[each], shared[each], inodes[each]) for each in sorted(inodes, key=_position)]


def _position(path: str) -> str:
    return "" if path == "." else path


class _Content:
    """
    The inodes, names and extents of a subvolume and its nested subvolumes, collected from their items.

    Inode numbers repeat between subvolumes. So the numbers of each nested subvolume are counted from a base of its own.
    """

    def __init__(self) -> None:
        self._extents: dict[int, tuple[Extent, int]] = {}
        self._shared: set[int] = set()
        self._inodes: list[int] = []
        self._names: dict[int, Name] = {}
        self._directories = {_ROOT}

    def attach(self, base: int, directory: int, name: bytes) -> None:
        """
        Make the root of a nested subvolume a subdirectory of *directory*.
        """
        self._names[base + _ROOT] = Name(directory, name)

    def add(self, item: Item, *, shared: bool, base: int = 0) -> None:
        number = base + item.objectid
        if item.type == INODE_ITEM_KEY:
            self._inodes.append(number)
            if file_type(items.inode_item(item.data)) == "directory":
                self._directories.add(number)
        elif item.type in (INODE_REF_KEY, INODE_EXTREF_KEY) and item.objectid != _ROOT:
            for name in names(item):
                self._names.setdefault(number, Name(base + name.directory, name.name) if base else name)
        elif item.type == EXTENT_DATA_KEY:
            found = items.extent_data(item.data)
            if isinstance(found, FileExtent) and found.disk_bytenr:
                extent = Extent(found.disk_bytenr, found.disk_num_bytes, item.objectid, item.offset)
                self._extents.setdefault(found.disk_bytenr, (extent, number))
                if shared:
                    self._shared.add(found.disk_bytenr)

    def candidates(self) -> Iterator[Extent]:
        """
        Return the extents that may be exclusive: all that are not known to be shared.
        """
        return (extent for bytenr, (extent, _) in self._extents.items() if bytenr not in self._shared)

    def directories(self, unshared: Collection[int], depth: int) -> Iterator[DirectoryUsage]:
        exclusive: Counter[int] = Counter()
        shared: Counter[int] = Counter()
        inodes = Counter(map(self._home, self._inodes))
        for extent, number in self._extents.values():
            (exclusive if extent.bytenr in unshared else shared)[self._home(number)] += extent.size
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
