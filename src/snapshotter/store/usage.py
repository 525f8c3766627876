"""
Usage of a snapshot: the bytes and inodes it added to its parent, in time proportional to the number of changes.

A snapshot shares every tree leaf with its parent until an item in the leaf changes. Every leaf, inode and extent
carries the generation of its last change. Thus a tree search from the generation at which the snapshot began reads
only the changed leaves.
"""

import contextlib
import os
import stat
from collections.abc import Iterator

from pybtrfs import items, tree_search
from pybtrfs.items import INODE_ITEM_KEY, InlineExtent, InodeItem, Key
from pybtrfs.subvolume.files import differs
from snapshotter.model import Measured, Usage

_BLOCK = 4096
_ONE_INODE = 512  # size of a search buffer for one inode item with its header, in bytes


def measure(fd: int, base_transid: int, parent_fd: int | None) -> Measured:
    """
    Measure the subvolume *fd*, which began at generation *base_transid* as a snapshot of *parent_fd*, or empty.

    Data that has not been written back yet does not count.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2``, which needs ``CAP_SYS_ADMIN``. Without the capability, `walk` compares both
    trees, and the added bytes are the sizes of all changed files.
    """
    try:
        return _search((fd, 0), base_transid, None if parent_fd is None else (parent_fd, 0))
    except PermissionError:
        return walk(fd, parent_fd)


def measure_by_id(fd: int, subvolid: int, base_transid: int, parent_id: int) -> Measured:
    """
    Measure the subvolume *subvolid* against the subvolume *parent_id*, as `measure` does, without opening them.

    Needs ``CAP_SYS_ADMIN``.

    Args:
        fd: A file on the filesystem of both subvolumes.

    Raises:
        FileNotFoundError: A subvolume is deleted.
    """
    return _search((fd, subvolid), base_transid, (fd, parent_id))


_Tree = tuple[int, int]
"""A file descriptor, and the id of a subvolume on its filesystem; 0 for the subvolume of the file."""


def _search(tree: _Tree, base_transid: int, parent: _Tree | None) -> Measured:
    fd, tree_id = tree
    size = apparent = changed = altered = 0
    extents: set[int] = set()
    for item in tree_search.search_changes(fd, base_transid if parent else 0, tree_id=tree_id):
        if item.type == INODE_ITEM_KEY:
            inode = items.inode_item(item.data)
            if not inode.nlink:
                continue
            before = _inode(parent, item.objectid) if parent and inode.generation <= base_transid else None
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
    changed: dict[int, int] = {}
    altered: dict[int, int] = {}
    for path, now in _lstats(fd):
        before = None
        if parent_fd is not None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                before = os.stat(path, dir_fd=parent_fd, follow_symlinks=False)
        for seen, time in ((changed, changed_by), (altered, "st_mtime_ns")):
            if before is None or _stat_differs(now, before, time):
                seen[now.st_ino] = 0 if stat.S_ISDIR(now.st_mode) else now.st_blocks * 512
    return Measured(
        added=Usage(sum(changed.values()), len(changed)), containerd=Usage(sum(altered.values()), len(altered))
    )


def _lstats(fd: int) -> Iterator[tuple[str, os.stat_result]]:
    yield ".", os.fstat(fd)
    for directory, names, others, directory_fd in os.fwalk(".", dir_fd=fd):
        for name in names + others:
            with contextlib.suppress(FileNotFoundError):  # deleted since the listing
                yield os.path.join(directory, name), os.stat(name, dir_fd=directory_fd, follow_symlinks=False)


def _stat_differs(now: os.stat_result, before: os.stat_result, time: str) -> bool:
    fields = ["st_mode", "st_uid", "st_gid", "st_rdev"]
    if not stat.S_ISDIR(now.st_mode):
        fields += ["st_size", "st_nlink", time]
    return any(getattr(now, field) != getattr(before, field) for field in fields)
