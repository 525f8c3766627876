"""
Searches of btrfs trees.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, TypeVar

from pybtrfs import ioctl
from pybtrfs.ioctl import SEARCH_HEADER, ChangedTree
from pybtrfs.items import (
    FIRST_FREE_OBJECTID,
    FREE_SPACE_EXTENT_KEY,
    LAST_FREE_OBJECTID,
    ORPHAN_ITEM_KEY,
    QGROUP_RELATION_KEY,
    ROOT_BACKREF_KEY,
    ROOT_ITEM_KEY,
    ROOT_TREE_OBJECTID,
    SHARED_BLOCK_REF_KEY,
    TREE_BLOCK_REF_KEY,
    Item,
    Key,
)
from pybtrfs.path import Target, opened

__all__ = [
    "MAX",
    "MAX_KEY",
    "MIN_KEY",
    "Changes",
    "Item",
    "Key",
    "is_permitted",
    "search",
    "search_changes",
    "search_files",
    "search_subvolume_records",
    "search_subvolumes",
    "sum_changes",
]

_Kind = TypeVar("_Kind")

MAX = (1 << 64) - 1
MIN_KEY = Key(0, 0, 0)
MAX_KEY = Key(MAX, 255, MAX)
_FIRST_OF_FILES = Key(FIRST_FREE_OBJECTID, 0, 0)
_LAST_OF_FILES = Key(LAST_FREE_OBJECTID, 255, MAX)

_ALL_ITEMS = (1 << 32) - 1
_BUFFER_SIZE = 1 << 16  # bytes; larger buffers are no faster
_SUBVOLUME_SIZE = 1 << 10  # bytes; more than a root item and its longest backref, which have to be found together
_CHANGES_SIZE = 1 << 18  # bytes; larger, because the kernel descends the tree again for each buffer
_WITHOUT_DATA = (
    ORPHAN_ITEM_KEY,
    TREE_BLOCK_REF_KEY,
    SHARED_BLOCK_REF_KEY,
    FREE_SPACE_EXTENT_KEY,
    QGROUP_RELATION_KEY,
)


def is_permitted(target: Target) -> bool:
    """
    Return whether the caller may search trees, which needs ``CAP_SYS_ADMIN`` in the initial user namespace.
    """
    with opened(target) as fd:
        try:
            next(search(fd, tree_id=ROOT_TREE_OBJECTID, max_key=MIN_KEY), None)
        except PermissionError:
            return False
        return True


def search(
    target: Target,
    *,
    tree_id: int = 0,
    min_key: Key = MIN_KEY,
    max_key: Key = MAX_KEY,
    min_transid: int = 0,
    max_transid: int = MAX,
    buffer_size: int = _BUFFER_SIZE,
) -> Generator[Item, None, None]:
    """
    Yield the items of a tree from *min_key* to *max_key*, both included, sorted by key.

    The keys bound one range: between two objectids, items of every type are found. Only the items of one buffer are
    read atomically, so the tree may change during the search.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` for each buffer, or ``BTRFS_IOC_TREE_SEARCH`` on kernels before Linux 3.16. Both
    need ``CAP_SYS_ADMIN``.

    Args:
        target: Any file of the filesystem.
        tree_id: The tree; 0 is the subvolume that contains *target*.
        min_transid: Skip leaves that were last written before this transaction. An unchanged item is found, too, if
            another item of its leaf changed.
        buffer_size: In bytes. The buffer grows if an item does not fit.

    Raises:
        FileNotFoundError: The tree does not exist.
    """
    _check_buffer_size(buffer_size)
    with opened(target) as fd:
        has_v2 = True
        start = min_key
        while True:
            key = _search_key(tree_id, start, max_key, min_transid, max_transid)
            try:
                count, buffer = ioctl.tree_search_v2(fd, key, buffer_size) if has_v2 else _search_v1(fd, key)
            except OSError as error:
                if error.errno == errno.EOVERFLOW and has_v2:
                    buffer_size *= 2
                    continue
                if error.errno == errno.ENOTTY and has_v2:
                    has_v2 = False
                    continue
                raise
            if count == 0:
                return
            for item in split(count, buffer):
                yield item
            following = _following(item)
            if following is None or following > max_key:
                return
            start = following


def search_changes(target: Target, transid: int, *, tree_id: int = 0) -> Generator[Item, None, None]:
    """
    Yield the inodes and file extents of a subvolume that changed after the transaction *transid*, or all for 0.

    The kernel skips leaves that did not change, and C code skips unchanged items before they become Python objects. If
    few of 20,000 files changed, this takes a tenth of the time of `search`.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16), which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: The tree does not exist.
    """
    return _search_files(target, tree_id, transid + 1 if transid else 0, transid)


class Changes(NamedTuple):
    """
    Sums of the changes of subvolumes.

    Attributes:
        disk_bytes: The size of new file extents on disk, compressed as stored, and of new inline data.
        changed_inodes: The number of new inodes, and of inodes whose content or metadata changed.
        modified_inodes: The same without inodes of which only names or extended attributes changed.
        modified_bytes: The allocated size of these inodes in bytes, as in st_blocks.
    """

    disk_bytes: int
    changed_inodes: int
    modified_inodes: int
    modified_bytes: int


def sum_changes(
    target: Target,
    transid: int,
    *,
    tree_id: int = 0,
    base_id: int | None = None,
    others: Iterable[tuple[int, int]] = (),
) -> Changes:
    """
    Sum the changes of a subvolume after the transaction *transid*, or all inodes and extents for 0.

    An extent counts once, however many files and subvolumes reference it. Unlinked inodes do not count, but their
    extents do. Data that is not written back is not seen. The search is not atomic.

    The kernel skips leaves that did not change, and C code adds up all others with the GIL released. Signal handlers
    run every 50 ms.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16), which needs ``CAP_SYS_ADMIN``.

    Args:
        target: Any file of the filesystem.
        tree_id: The subvolume; 0 is the subvolume that contains *target*.
        base_id: The subvolume of which it is a snapshot. An inode that is in both does not count if it was only read,
            or if it is a directory in which only entries changed. With None, every changed inode counts.
        others: The ids of more subvolumes, each with its own transid; a subvolume that does not exist is skipped.

    Raises:
        FileNotFoundError: The subvolume, or the base, does not exist.
        OSError: EUCLEAN: an item is damaged.
    """
    with opened(target) as fd:
        first = ChangedTree(_changes_key(tree_id, transid), transid, base_id or 0)
        more = (ChangedTree(_changes_key(other, since), since) for other, since in others)
        return Changes(*ioctl.tree_search_v2_sum(fd, first, more))


def _changes_key(tree_id: int, transid: int) -> ioctl.SearchKey:
    return _search_key(tree_id, _FIRST_OF_FILES, _LAST_OF_FILES, transid + 1 if transid else 0, MAX)


def search_files(target: Target, *, tree_id: int = 0, min_transid: int = 0) -> Generator[Item, None, None]:
    """
    Yield the inodes and file extents of a subvolume, and no other items. *min_transid* is as in `search`.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16), which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: The tree does not exist.
    """
    return _search_files(target, tree_id, min_transid, 0)


def read(target: Target, *, tree_id: int = 0, min_transid: int = 0) -> None:
    """
    Read every leaf of a tree that changed in transaction *min_transid* or later, to find out whether the kernel can.

    The kernel cleans a deleted subvolume by reading the blocks that the subvolume shares with no other. If it cannot
    read one of these blocks, the whole filesystem turns read-only.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16), which needs ``CAP_SYS_ADMIN``.

    Args:
        tree_id: 0 is the subvolume of *target*.

    Raises:
        FileNotFoundError: The tree does not exist.
        OSError: EIO or EUCLEAN: a block is damaged.
    """
    with opened(target) as fd:
        start: Key | None = Key(0, 0, 0)
        while start is not None:
            key = _search_key(tree_id, start, MAX_KEY, min_transid, MAX)
            # No item changed after MAX, so C keeps none.
            _, _, last = ioctl.tree_search_v2_changed(fd, key, _CHANGES_SIZE, MAX)
            start = _following(Key(*last)) if last else None


def _search_files(target: Target, tree_id: int, min_transid: int, transid: int) -> Generator[Item, None, None]:
    with opened(target) as fd:
        start: Key | None = _FIRST_OF_FILES
        while start is not None and start <= _LAST_OF_FILES:
            key = _search_key(tree_id, start, _LAST_OF_FILES, min_transid, MAX)
            count, buffer, last = ioctl.tree_search_v2_changed(fd, key, _CHANGES_SIZE, transid)
            yield from split(count, buffer)
            start = _following(Key(*last)) if last else None


def search_subvolumes(
    target: Target,
    kind: Callable[[ioctl.SubvolRecord], _Kind],
    *,
    min_id: int = FIRST_FREE_OBJECTID,
    max_id: int = LAST_FREE_OBJECTID,
    buffer_size: int = _BUFFER_SIZE,
) -> Generator[_Kind, None, None]:
    """
    Yield the subvolumes from *min_id* to *max_id*, both included, sorted by id.

    The top level and deleted subvolumes that are not yet cleaned have an empty name. The ids of their containing
    subvolume and directory are 0. Times and transids that are not yet committed are missing.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16) for each buffer, which needs ``CAP_SYS_ADMIN``.

    Args:
        kind: The class of the result: `pybtrfs.ioctl.SubvolInfo` or `pybtrfs.subvolume.SubvolumeInfo`.
        buffer_size: In bytes; less than 1,024 has the effect of 1,024.
    """
    for record in search_subvolume_records(target, min_id=min_id, max_id=max_id, buffer_size=buffer_size):
        yield kind(record)


def search_subvolume_records(
    target: Target,
    *,
    min_id: int = FIRST_FREE_OBJECTID,
    max_id: int = LAST_FREE_OBJECTID,
    buffer_size: int = _BUFFER_SIZE,
) -> Generator[ioctl.SubvolRecord, None, None]:
    """
    Yield the same subvolumes as `search_subvolumes`, as tuples from which either class is made.
    """
    _check_buffer_size(buffer_size)
    buffer_size = max(buffer_size, _SUBVOLUME_SIZE)
    with opened(target) as fd:
        start: Key | None = Key(min_id, ROOT_ITEM_KEY, 0)
        end = Key(max_id, ROOT_BACKREF_KEY, MAX)
        while start is not None and start <= end:
            key = _search_key(ROOT_TREE_OBJECTID, start, end, 0, MAX)
            found, last = ioctl.tree_search_v2_subvolumes(fd, key, buffer_size)
            if last is None:
                return
            yield from found
            start = _following(Key(*last))


def _check_buffer_size(buffer_size: int) -> None:
    if buffer_size <= 0:
        raise ValueError(f"{buffer_size!r} is not a size of a buffer: use at least 1 byte")


def _search_key(tree_id: int, start: Key, end: Key, min_transid: int, max_transid: int) -> ioctl.SearchKey:
    return ioctl.SearchKey(
        tree_id,
        start.objectid,
        end.objectid,
        start.offset,
        end.offset,
        min_transid,
        max_transid,
        start.type,
        end.type,
        _ALL_ITEMS,
    )


def split(count: int, buffer: bytes) -> Generator[Item, None, None]:
    """
    Yield the *count* items in the *buffer* that a tree search filled.

    Raises:
        OSError: EIO: the buffer has fewer items.
    """
    make = tuple.__new__  # takes half the time of Item()
    size = len(buffer)
    end = 0
    for _ in range(count):
        data = end + SEARCH_HEADER.size
        if data > size:
            raise _cut_short()
        transid, objectid, offset, type_, length = SEARCH_HEADER.unpack_from(buffer, end)
        end = data + length
        if end > size:
            raise _cut_short()
        yield make(Item, (objectid, type_, offset, transid, buffer[data:end]))


def _cut_short() -> OSError:
    return OSError(errno.EIO, "the kernel returned fewer items than it counted")


def _search_v1(fd: int, key: ioctl.SearchKey) -> tuple[int, bytes]:
    count, buffer = ioctl.tree_search(fd, key)
    if count == 1:
        _, _, _, type_, length = SEARCH_HEADER.unpack_from(buffer)
        # The old ioctl returns an item without its data if the data does not fit into the buffer.
        if length == 0 and type_ not in _WITHOUT_DATA:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return count, buffer


def _following(key: Key | Item) -> Key | None:
    objectid, type_, offset = key[:3]
    if offset < MAX:
        return Key(objectid, type_, offset + 1)
    if type_ < 255:
        return Key(objectid, type_ + 1, 0)
    if objectid < MAX:
        return Key(objectid + 1, 0, 0)
    return None
