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

from pybtrfs import subvolume, tree_search
from pybtrfs.subvolume import SubvolumeInfo, listing
from snapshotter.model import Measured, Usage


def measure(fd: int, base_transid: int, parent_fd: int | None) -> Measured:
    """
    Measure the subvolume *fd*, which began at generation *base_transid* as a snapshot of *parent_fd*, or empty.

    Everything in a nested subvolume counts as added, except data that a nested snapshot shares with the parent. Data
    that has not been written back yet does not count.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2``, which needs ``CAP_SYS_ADMIN``. Without the capability, `walk` compares both
    trees, and the added bytes are the sizes of all changed files.
    """
    try:
        subvolid = subvolume.get_id(fd)
        parent_id = None if parent_fd is None else subvolume.get_id(parent_fd)
        # The ioctl of `children` costs less than a search, and most subvolumes have no children.
        nested = tuple(listing.nested(fd, subvolid)) if any(subvolume.children(fd)) else ()
        return measure_by_id(fd, subvolid, base_transid, parent_id, nested)
    except PermissionError:
        return walk(fd, parent_fd)


def measure_by_id(
    fd: int, subvolid: int, base_transid: int, parent_id: int | None, nested: Iterable[SubvolumeInfo] = ()
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
    since = base_transid if parent_id else 0
    # A nested snapshot may share content with the parent's layer, up to the generation *since*. An older snapshot was
    # moved here, and its content at birth belongs to its source.
    others = [(info.id, min(since, info.otransid) if any(info.raw.parent_uuid) else 0) for info in nested]
    changes = tree_search.sum_changes(fd, since, tree_id=subvolid, base_id=parent_id, others=others)
    return Measured(
        added=Usage(changes.disk_bytes, changes.changed_inodes),
        containerd=Usage(changes.modified_bytes, changes.modified_inodes),
    )


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
