"""
The ioctls that create, describe, change and destroy subvolumes.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, overload

from pybtrfs import kernel
from pybtrfs._ffi import call, check, ffi, lib, new, without_nul
from pybtrfs.ioctl.quota import Inherit, qgroup_inherit

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

_INHERIT_MAX = 503  # qgroups that fit into the 4,096 bytes that the kernel takes

_null = ffi.NULL


def subvol_create_v2(dirfd: int, name: bytes, inherit: Inherit | None = None) -> None:
    groups = _null if inherit is None else qgroup_inherit(inherit)
    try:
        kernel.current.vol_ioctl(dirfd, "BTRFS_IOC_SUBVOL_CREATE_V2", name, 0, 0, groups)
    except OSError as error:
        _explain_inherit(error, inherit)
        raise


def snap_create_v2(source_fd: int, dirfd: int, name: bytes, flags: int = 0, inherit: Inherit | None = None) -> None:
    groups = _null if inherit is None else qgroup_inherit(inherit)
    try:
        kernel.current.vol_ioctl(dirfd, "BTRFS_IOC_SNAP_CREATE_V2", name, source_fd, flags, groups)
    except OSError as error:
        _explain_inherit(error, inherit)
        raise


def _explain_inherit(error: OSError, inherit: Inherit | None) -> None:
    """
    Add a note to the refusal of a creation if *inherit* may be its cause.
    """
    groups = inherit[0] if inherit else ()
    level_0 = [f"0/{group}" for group in groups if group < 1 << 48]
    if groups and error.errno == errno.ENOENT:
        error.add_note("one of the qgroups to join does not exist")
    elif level_0 and error.errno == errno.EINVAL:
        error.add_note(f"a subvolume cannot join a qgroup of level 0: {', '.join(level_0)}")
    elif len(groups) > _INHERIT_MAX and error.errno == errno.EINVAL:
        error.add_note(f"a subvolume cannot join more than {_INHERIT_MAX} qgroups at once")


def snap_create_v2_in(
    source_dirfd: int, source: bytes, dirfd: int, directory: bytes, mode: int, xattr: bytes, value: bytes, name: bytes
) -> None:
    """
    Create *directory* as `pybtrfs.syscall.make_directory` does, and a snapshot of *source* in it as *name*.

    A failure leaves nothing behind. The transaction that commits the snapshot also commits the directory and its
    extended attribute. The GIL is released once for all calls.

    Args:
        source: The path of a subvolume, relative to *source_dirfd*. A symlink is refused.
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
    check(result, "BTRFS_IOC_SNAP_CREATE_V2", kernel.privilege("BTRFS_IOC_SNAP_CREATE_V2"), directory)


def snap_destroy(dirfd: int, name: bytes) -> None:
    kernel.current.vol_ioctl(dirfd, "BTRFS_IOC_SNAP_DESTROY", name)


def snap_destroy_v2_by_id(fd: int, subvolid: int) -> None:
    arguments = new(
        "struct pybtrfs_ioctl_vol_args_v2 *", {"flags": lib.PYBTRFS_SUBVOL_SPEC_BY_ID, "subvolid": subvolid}
    )
    kernel.current.ioctl(fd, "BTRFS_IOC_SNAP_DESTROY_V2", arguments)


def subvol_getflags(fd: int) -> int:
    return kernel.current.value_ioctl(fd, "BTRFS_IOC_SUBVOL_GETFLAGS")


