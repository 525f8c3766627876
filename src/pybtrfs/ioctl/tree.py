"""
The ioctls that search trees and look up inodes.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import kernel
from pybtrfs._ffi import call, check, ffi, lib, new, uncleared
from pybtrfs.ioctl.subvolume import SUBVOLUME, SubvolRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LOGICAL_INO_ARGS_IGNORE_OFFSET: int = lib.PYBTRFS_LOGICAL_INO_ARGS_IGNORE_OFFSET

SEARCH_HEADER = Struct("=QQQII")
"""``struct btrfs_ioctl_search_header``, which precedes each item in a search buffer."""

_LARGEST_ITEM = 1 << 16  # bytes; an item is smaller than a node, and no node is larger


class SearchKey(NamedTuple):
    """
    ``struct btrfs_ioctl_search_key``.
    """

    tree_id: int
    min_objectid: int
    max_objectid: int
    min_offset: int
    max_offset: int
    min_transid: int
    max_transid: int
    min_type: int
    max_type: int
    nr_items: int


def tree_search(fd: int, key: SearchKey) -> tuple[int, bytes]:
    """
    Search a tree, and return the number of items found, and the buffer of 3,992 bytes with their headers and data.
    """
    arguments = new("struct pybtrfs_ioctl_search_args *", {"key": key})
    kernel.current.ioctl(fd, "BTRFS_IOC_TREE_SEARCH", arguments)
    return int(arguments.key.nr_items), ffi.buffer(arguments.buf)[:]


def tree_search_v2(fd: int, key: SearchKey, buf_size: int) -> tuple[int, bytes]:
    """
    Search a tree, and return the number of items found, and the buffer of *buf_size* bytes with their headers and data.
    """
    arguments = new("struct pybtrfs_ioctl_search_args_v2 *", {"key": key, "buf_size": buf_size, "buf": buf_size})
    kernel.current.ioctl(fd, "BTRFS_IOC_TREE_SEARCH_V2", arguments)
    return int(arguments.key.nr_items), ffi.buffer(arguments.buf, buf_size)[:]


def tree_search_v2_changed(
    fd: int, key: SearchKey, buf_size: int, transid: int
) -> tuple[int, bytes, tuple[int, int, int] | None]:
    """
    Search a tree like `tree_search_v2`, and keep only inodes and file extents that changed after *transid*.

    Returns:
        The number of kept items, their headers and data, and the objectid, type and offset of the last item searched.
        The last is None when the search is complete: the buffer had room for another item of any size, or no item was
        found.
    """
    values = {"key": (*key, 0, 0, 0, 0, 0), "buf_size": buf_size, "buf": buf_size}
    arguments = new("struct pybtrfs_ioctl_search_args_v2 *", values, uncleared)
    kernel.current.ioctl(fd, "BTRFS_IOC_TREE_SEARCH_V2", arguments)
    if not arguments.key.nr_items:
        return 0, b"", None
    last = ffi.new("struct pybtrfs_ioctl_search_header *")
    sizes = ffi.new("uint32_t[2]")
    items = ffi.cast("char *", arguments.buf)
    kept = call(lib.pybtrfs_keep_changed, items, buf_size, int(arguments.key.nr_items), transid, last, sizes)
    count = check(kept, "BTRFS_IOC_TREE_SEARCH_V2")
    more = None if sizes[1] + _LARGEST_ITEM <= buf_size else (int(last.objectid), int(last.type), int(last.offset))
    return count, ffi.buffer(items, int(sizes[0]))[:], more


class ChangedTree(NamedTuple):
    """
    ``struct pybtrfs_changed_tree``.

    Attributes:
        transid: Only later changes count.
        base_id: The tree to look up older inodes in; 0 for none.
    """

    key: SearchKey
    transid: int
    base_id: int = 0


def tree_search_v2_sum(fd: int, first: ChangedTree, others: Iterable[ChangedTree] = ()) -> tuple[int, int, int, int]:
    """
    Search trees like `tree_search_v2`, and sum their inodes and file extents that changed, each extent once.

    A tree of *others* that does not exist is skipped.

    Returns:
        The size of the extents on disk; the number of changed inodes; the number and the size of modified inodes.
    """
    changes = ffi.new("struct pybtrfs_changes *")
    try:
        for tree in (first, *others):
            key, transid, base_id = tree
            values = {"key": (*key, 0, 0, 0, 0, 0), "transid": transid, "base_id": base_id}
            changes.tree = new("struct pybtrfs_changed_tree *", values)[0]
            try:
                while kernel.current.sum_ioctl(fd, "BTRFS_IOC_TREE_SEARCH_V2", changes):
                    pass
            except FileNotFoundError:
                if tree is first:
                    raise
        sums = changes.disk_bytes, changes.changed_inodes, changes.modified_inodes, changes.modified_bytes
        return int(sums[0]), int(sums[1]), int(sums[2]), int(sums[3])
    finally:
        lib.pybtrfs_free_changes(changes)


def tree_search_v2_subvolumes(
    fd: int, key: SearchKey, buf_size: int
) -> tuple[Iterator[SubvolRecord], tuple[int, int, int] | None]:
    """
    Search the tree of roots like `tree_search_v2`, and return the subvolumes found.

    Returns:
        The subvolumes, and the objectid, type and offset of the last item that was decoded, or None if no item was
        found. A deleted subvolume has an empty name, and 0 as its parent_id and dirid.
    """
    arguments = new("struct pybtrfs_ioctl_search_args_v2 *", {"key": key, "buf_size": buf_size, "buf": buf_size})
    kernel.current.ioctl(fd, "BTRFS_IOC_TREE_SEARCH_V2", arguments)
    count = int(arguments.key.nr_items)
    if not count:
        return iter(()), None
    last = ffi.new("struct pybtrfs_ioctl_search_header *")
    # A buffer has room for fewer items than a faulty kernel might claim.
    subvolumes = new("struct pybtrfs_subvolume[]", min(count, buf_size // ffi.sizeof(last[0])))
    items = ffi.cast("char *", arguments.buf)
    read = call(lib.pybtrfs_read_subvolumes, items, buf_size, count, subvolumes, last)
    found = check(read, "BTRFS_IOC_TREE_SEARCH_V2")
    records = SUBVOLUME.iter_unpack(ffi.buffer(subvolumes, found * SUBVOLUME.size))
    return records, (int(last.objectid), int(last.type), int(last.offset))


def ino_lookup(fd: int, treeid: int, objectid: int) -> tuple[int, bytes]:
    """
    Return the id of the tree, and the path of the inode *objectid* in it.

    The path ends in a slash, or is empty for the root of the tree.

    Args:
        treeid: The tree; 0 is the subvolume that contains *fd*.
    """
    arguments = new("struct pybtrfs_ioctl_ino_lookup_args *", {"treeid": treeid, "objectid": objectid})
    kernel.current.ioctl(fd, "BTRFS_IOC_INO_LOOKUP", arguments)
    return int(arguments.treeid), ffi.string(arguments.name)


def ino_lookup_treeid(fd: int) -> int:
    """
    Return the id of the subvolume that contains *fd*.
    """
    return kernel.current.value_ioctl(fd, "BTRFS_IOC_INO_LOOKUP")


def ino_lookup_user(fd: int, dirid: int, treeid: int) -> tuple[bytes, bytes]:
    """
    Return the name of the subvolume *treeid*, and the path from *fd* to *dirid*, the directory that contains it.

    The path ends in a slash, or is empty if *dirid* is *fd* itself.
    """
    arguments = new("struct pybtrfs_ioctl_ino_lookup_user_args *", {"dirid": dirid, "treeid": treeid})
    kernel.current.ioctl(fd, "BTRFS_IOC_INO_LOOKUP_USER", arguments)
    return ffi.string(arguments.name), ffi.string(arguments.path)


def logical_ino_v2(fd: int, logical: int, size: int, flags: int = 0) -> tuple[list[tuple[int, int, int]], int]:
    """
    Return the (inode, offset, tree) of references to the extent at *logical*, and the number of omitted references.

    Args:
        size: The size of the kernel's answer, in bytes. References beyond it are omitted.
        flags: ``LOGICAL_INO_ARGS_*``.
    """
    found = new("struct pybtrfs_data_container *", {"val": size // 8})
    arguments = new("struct pybtrfs_ioctl_logical_ino_args *", {"logical": logical, "flags": flags})
    arguments.size = ffi.sizeof("struct pybtrfs_data_container") + size // 8 * 8
    arguments.inodes = ffi.cast("uintptr_t", found)
    kernel.current.ioctl(fd, "BTRFS_IOC_LOGICAL_INO_V2", arguments)
    values = [int(value) for value in found.val[0 : found.elem_cnt]]
    return list(zip(values[0::3], values[1::3], values[2::3], strict=True)), int(found.elem_missed) // 3
