"""
The ioctls that search trees and look up inodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pybtrfs import kernel
from pybtrfs._ffi import call, check, ffi, lib, new, uncleared
from pybtrfs.ioctl.subvolume import SUBVOLUME, SubvolRecord

LOGICAL_INO_ARGS_IGNORE_OFFSET: int = lib.PYBTRFS_LOGICAL_INO_ARGS_IGNORE_OFFSET


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


_LARGEST_ITEM = 1 << 16  # bytes; a node has no more, and not all of one is an item


def tree_search(fd: int, key: SearchKey) -> tuple[int, bytes]:
    """
    Return the number of items, and the buffer of 3,992 bytes with their headers and data.
    """
    arguments = new("struct pybtrfs_ioctl_search_args *", {"key": key})
    kernel.current.ioctl(fd, "BTRFS_IOC_TREE_SEARCH", arguments)
    return int(arguments.key.nr_items), ffi.buffer(arguments.buf)[:]


def tree_search_v2(fd: int, key: SearchKey, buf_size: int) -> tuple[int, bytes]:
    """
    Return the number of items, and the buffer of *buf_size* bytes with their headers and data.
    """
    arguments = new("struct pybtrfs_ioctl_search_args_v2 *", {"key": key, "buf_size": buf_size, "buf": buf_size})
    kernel.current.ioctl(fd, "BTRFS_IOC_TREE_SEARCH_V2", arguments)
    return int(arguments.key.nr_items), ffi.buffer(arguments.buf, buf_size)[:]


def tree_search_v2_changed(
    fd: int, key: SearchKey, buf_size: int, transid: int
) -> tuple[int, bytes, tuple[int, int, int] | None]:
    """
    As `tree_search_v2`, and keep only the inodes and file extents that changed after *transid*; return also the
    objectid, type and offset to go on behind, unless there was room in the buffer for another item of any size.
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


def tree_search_v2_subvolumes(
    fd: int, key: SearchKey, buf_size: int
) -> tuple[Iterator[SubvolRecord], tuple[int, int, int] | None]:
    """
    As `tree_search_v2` in the tree of roots, and return the subvolumes found, as `SubvolInfo` takes them, those that
    are deleted with zeros for their place and an empty name; and the objectid, type and offset to go on behind, if any
    item was found.
    """
    arguments = new("struct pybtrfs_ioctl_search_args_v2 *", {"key": key, "buf_size": buf_size, "buf": buf_size})
    kernel.current.ioctl(fd, "BTRFS_IOC_TREE_SEARCH_V2", arguments)
    count = int(arguments.key.nr_items)
    if not count:
        return iter(()), None
    last = ffi.new("struct pybtrfs_ioctl_search_header *")
    # No more than have room, whatever the kernel says.
    subvolumes = new("struct pybtrfs_subvolume[]", min(count, buf_size // ffi.sizeof(last[0])))
    items = ffi.cast("char *", arguments.buf)
    read = call(lib.pybtrfs_read_subvolumes, items, buf_size, count, subvolumes, last)
    found = check(read, "BTRFS_IOC_TREE_SEARCH_V2")
    records = SUBVOLUME.iter_unpack(ffi.buffer(subvolumes, found * SUBVOLUME.size))
    return records, (int(last.objectid), int(last.type), int(last.offset))


def ino_lookup(fd: int, treeid: int, objectid: int) -> tuple[int, bytes]:
    """
    Return the tree, and the path of the inode in it with a slash behind, empty for the root of the tree.
    """
    arguments = new("struct pybtrfs_ioctl_ino_lookup_args *", {"treeid": treeid, "objectid": objectid})
    kernel.current.ioctl(fd, "BTRFS_IOC_INO_LOOKUP", arguments)
    return int(arguments.treeid), ffi.string(arguments.name)


def ino_lookup_user(fd: int, dirid: int, treeid: int) -> tuple[bytes, bytes]:
    """
    Return the name of the subvolume *treeid*, and the path from *fd* to the directory *dirid* that has it, with a
    slash behind, empty when that is *fd* itself.
    """
    arguments = new("struct pybtrfs_ioctl_ino_lookup_user_args *", {"dirid": dirid, "treeid": treeid})
    kernel.current.ioctl(fd, "BTRFS_IOC_INO_LOOKUP_USER", arguments)
    return ffi.string(arguments.name), ffi.string(arguments.path)


def logical_ino_v2(fd: int, logical: int, size: int, flags: int = 0) -> tuple[list[tuple[int, int, int]], int]:
    """
    Return the inode, the offset in it and the tree of each reference to the extent at *logical*, as many as *size*
    bytes hold, and the number of those left out.
    """
    found = new("struct pybtrfs_data_container *", {"val": size // 8})
    arguments = new("struct pybtrfs_ioctl_logical_ino_args *", {"logical": logical, "flags": flags})
    arguments.size = ffi.sizeof("struct pybtrfs_data_container") + size // 8 * 8
    arguments.inodes = ffi.cast("uintptr_t", found)
    kernel.current.ioctl(fd, "BTRFS_IOC_LOGICAL_INO_V2", arguments)
    values = [int(value) for value in found.val[0 : found.elem_cnt]]
    return list(zip(values[0::3], values[1::3], values[2::3], strict=True)), int(found.elem_missed) // 3
