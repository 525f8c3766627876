"""
The items of a btrfs tree, as the kernel finds them.
"""

import errno
import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeVar

from pybtrfs import ioctl
from pybtrfs.ioctl import SEARCH_HEADER
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
    "Item",
    "Key",
    "search",
    "search_changes",
    "search_files",
    "search_subvolume_records",
    "search_subvolumes",
]

_Kind = TypeVar("_Kind")

MAX = (1 << 64) - 1
MIN_KEY = Key(0, 0, 0)
MAX_KEY = Key(MAX, 255, MAX)
_FIRST_OF_FILES = Key(FIRST_FREE_OBJECTID, 0, 0)
_LAST_OF_FILES = Key(LAST_FREE_OBJECTID, 255, MAX)

_ALL_ITEMS = (1 << 32) - 1
_BUFFER_SIZE = 1 << 16  # bytes; larger ones are no faster
_CHANGES_SIZE = 1 << 18  # bytes; the kernel descends anew for each
_WITHOUT_DATA = (
    ORPHAN_ITEM_KEY,
    TREE_BLOCK_REF_KEY,
    SHARED_BLOCK_REF_KEY,
    FREE_SPACE_EXTENT_KEY,
    QGROUP_RELATION_KEY,
)


def search(
    target: Target,
    *,
    tree_id: int = 0,
    min_key: Key = MIN_KEY,
    max_key: Key = MAX_KEY,
    min_transid: int = 0,
    max_transid: int = MAX,
    buffer_size: int = _BUFFER_SIZE,
) -> Iterator[Item]:
    """
    Yield the items of a tree from *min_key* to *max_key*, both included, in the order of their keys.

    The keys bound one range: between two objectids items of every type are found. The tree may change meanwhile: the
    search is not atomic beyond one buffer.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` as often as it takes, or ``BTRFS_IOC_TREE_SEARCH`` where the kernel has no
    other. Both need ``CAP_SYS_ADMIN``.

    Args:
        target: Any file of the filesystem.
        tree_id: The tree; 0 is the subvolume that contains *target*.
        min_transid: Leave out leaves not written since this transaction. It speaks of leaves: items that
            did not change are found as well when a neighbour did.
        buffer_size: In bytes; enlarged when an item does not fit.

    Raises:
        FileNotFoundError: There is no such tree.
    """
    with opened(target) as fd:
        call = _search_v2
        start = min_key
        while True:
            key = _search_key(tree_id, start, max_key, min_transid, max_transid)
            try:
                count, buffer = call(fd, key, buffer_size)
            except OSError as error:
                if error.errno == errno.EOVERFLOW and call is _search_v2:
                    buffer_size *= 2
                    continue
                if error.errno == errno.ENOTTY and call is _search_v2:
                    call = _search_v1
                    continue
                raise
            if count == 0:
                return
            for item in _items(count, buffer):
                yield item
            following = _following(item)
            if following is None or following > max_key:
                return
            start = following


def search_changes(target: Target, transid: int, *, tree_id: int = 0) -> Iterator[Item]:
    """
    Yield the inodes and file extents of a subvolume that changed after the transaction *transid*; all of them for 0.

    Leaves that did not change are skipped by the kernel, and unchanged items of the others before they become objects:
    a search of 20,000 files of which few changed costs a tenth of `search`.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16), which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: There is no such tree.
    """
    return _search_files(target, tree_id, transid + 1 if transid else 0, transid)


def search_files(target: Target, *, tree_id: int = 0, min_transid: int = 0) -> Iterator[Item]:
    """
    Yield the inodes and file extents of a subvolume, as `search` with *min_transid* does, and nothing else of it.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16), which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: There is no such tree.
    """
    return _search_files(target, tree_id, min_transid, 0)


def _search_files(target: Target, tree_id: int, min_transid: int, transid: int) -> Iterator[Item]:
    with opened(target) as fd:
        start: Key | None = _FIRST_OF_FILES
        while start is not None and start <= _LAST_OF_FILES:
            key = _search_key(tree_id, start, _LAST_OF_FILES, min_transid, MAX)
            count, buffer, last = ioctl.tree_search_v2_changed(fd, key, _CHANGES_SIZE, transid)
            yield from _items(count, buffer)
            start = _following(Key(*last)) if last else None


def search_subvolumes(
    target: Target,
    kind: Callable[[ioctl.SubvolRecord], _Kind],
    *,
    min_id: int = FIRST_FREE_OBJECTID,
    max_id: int = LAST_FREE_OBJECTID,
    buffer_size: int = _BUFFER_SIZE,
) -> Iterator[_Kind]:
    """
    Yield the subvolumes from *min_id* to *max_id*, both included, by id. For the top level and for what is deleted and
    not yet cleaned the place is zeros, and the name empty.

    Times and transactions of what is not yet committed are not seen.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2`` (Linux 3.16) as often as it takes, which needs ``CAP_SYS_ADMIN``.

    Args:
        kind: What each is to be: `pybtrfs.ioctl.SubvolInfo` or `pybtrfs.subvolume.SubvolumeInfo`.
    """
    return map(kind, search_subvolume_records(target, min_id=min_id, max_id=max_id, buffer_size=buffer_size))


def search_subvolume_records(
    target: Target,
    *,
    min_id: int = FIRST_FREE_OBJECTID,
    max_id: int = LAST_FREE_OBJECTID,
    buffer_size: int = _BUFFER_SIZE,
) -> Iterator[ioctl.SubvolRecord]:
    """
    As `search_subvolumes`, but yield the tuples that either kind is made from.
    """
    return chain.from_iterable(_searched_subvolumes(target, min_id, max_id, buffer_size))


def _searched_subvolumes(
    target: Target, min_id: int, max_id: int, buffer_size: int
) -> Iterator[Iterator[ioctl.SubvolRecord]]:
    with opened(target) as fd:
        start: Key | None = Key(min_id, ROOT_ITEM_KEY, 0)
        end = Key(max_id, ROOT_BACKREF_KEY, MAX)
        while start is not None and start <= end:
            key = _search_key(ROOT_TREE_OBJECTID, start, end, 0, MAX)
            found, last = ioctl.tree_search_v2_subvolumes(fd, key, buffer_size)
            if last is None:
                return
            yield found
            start = _following(Key(*last))


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


def _items(count: int, buffer: bytes) -> Iterator[Item]:
    make = tuple.__new__  # of a NamedTuple half as expensive as its own
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
    return OSError(errno.EIO, "the kernel found more items than it returned")


def _search_v2(fd: int, key: ioctl.SearchKey, buffer_size: int) -> tuple[int, bytes]:
    return ioctl.tree_search_v2(fd, key, buffer_size)


def _search_v1(fd: int, key: ioctl.SearchKey, buffer_size: int) -> tuple[int, bytes]:
    count, buffer = ioctl.tree_search(fd, key)
    if count == 1:
        _, _, _, type_, length = SEARCH_HEADER.unpack_from(buffer)
        # What does not fit into the buffer is returned without its data.
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
