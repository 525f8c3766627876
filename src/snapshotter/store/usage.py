"""
Usage of a snapshot: the bytes and inodes it added to its parent, in time proportional to the number of changes.

A snapshot shares every tree leaf with its parent until an item in the leaf changes. Every leaf, inode and extent
carries the generation of its last change. Thus a tree search from the generation at which the snapshot began reads
only the changed leaves.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

from pybtrfs import items, subvolume, tree_search
from pybtrfs.items import INODE_ITEM_KEY, InlineExtent, InodeItem, Item, Key
from pybtrfs.subvolume import SubvolumeInfo, listing
from pybtrfs.subvolume.files import differs
from snapshotter.model import Measured, Usage

_BLOCK = 4096
_ONE_INODE = 512  # size of a search buffer for one inode item with its header, in bytes


def measure(fd: int, base_transid: int, parent_fd: int | None) -> Measured:
    """
    Measure the subvolume *fd*, which began at generation *base_transid* as a snapshot of *parent_fd*, or empty.

    Everything in a nested subvolume counts as added, except data that a nested snapshot shares with the parent. Data
    that has not been written back yet does not count.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2``, which needs ``CAP_SYS_ADMIN``. Without the capability, `walk` compares both
    trees, and the added bytes are the sizes of all changed files.
    """
    try:
        # The ioctl of `children` costs less than a search, and most subvolumes have no children.
        nested = tuple(listing.nested(fd, subvolume.get_id(fd))) if any(subvolume.children(fd)) else ()
        return _search((fd, 0), base_transid, None if parent_fd is None else (parent_fd, 0), nested)
    except PermissionError:
        return walk(fd, parent_fd)


def measure_by_id(
    fd: int, subvolid: int, base_transid: int, parent_id: int, nested: Iterable[SubvolumeInfo] = ()
) -> Measured:
    """
    Measure the subvolume *subvolid* against the subvolume *parent_id*, as `measure` does, without opening them.

    Needs ``CAP_SYS_ADMIN``.

    Args:
        fd: A file on the filesystem of both subvolumes.
        nested: The subvolumes nested in *subvolid*.

    Raises:
        FileNotFoundError: A subvolume is deleted.
    """
    return _search((fd, subvolid), base_transid, (fd, parent_id), nested)


_Tree = tuple[int, int]
"""A file descriptor, and the id of a subvolume on its filesystem; 0 for the subvolume of the file."""


def _search(tree: _Tree, base_transid: int, parent: _Tree | None, nested: Iterable[SubvolumeInfo]) -> Measured:
    fd, tree_id = tree
    base_transid = base_transid if parent else 0
    size = apparent = changed = altered = 0
    extents: set[int] = set()
    searches = [(tree_search.search_changes(fd, base_transid, tree_id=tree_id), parent)]
    searches += [(_search_nested(fd, info, base_transid), None) for info in nested]
    for found, origin in searches:
        for item in found:
            if item.type == INODE_ITEM_KEY:
                inode = items.inode_item(item.data)
                if not inode.nlink:
                    continue
                before = _inode(origin, item.objectid) if origin and inode.generation <= base_transid else None
                if before is None or differs(inode, before, inode.ctime, before.ctime):
                    changed += 1
                if before is None or differs(inode, before, inode.mtime, before.mtime):
                    altered += 1
                    apparent += _rounded(inode.nbytes)
            else:
                extent = items.extent_data(item.data)
                if isinstance(extent, InlineExtent):
                    size += len(extent.data)
                elif extent.disk_bytenr and extent.disk_bytenr not in extents:
                    extents.add(extent.disk_bytenr)
                    size += extent.disk_num_bytes
    return Measured(added=Usage(size, changed), containerd=Usage(apparent, altered))


def _search_nested(fd: int, info: SubvolumeInfo, base_transid: int) -> Iterator[Item]:
    """
    Yield the changed items of a nested subvolume; nothing if it is deleted concurrently.
    """
    # The content of a snapshot may be shared with the parent's layer, up to the generation *base_transid*. Only a
    # snapshot that was moved here can be older than that, and its content at birth belongs to its source.
    since = min(base_transid, info.otransid) if any(info.raw.parent_uuid) else 0
    with contextlib.suppress(FileNotFoundError):
        yield from tree_search.search_changes(fd, since, tree_id=info.id)


def _inode(tree: _Tree, number: int) -> InodeItem | None:
    fd, tree_id = tree
    key = Key(number, INODE_ITEM_KEY, 0)
    for item in tree_search.search(fd, tree_id=tree_id, min_key=key, max_key=key, buffer_size=_ONE_INODE):
        return items.inode_item(item.data)
    return None


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def walk(fd: int, parent_fd: int | None, *, changed_by: str = "st_ctime_ns") -> Measured:
    """
    Measure the tree *fd* against *parent_fd* by comparing every file.

    Args:
        changed_by: The stat field whose difference marks a changed inode.
    """
    changed: dict[tuple[int, int], int] = {}
    altered: dict[tuple[int, int], int] = {}
    for _, now, before in compare(fd, parent_fd):
        for seen, time in ((changed, changed_by), (altered, "st_mtime_ns")):
            if before is None or stat_differs(now, before, time):
                seen[now.st_dev, now.st_ino] = 0 if stat.S_ISDIR(now.st_mode) else now.st_blocks * 512
    return Measured(
        added=Usage(sum(changed.values()), len(changed)), containerd=Usage(sum(altered.values()), len(altered))
    )


def compare(fd: int, parent_fd: int | None) -> Iterator[tuple[str, os.stat_result, os.stat_result | None]]:
    """
    Yield the path of every file of the tree *fd*, its status, and the status of the path in *parent_fd*.
    """
    for path, now in _lstats(fd):
        before = None
        if parent_fd is not None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                before = os.stat(path, dir_fd=parent_fd, follow_symlinks=False)
        yield path, now, before


def _lstats(fd: int) -> Iterator[tuple[str, os.stat_result]]:
    yield ".", os.fstat(fd)
    for directory, names, others, directory_fd in os.fwalk(".", dir_fd=fd):
        for name in names + others:
            with contextlib.suppress(FileNotFoundError):  # deleted since the listing
                yield os.path.join(directory, name), os.stat(name, dir_fd=directory_fd, follow_symlinks=False)


def stat_differs(now: os.stat_result, before: os.stat_result, time: str) -> bool:
    """
    Return whether an inode changed against its parent snapshot, by the field *time* among others.
    """
    fields = ["st_mode", "st_uid", "st_gid", "st_rdev"]
    if not stat.S_ISDIR(now.st_mode):
        fields += ["st_size", "st_nlink", time]
    return any(getattr(now, field) != getattr(before, field) for field in fields)
