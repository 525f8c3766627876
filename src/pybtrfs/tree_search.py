"""
The items of a btrfs tree, as the kernel finds them.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from struct import Struct

from pybtrfs import ioctl
from pybtrfs.items import (
    FREE_SPACE_EXTENT_KEY,
    ORPHAN_ITEM_KEY,
    QGROUP_RELATION_KEY,
    SHARED_BLOCK_REF_KEY,
    TREE_BLOCK_REF_KEY,
    Item,
    Key,
)
from pybtrfs.path import Target, opened

__all__ = ["MAX", "MAX_KEY", "MIN_KEY", "Item", "Key", "search"]

MAX = (1 << 64) - 1
MIN_KEY = Key(0, 0, 0)
MAX_KEY = Key(MAX, 255, MAX)

_HEADER = Struct("=QQQII")
_KIND = Struct("=24xII")
_ALL_ITEMS = (1 << 32) - 1
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
    wanted: Mapping[int, Callable[[bytes, int], bool]] | None = None,
    buffer_size: int = 65536,
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
        wanted: Yield items of these types only, and of those the ones that are wanted by the bytes that hold the
            item's data and the place in them where it begins; None is all. What is left out costs a third.
        buffer_size: In bytes; enlarged when an item does not fit.

    Raises:
        FileNotFoundError: There is no such tree.
    """
    with opened(target) as fd:
        call = _search_v2
        unpack_header, unpack_kind = _HEADER.unpack_from, _KIND.unpack_from
        start = min_key
        while True:
            key = ioctl.SearchKey(
                tree_id,
                start.objectid,
                max_key.objectid,
                start.offset,
                max_key.offset,
                min_transid,
                max_transid,
                start.type,
                max_key.type,
                _ALL_ITEMS,
            )
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
            end = 0
            for _ in range(count):
                position = end
                type_, length = unpack_kind(buffer, position)
                data = position + _HEADER.size
                end = data + length
                if wanted is None or ((is_wanted := wanted.get(type_)) and is_wanted(buffer, data)):
                    transid, objectid, offset, type_, _ = unpack_header(buffer, position)
                    yield Item(objectid, type_, offset, transid, buffer[data:end])
            _, objectid, offset, type_, _ = unpack_header(buffer, position)
            following = _following(Key(objectid, type_, offset))
            if following is None or following > max_key:
                return
            start = following


def _search_v2(fd: int, key: ioctl.SearchKey, buffer_size: int) -> tuple[int, bytes]:
    return ioctl.tree_search_v2(fd, key, buffer_size)


def _search_v1(fd: int, key: ioctl.SearchKey, buffer_size: int) -> tuple[int, bytes]:
    count, buffer = ioctl.tree_search(fd, key)
    if count == 1:
        _, _, _, type_, length = _HEADER.unpack_from(buffer)
        # What does not fit into the buffer is returned without its data.
        if length == 0 and type_ not in _WITHOUT_DATA:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return count, buffer


def _following(key: Key) -> Key | None:
    objectid, type_, offset = key
    if offset < MAX:
        return Key(objectid, type_, offset + 1)
    if type_ < 255:
        return Key(objectid, type_ + 1, 0)
    if objectid < MAX:
        return Key(objectid + 1, 0, 0)
    return None