def subvol_setflags(fd: int, flags: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_SUBVOL_SETFLAGS", new("uint64_t *", flags))


def default_subvol(fd: int, subvolid: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_DEFAULT_SUBVOL", new("uint64_t *", subvolid))


SubvolRecord = tuple[int, bytes, int, int, bytes]
"""The treeid, name, parent_id and dirid of a subvolume, and the undecoded rest of ``struct pybtrfs_subvolume``."""


class _Number:
    """
    An attribute of `SubvolFields` that is decoded from the rest of a `SubvolRecord`.
    """

    def __init__(self, offset: int, layout: str = "=Q") -> None:
        self._offset = offset
        self._read = Struct(layout).unpack_from

    @overload
    def __get__(self, subvolume: None, owner: object) -> _Number: ...
    @overload
    def __get__(self, subvolume: SubvolRecord, owner: object) -> int: ...
    def __get__(self, subvolume: SubvolRecord | None, owner: object) -> _Number | int:
        if subvolume is None:
            return self
        value: int = self._read(subvolume[4], self._offset)[0]
        return value


class SubvolFields(SubvolRecord):
    """
    A `SubvolRecord` with named fields.

    Most fields are decoded on access, because a listing of thousands of subvolumes reads few fields of each.
    """

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    generation: _Number = _Number(0)
    ctransid: _Number = _Number(16)
    otransid: _Number = _Number(24)
    stransid: _Number = _Number(32)
    rtransid: _Number = _Number(40)

    def _asdict(self) -> dict[str, object]:
        """
        Return the fields by name, as the method of a NamedTuple does.
        """
        return {name: getattr(self, name) for name in self._fields}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"


class SubvolInfo(SubvolFields):
    """
    ``struct btrfs_ioctl_get_subvol_info_args``; times are in nanoseconds since 1970.
    """

    __slots__ = ()
    _fields = (
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

    flags: _Number = _Number(8)
    ctime: _Number = _Number(48, "=q")
    otime: _Number = _Number(56, "=q")
    stime: _Number = _Number(64, "=q")
    rtime: _Number = _Number(72, "=q")

    @property
    def uuid(self) -> bytes:
        return self[4][80:96]

    @property
    def parent_uuid(self) -> bytes:
        return self[4][96:112]

    @property
    def received_uuid(self) -> bytes:
        return self[4][112:128]


SUBVOLUME = Struct("=Q 256p 2Q 128s")  # struct pybtrfs_subvolume as a SubvolRecord
_SUBVOLUME_TYPE = ffi.typeof("struct pybtrfs_subvolume *")
_spare: list[tuple[CData, memoryview]] = []


def get_subvol_info(fd: int) -> SubvolInfo:
    # Hot path: making a struct and its buffer takes a fifth of the time, so they are kept for the next call.
    try:
        struct = _spare.pop()
    except IndexError:
        subvolume = ffi.new(_SUBVOLUME_TYPE)
        struct = subvolume, memoryview(ffi.buffer(subvolume))
    kernel.current.info_ioctl(fd, "BTRFS_IOC_GET_SUBVOL_INFO", struct[0])
    record = SUBVOLUME.unpack(struct[1])
    _spare.append(struct)
    return SubvolInfo(record)


def _nanoseconds(timespec: CData) -> int:
    return int(timespec.sec * 1_000_000_000 + timespec.nsec)


def get_subvol_rootref(fd: int, min_treeid: int = 0) -> tuple[list[tuple[int, int]], int | None]:
    """
    Return the (treeid, dirid) of subvolumes directly below *fd*, and the *min_treeid* of the next call, or None at the
    end.
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
    Return the rtransid and rtime that the kernel set.

    Args:
        uuid: 16 bytes.
        stime: In nanoseconds since 1970, like the rtime.
    """
    if len(uuid) != 16:
        raise ValueError(f"{uuid!r} is not a UUID of 16 bytes")
    time = divmod(stime, 1_000_000_000)
    arguments = new("struct pybtrfs_ioctl_received_subvol_args *", {"uuid": uuid, "stransid": stransid, "stime": time})
    kernel.current.ioctl(fd, "BTRFS_IOC_SET_RECEIVED_SUBVOL", arguments)
    return int(arguments.rtransid), _nanoseconds(arguments.rtime)


def subvol_sync_wait(fd: int, subvolid: int, mode: int) -> tuple[int, int]:
    """
    Wait for deleted subvolumes to be cleaned, or query the queue of deleted subvolumes, depending on *mode*.

    Args:
        mode: A mode of ``SUBVOL_SYNC_*``.

    Returns:
        The subvolid and the count, each as given, or as the kernel set it in this *mode*.
    """
    arguments = new("struct pybtrfs_ioctl_subvol_wait *", {"subvolid": subvolid, "mode": mode})
    kernel.current.ioctl(fd, "BTRFS_IOC_SUBVOL_SYNC_WAIT", arguments)
    return int(arguments.subvolid), int(arguments.count)
