"""
The ioctls of btrfs, of loop devices and of file attributes: one function each, named as the kernel names it, less the
prefix. File descriptors and plain values in, plain values out.

Every function issues one ioctl, with the GIL released, through `pybtrfs.kernel`. A refusal is an `OSError` with a
note naming the ioctl and, for ``EPERM``, the privilege it needs. Names are bytes, of which only one with a null byte is
refused here, as numbers that do not fit are, with a `ValueError`: `pybtrfs.path` checks the rest.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, overload

from pybtrfs import kernel
from pybtrfs._ffi import call, check, ffi, lib, new, uncleared, without_nul

if TYPE_CHECKING:
    from pybtrfs._ffi import CData

SUBVOL_RDONLY: int = lib.PYBTRFS_SUBVOL_RDONLY
FIRST_FREE_OBJECTID: int = lib.PYBTRFS_FIRST_FREE_OBJECTID
EMPTY_SUBVOL_DIR_OBJECTID: int = lib.PYBTRFS_EMPTY_SUBVOL_DIR_OBJECTID
VOL_NAME_MAX: int = lib.PYBTRFS_VOL_NAME_MAX

SUBVOL_SYNC_WAIT_FOR_ONE: int = lib.PYBTRFS_SUBVOL_SYNC_WAIT_FOR_ONE
SUBVOL_SYNC_WAIT_FOR_QUEUED: int = lib.PYBTRFS_SUBVOL_SYNC_WAIT_FOR_QUEUED
SUBVOL_SYNC_COUNT: int = lib.PYBTRFS_SUBVOL_SYNC_COUNT
SUBVOL_SYNC_PEEK_FIRST: int = lib.PYBTRFS_SUBVOL_SYNC_PEEK_FIRST
SUBVOL_SYNC_PEEK_LAST: int = lib.PYBTRFS_SUBVOL_SYNC_PEEK_LAST

LOGICAL_INO_ARGS_IGNORE_OFFSET: int = lib.PYBTRFS_LOGICAL_INO_ARGS_IGNORE_OFFSET

DEV_STATS_RESET: int = lib.PYBTRFS_DEV_STATS_RESET

BLOCK_GROUP_DATA: int = lib.PYBTRFS_BLOCK_GROUP_DATA
BLOCK_GROUP_SYSTEM: int = lib.PYBTRFS_BLOCK_GROUP_SYSTEM
BLOCK_GROUP_METADATA: int = lib.PYBTRFS_BLOCK_GROUP_METADATA
BLOCK_GROUP_RAID0: int = lib.PYBTRFS_BLOCK_GROUP_RAID0
BLOCK_GROUP_RAID1: int = lib.PYBTRFS_BLOCK_GROUP_RAID1
BLOCK_GROUP_DUP: int = lib.PYBTRFS_BLOCK_GROUP_DUP
BLOCK_GROUP_RAID10: int = lib.PYBTRFS_BLOCK_GROUP_RAID10
BLOCK_GROUP_RAID5: int = lib.PYBTRFS_BLOCK_GROUP_RAID5
BLOCK_GROUP_RAID6: int = lib.PYBTRFS_BLOCK_GROUP_RAID6
BLOCK_GROUP_RAID1C3: int = lib.PYBTRFS_BLOCK_GROUP_RAID1C3
BLOCK_GROUP_RAID1C4: int = lib.PYBTRFS_BLOCK_GROUP_RAID1C4
SPACE_INFO_GLOBAL_RSV: int = lib.PYBTRFS_SPACE_INFO_GLOBAL_RSV

QUOTA_CTL_ENABLE: int = lib.PYBTRFS_QUOTA_CTL_ENABLE
QUOTA_CTL_DISABLE: int = lib.PYBTRFS_QUOTA_CTL_DISABLE
QUOTA_CTL_ENABLE_SIMPLE_QUOTA: int = lib.PYBTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA

FS_IMMUTABLE_FL: int = lib.PYBTRFS_FS_IMMUTABLE_FL
FS_APPEND_FL: int = lib.PYBTRFS_FS_APPEND_FL
FS_NOCOMP_FL: int = lib.PYBTRFS_FS_NOCOMP_FL
FS_NOCOW_FL: int = lib.PYBTRFS_FS_NOCOW_FL

LO_FLAGS_READ_ONLY: int = lib.PYBTRFS_LO_FLAGS_READ_ONLY
LO_FLAGS_AUTOCLEAR: int = lib.PYBTRFS_LO_FLAGS_AUTOCLEAR
LO_FLAGS_DIRECT_IO: int = lib.PYBTRFS_LO_FLAGS_DIRECT_IO

Limit = tuple[int | None, int | None]
"""Limits of a qgroup in bytes, of what it references and of what is exclusively its own; None is no limit."""

Inherit = tuple[Sequence[int], Limit | None]
"""The qgroups a new subvolume joins, and the limits of its own qgroup."""

_null = ffi.NULL


# Subvolumes


def subvol_create_v2(dirfd: int, name: bytes, inherit: Inherit | None = None) -> None:
    groups = _null if inherit is None else _inherit(inherit)
    kernel.current.vol_ioctl(dirfd, "BTRFS_IOC_SUBVOL_CREATE_V2", name, 0, 0, groups)


def snap_create_v2(source_fd: int, dirfd: int, name: bytes, flags: int = 0, inherit: Inherit | None = None) -> None:
    groups = _null if inherit is None else _inherit(inherit)
    kernel.current.vol_ioctl(dirfd, "BTRFS_IOC_SNAP_CREATE_V2", name, source_fd, flags, groups)


def snap_create_v2_in(
    source_dirfd: int, source: bytes, dirfd: int, directory: bytes, mode: int, xattr: bytes, value: bytes, name: bytes
) -> None:
    """
    `pybtrfs.syscall.make_directory` of *directory*, and in it `snap_create_v2` of the subvolume at *source*, relative
    to *source_dirfd*; or nothing. A symlink is refused.

    Gives up the GIL once for all of it. The snapshot commits the directory and its extended attribute, too.
    """
    result = call(
        lib.pybtrfs_snapshot_in_directory,
        source_dirfd,
        without_nul(source),
        dirfd,
        without_nul(directory),
        mode,
        without_nul(xattr),
        value,
        len(value),
        without_nul(name),
        len(name),
    )
    check(result, "BTRFS_IOC_SNAP_CREATE_V2", kernel.PRIVILEGES["BTRFS_IOC_SNAP_CREATE_V2"], directory)


def _inherit(inherit: Inherit) -> CData:
    groups, limit = inherit
    values: dict[str, object] = {"num_qgroups": len(groups), "qgroups": groups}
    if limit is not None:
        values |= {"flags": lib.PYBTRFS_QGROUP_INHERIT_SET_LIMITS, "lim": _limits(limit)}
    return new("struct pybtrfs_qgroup_inherit *", values)


def _limits(limit: Limit) -> dict[str, int]:
    max_rfer, max_excl = limit
    values = {"flags": 0}
    if max_rfer is not None:
        values["flags"] |= lib.PYBTRFS_QGROUP_LIMIT_MAX_RFER
        values["max_rfer"] = max_rfer
    if max_excl is not None:
        values["flags"] |= lib.PYBTRFS_QGROUP_LIMIT_MAX_EXCL
        values["max_excl"] = max_excl
    return values


def snap_destroy(dirfd: int, name: bytes) -> None:
    kernel.current.vol_ioctl(dirfd, "BTRFS_IOC_SNAP_DESTROY", name)


def snap_destroy_v2_by_id(fd: int, subvolid: int) -> None:
    arguments = new(
        "struct pybtrfs_ioctl_vol_args_v2 *", {"flags": lib.PYBTRFS_SUBVOL_SPEC_BY_ID, "subvolid": subvolid}
    )
    kernel.current.ioctl(fd, "BTRFS_IOC_SNAP_DESTROY_V2", arguments)


def subvol_getflags(fd: int) -> int:
    flags = ffi.new("uint64_t *")
    kernel.current.ioctl(fd, "BTRFS_IOC_SUBVOL_GETFLAGS", flags)
    return int(flags[0])


def subvol_setflags(fd: int, flags: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_SUBVOL_SETFLAGS", new("uint64_t *", flags))


def default_subvol(fd: int, subvolid: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_DEFAULT_SUBVOL", new("uint64_t *", subvolid))


SubvolRecord = tuple[int, bytes, int, int, bytes]
"""treeid, name, parent_id and dirid of a subvolume, and the rest of ``struct pybtrfs_subvolume``."""


class Number:
    """
    An attribute that is a number in the rest of a `SubvolRecord`.
    """

    def __init__(self, offset: int, layout: str = "=Q") -> None:
        self._offset = offset
        self._read = Struct(layout).unpack_from

    @overload
    def __get__(self, subvolume: None, owner: object) -> Number: ...
    @overload
    def __get__(self, subvolume: SubvolRecord, owner: object) -> int: ...
    def __get__(self, subvolume: SubvolRecord | None, owner: object) -> Number | int:
        if subvolume is None:
            return self
        value: int = self._read(subvolume[4], self._offset)[0]
        return value


class SubvolInfo(SubvolRecord):
    """
    ``struct btrfs_ioctl_get_subvol_info_args``; times in nanoseconds since 1970.

    Most of it is decoded when it is asked for: of each of thousands that is little.
    """

    __slots__ = ()
    _fields: tuple[str, ...] = (
        *("treeid", "name", "parent_id", "dirid", "generation", "flags", "uuid", "parent_uuid", "received_uuid"),
        *("ctransid", "otransid", "stransid", "rtransid", "ctime", "otime", "stime", "rtime"),
    )

    @property
    def treeid(self) -> int:
        return self[0]

    @property
    def name(self) -> bytes:
        return self[1]

    @property
    def parent_id(self) -> int:
        return self[2]

    @property
    def dirid(self) -> int:
        return self[3]

    generation = Number(0)
    flags = Number(8)
    ctransid = Number(16)
    otransid = Number(24)
    stransid = Number(32)
    rtransid = Number(40)
    ctime = Number(48, "=q")
    otime = Number(56, "=q")
    stime = Number(64, "=q")
    rtime = Number(72, "=q")

    @property
    def uuid(self) -> bytes:
        return self[4][80:96]

    @property
    def parent_uuid(self) -> bytes:
        return self[4][96:112]

    @property
    def received_uuid(self) -> bytes:
        return self[4][112:128]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._fields)})"


_SUBVOLUME = Struct("=Q 256p 2Q 128s")
_SUBVOLUME_TYPE = ffi.typeof("struct pybtrfs_subvolume *")


def get_subvol_info(fd: int) -> SubvolInfo:
    subvolume = ffi.new(_SUBVOLUME_TYPE)
    kernel.current.info_ioctl(fd, "BTRFS_IOC_GET_SUBVOL_INFO", subvolume)
    return SubvolInfo(_SUBVOLUME.unpack(ffi.buffer(subvolume)))


def _nanoseconds(timespec: CData) -> int:
    return int(timespec.sec * 1_000_000_000 + timespec.nsec)


def get_subvol_rootref(fd: int, min_treeid: int = 0) -> tuple[list[tuple[int, int]], int | None]:
    """
    Return (treeid, dirid) of subvolumes directly below, and the *min_treeid* to go on with, or None at the end.
    """
    arguments = new("struct pybtrfs_ioctl_get_subvol_rootref_args *", {"min_treeid": min_treeid})
    more = None
    try:
        kernel.current.ioctl(fd, "BTRFS_IOC_GET_SUBVOL_ROOTREF", arguments)
    except OSError as error:
        if error.errno != errno.EOVERFLOW:
            raise
        more = int(arguments.min_treeid)
    return [(arguments.rootref[i].treeid, arguments.rootref[i].dirid) for i in range(arguments.num_items)], more


def set_received_subvol(fd: int, uuid: bytes, stransid: int = 0, stime: int = 0) -> tuple[int, int]:
    """
    Return rtransid and rtime as the kernel set them; times in nanoseconds since 1970.
    """
    if len(uuid) != 16:
        raise ValueError(f"{uuid!r} is not a uuid of 16 bytes")
    time = divmod(stime, 1_000_000_000)
    arguments = new("struct pybtrfs_ioctl_received_subvol_args *", {"uuid": uuid, "stransid": stransid, "stime": time})
    kernel.current.ioctl(fd, "BTRFS_IOC_SET_RECEIVED_SUBVOL", arguments)
    return int(arguments.rtransid), _nanoseconds(arguments.rtime)


def subvol_sync_wait(fd: int, subvolid: int, mode: int) -> tuple[int, int]:
    """
    Return (subvolid, count) as the kernel filled them in, which depends on *mode*.
    """
    arguments = new("struct pybtrfs_ioctl_subvol_wait *", {"subvolid": subvolid, "mode": mode})
    kernel.current.ioctl(fd, "BTRFS_IOC_SUBVOL_SYNC_WAIT", arguments)
    return int(arguments.subvolid), int(arguments.count)


# Trees and inodes


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
    records = _SUBVOLUME.iter_unpack(ffi.buffer(subvolumes, found * _SUBVOLUME.size))
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


def getflags(fd: int) -> int:
    flags = ffi.new("unsigned int *")
    kernel.current.ioctl(fd, "FS_IOC_GETFLAGS", flags)
    return int(flags[0])


def setflags(fd: int, flags: int) -> None:
    kernel.current.ioctl(fd, "FS_IOC_SETFLAGS", new("unsigned int *", flags))


# The filesystem and its devices


def sync(fd: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_SYNC")


def start_sync(fd: int) -> int:
    transid = ffi.new("uint64_t *")
    kernel.current.ioctl(fd, "BTRFS_IOC_START_SYNC", transid)
    return int(transid[0])


def wait_sync(fd: int, transid: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_WAIT_SYNC", new("uint64_t *", transid))


class FsInfo(NamedTuple):
    """
    ``struct btrfs_ioctl_fs_info_args``.
    """

    max_id: int
    num_devices: int
    fsid: bytes
    nodesize: int
    sectorsize: int
    clone_alignment: int
    csum_type: int
    csum_size: int
    flags: int
    generation: int
    metadata_uuid: bytes


def fs_info(fd: int) -> FsInfo:
    wanted = (
        lib.PYBTRFS_FS_INFO_FLAG_CSUM_INFO
        | lib.PYBTRFS_FS_INFO_FLAG_GENERATION
        | lib.PYBTRFS_FS_INFO_FLAG_METADATA_UUID
    )
    info = new("struct pybtrfs_ioctl_fs_info_args *", {"flags": wanted})
    kernel.current.ioctl(fd, "BTRFS_IOC_FS_INFO", info)
    return FsInfo(
        info.max_id,
        info.num_devices,
        bytes(info.fsid),
        info.nodesize,
        info.sectorsize,
        info.clone_alignment,
        info.csum_type,
        info.csum_size,
        info.flags,
        info.generation,
        bytes(info.metadata_uuid),
    )


class DevInfo(NamedTuple):
    """
    ``struct btrfs_ioctl_dev_info_args``.
    """

    devid: int
    uuid: bytes
    bytes_used: int
    total_bytes: int
    path: bytes


def dev_info(fd: int, devid: int) -> DevInfo:
    info = new("struct pybtrfs_ioctl_dev_info_args *", {"devid": devid})
    kernel.current.ioctl(fd, "BTRFS_IOC_DEV_INFO", info)
    return DevInfo(info.devid, bytes(info.uuid), info.bytes_used, info.total_bytes, ffi.string(info.path))


def get_dev_stats(fd: int, devid: int, flags: int = 0) -> tuple[int, ...]:
    """
    Return the counters of errors in writing, reading, flushing, of corruptions and of wrong generations.
    """
    stats = new(
        "struct pybtrfs_ioctl_get_dev_stats *",
        {"devid": devid, "nr_items": lib.PYBTRFS_DEV_STAT_VALUES_MAX, "flags": flags},
    )
    kernel.current.ioctl(fd, "BTRFS_IOC_GET_DEV_STATS", stats)
    return tuple(stats.values)


def space_info(fd: int, space_slots: int) -> tuple[int, list[tuple[int, int, int]]]:
    """
    Return how many spaces there are, and (flags, total_bytes, used_bytes) of at most *space_slots* of them.
    """
    arguments = new("struct pybtrfs_ioctl_space_args *", {"space_slots": space_slots, "spaces": space_slots})
    kernel.current.ioctl(fd, "BTRFS_IOC_SPACE_INFO", arguments)
    total = int(arguments.total_spaces)
    spaces = [arguments.spaces[i] for i in range(min(total, space_slots))]
    return total, [(space.flags, space.total_bytes, space.used_bytes) for space in spaces]


def resize(fd: int, name: bytes) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_RESIZE", new("struct pybtrfs_ioctl_vol_args *", {"name": without_nul(name)}))


# Quotas


def quota_ctl(fd: int, cmd: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_QUOTA_CTL", new("struct pybtrfs_ioctl_quota_ctl_args *", {"cmd": cmd}))


def quota_rescan_wait(fd: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_QUOTA_RESCAN_WAIT")


def qgroup_create(fd: int, qgroupid: int, create: bool = True) -> None:
    arguments = new("struct pybtrfs_ioctl_qgroup_create_args *", {"create": create, "qgroupid": qgroupid})
    kernel.current.ioctl(fd, "BTRFS_IOC_QGROUP_CREATE", arguments)


def qgroup_limit(fd: int, qgroupid: int, limit: Limit) -> None:
    arguments = new("struct pybtrfs_ioctl_qgroup_limit_args *", {"qgroupid": qgroupid, "lim": _limits(limit)})
    kernel.current.ioctl(fd, "BTRFS_IOC_QGROUP_LIMIT", arguments)


# Loop devices


def loop_ctl_get_free(fd: int) -> int:
    return kernel.current.ioctl(fd, "LOOP_CTL_GET_FREE")


def loop_ctl_add(fd: int, number: int) -> int:
    return kernel.current.ioctl(fd, "LOOP_CTL_ADD", number)


def loop_configure(
    fd: int,
    file_fd: int,
    *,
    flags: int = 0,
    block_size: int = 0,
    offset: int = 0,
    sizelimit: int = 0,
    file_name: bytes = b"",
) -> None:
    """
    *file_name* is what loop_get_status64 and losetup show of the file: its first 63 bytes.
    """
    info = {"lo_offset": offset, "lo_sizelimit": sizelimit, "lo_flags": flags, "lo_file_name": file_name[:63]}
    arguments = new("struct pybtrfs_loop_config *", {"fd": file_fd, "block_size": block_size, "info": info})
    kernel.current.ioctl(fd, "LOOP_CONFIGURE", arguments)


def loop_set_fd(fd: int, file_fd: int) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_FD", file_fd)


def loop_set_status64(fd: int, flags: int) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_STATUS64", new("struct pybtrfs_loop_info64 *", {"lo_flags": flags}))


def loop_clr_fd(fd: int) -> None:
    kernel.current.ioctl(fd, "LOOP_CLR_FD")


def loop_set_capacity(fd: int) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_CAPACITY")


def loop_set_direct_io(fd: int, enable: bool) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_DIRECT_IO", int(enable))


class LoopInfo(NamedTuple):
    """
    ``struct loop_info64``, as far as it says what is attached and how.
    """

    lo_device: int
    lo_inode: int
    lo_offset: int
    lo_sizelimit: int
    lo_number: int
    lo_flags: int
    lo_file_name: bytes


def loop_get_status64(fd: int) -> LoopInfo:
    info = ffi.new("struct pybtrfs_loop_info64 *")
    kernel.current.ioctl(fd, "LOOP_GET_STATUS64", info)
    return LoopInfo(
        info.lo_device,
        info.lo_inode,
        info.lo_offset,
        info.lo_sizelimit,
        info.lo_number,
        info.lo_flags,
        bytes(info.lo_file_name).split(b"\0", 1)[0],
    )
