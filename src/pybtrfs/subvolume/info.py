"""
Identity, relations and properties of subvolumes.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pybtrfs import ioctl, items, syscall
from pybtrfs.errors import check_btrfs, not_subvolume
from pybtrfs.ioctl import FIRST_FREE_OBJECTID, SUBVOL_RDONLY, SubvolFields, SubvolInfo
from pybtrfs.items import FS_TREE_OBJECTID, ROOT_TREE_OBJECTID, UUID_TREE_OBJECTID, Key
from pybtrfs.path import Owner, Target, open_directory, opened, owned, using
from pybtrfs.tree_search import MAX, search, search_subvolumes

if TYPE_CHECKING:
    from collections.abc import Generator
    from datetime import datetime
    from uuid import UUID

_ONE = 4096  # bytes; a buffer for the items of one subvolume


class SubvolumeInfo(SubvolFields):
    """
    A subvolume. Times are in UTC; a time or transaction that does not apply is 1970-01-01 or 0.

    ``_asdict()`` returns all fields except `raw`, by name, as that of a NamedTuple does.

    Attributes:
        generation: The last transaction that changed the subvolume or took a snapshot of it.
        ctransid: The last transaction that changed an inode.
        otransid: The transaction that created the subvolume.
        stransid: The generation of the sent subvolume, if this one was received.
        rtransid: The transaction that received the subvolume.
    """

    __slots__ = ()
    _fields = (
        *("id", "name", "parent_id", "dir_id", "read_only", "uuid", "parent_uuid", "received_uuid"),
        *("generation", "ctransid", "otransid", "stransid", "rtransid", "ctime", "otime", "stime", "rtime"),
    )

    @property
    def raw(self) -> SubvolInfo:
        """
        The record as the kernel returns it: uuids as bytes, times in nanoseconds, and the flags.
        """
        return SubvolInfo(self[:])  # slicing to a plain tuple first avoids a copy item by item

    @property
    def id(self) -> int:
        """
        The id. The kernel may reuse the id of a deleted subvolume.
        """
        return self[0]

    @property
    def name(self) -> str:
        """
        The name; empty for the top level.
        """
        return os.fsdecode(self[1])

    @property
    def parent_id(self) -> int:
        """
        The id of the subvolume that contains it; 0 for the top level.
        """
        return self[2]

    @property
    def dir_id(self) -> int:
        """
        The inode number of the directory that contains it; 0 for the top level.
        """
        return self[3]

    @property
    def read_only(self) -> bool:
        return bool(self.raw.flags & items.ROOT_SUBVOL_RDONLY)

    @property
    def uuid(self) -> UUID | None:
        return _uuid(self.raw.uuid)

    @property
    def parent_uuid(self) -> UUID | None:
        """
        The uuid of the subvolume it was snapshotted from, or None.
        """
        return _uuid(self.raw.parent_uuid)

    @property
    def received_uuid(self) -> UUID | None:
        """
        The uuid of the subvolume that was sent and received as this one, or None.
        """
        return _uuid(self.raw.received_uuid)

    @property
    def ctime(self) -> datetime:
        return _datetime(self.raw.ctime)

    @property
    def otime(self) -> datetime:
        return _datetime(self.raw.otime)

    @property
    def stime(self) -> datetime:
        return _datetime(self.raw.stime)

    @property
    def rtime(self) -> datetime:
        return _datetime(self.raw.rtime)


class Subvolume(Owner):
    """
    An open subvolume: owns a file descriptor of its root, and can be passed as a *target*.

    Close it, or use it in a ``with``: one that is forgotten is closed with a ResourceWarning. Do not close it while
    another thread uses it, because the kernel may reuse the file descriptor at once.
    """

    def __init__(self, target: Target) -> None:
        with opened(target) as fd:
            if not is_root(fd):
                raise not_subvolume(target)
            try:
                self._fd = open_directory(fd, ".")
            except OSError as error:
                error.filename = None  # the caller's own argument takes its place
                raise

    def fileno(self) -> int:
        """
        Return the file descriptor.
        """
        if self._fd < 0:
            raise ValueError("the subvolume is closed")
        return self._fd

    def close(self) -> None:
        """
        Close the file descriptor; a second call does nothing.
        """
        self._close()

    def __repr__(self) -> str:
        return f"<Subvolume fd={self._fd}>"


def get_id(target: Target) -> int:
    """
    Return the id of the subvolume that contains *target*.

    Issues ``BTRFS_IOC_INO_LOOKUP``, which needs no privilege for this.

    Raises:
        NotBtrfsError: *target* is not on btrfs.
        NotSubvolumeError: *target* is the empty directory that a snapshot shows for a subvolume nested in its source.
    """
    return using(target, ioctl.ino_lookup_treeid)


def get_info(target: Target, subvolid: int = 0) -> SubvolumeInfo:
    """
    Return the subvolume *subvolid*, or for 0 the subvolume that contains *target*.

    Issues ``BTRFS_IOC_GET_SUBVOL_INFO`` (Linux 4.18), which needs no privilege, for 0. Otherwise issues a tree search,
    which does not see times and transactions that are not committed yet. It needs ``CAP_SYS_ADMIN``, unless *target* is
    in the subvolume.

    Raises:
        FileNotFoundError: The subvolume does not exist, or is deleted.
    """
    if subvolid == 0:
        return SubvolumeInfo(using(target, ioctl.get_subvol_info)[:])
    with opened(target) as fd:
        try:
            return SubvolumeInfo(lookup(fd, subvolid))
        except PermissionError:
            if get_id(fd) == subvolid:
                return get_info(fd)
            raise


def get_path(filesystem: Target, subvolid: int) -> str:
    """
    Return the path of the subvolume *subvolid* from the top level of the filesystem; ``""`` for the top level.

    The path does not depend on mounts, and may be longer than the kernel accepts.

    Issues tree searches and ``BTRFS_IOC_INO_LOOKUP``, which need ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: The subvolume does not exist, or is deleted.
    """
    with opened(filesystem) as fd:
        path = b""
        while subvolid != FS_TREE_OBJECTID:
            found = lookup(fd, subvolid)
            path = directory_path(fd, found.parent_id, found.dirid) + found.name + b"/" + path
            subvolid = found.parent_id
        return os.fsdecode(path[:-1])


def get_root(target: Target) -> str:
    """
    Return the path of the root of the subvolume that contains *target*: absolute and without symlinks.

    Issues fstat(2) for each directory from *target* up to the root, and needs search permission on these directories.

    Raises:
        FileNotFoundError: The root is outside of the mount, or *target* is deleted.
        NotBtrfsError: *target* is not on btrfs.
    """
    with opened(target, syscall.O_PATH) as fd:
        check_btrfs(fd)
        device = os.fstat(fd).st_dev
        try:
            below, path = "", os.readlink(f"/proc/self/fd/{fd}")
            while path != below:
                with owned(os.open(path, syscall.O_PATH | os.O_CLOEXEC)) as above:
                    if os.fstat(above).st_dev != device:
                        break
                    if is_root(above):
                        return path
                below, path = path, os.path.dirname(path)
        except OSError as error:
            error.filename = None  # the caller's own argument takes its place
            raise
        raise FileNotFoundError(errno.ENOENT, "the root of the subvolume is not in the mount")


def find_uuid(filesystem: Target, uuid: UUID | bytes) -> int:
    """
    Return the id of the subvolume with the *uuid*.

    Issues a search of the uuid tree (Linux 3.12), which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: No subvolume has the uuid, or it is deleted.
    """
    with opened(filesystem) as fd:
        return _find(fd, items.UUID_KEY_SUBVOL, uuid)[0]


def find_received_uuid(filesystem: Target, uuid: UUID | bytes) -> tuple[int, ...]:
    """
    Return the ids of the subvolumes with the received *uuid*: the received subvolume and its read-only snapshots.

    Issues a search of the uuid tree (Linux 3.12), which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: No subvolume has the received uuid, or all that had it are deleted.
    """
    with opened(filesystem) as fd:
        return _find(fd, items.UUID_KEY_RECEIVED_SUBVOL, uuid)


def ancestors(target: Target, subvolid: int = 0) -> Generator[SubvolumeInfo, None, None]:
    """
    Yield the subvolumes that contain the subvolume *subvolid*, innermost first and the top level last.

    A subvolume that is renamed concurrently is seen at its old or its new place.

    Issues tree searches, which need ``CAP_SYS_ADMIN``.

    Args:
        subvolid: 0 means the subvolume that contains *target*.

    Raises:
        FileNotFoundError: The subvolume does not exist, or is deleted.
    """
    with opened(target) as fd:
        info = get_info(fd, subvolid)
        while info.parent_id:
            info = get_info(fd, info.parent_id)
            yield info


def origins(target: Target, subvolid: int = 0) -> Generator[SubvolumeInfo, None, None]:
    """
    Yield the source of the snapshot *subvolid*, the source of that source, and so on, until a source is deleted or not
    a snapshot.

    Issues tree searches, which need ``CAP_SYS_ADMIN``.

    Args:
        subvolid: 0 means the subvolume that contains *target*.

    Raises:
        FileNotFoundError: The subvolume does not exist, or is deleted.
    """
    with opened(target) as fd:
        info = get_info(fd, subvolid)
        while info.parent_uuid:
            try:
                info = get_info(fd, find_uuid(fd, info.parent_uuid))
            except FileNotFoundError:
                return
            yield info


def get_read_only(target: Target) -> bool:
    """
    Return whether the subvolume *target* is read-only.

    Issues ``BTRFS_IOC_SUBVOL_GETFLAGS``, which needs no privilege.

    Raises:
        NotSubvolumeError: *target* is not the root of a subvolume.
    """
    try:
        return using(target, ioctl.subvol_getflags) & SUBVOL_RDONLY != 0
    except OSError as error:
        _check_root(error, target)
        raise


def set_read_only(target: Target, *, read_only: bool = True, clear_received: bool = False) -> None:
    """
    Make the subvolume *target* read-only or writable. The change is durable when this returns.

    Read-only does not freeze the content: files that are already open or mapped for writing can still be written.
    Data that is not written back does not become durable. A read-only `snapshot` freezes the content.

    A received subvolume is not made writable by default. Its received uuid would still claim that its content is the
    sent content, and a later incremental receive would build on it.

    Issues ``BTRFS_IOC_SUBVOL_SETFLAGS``. The caller must own *target* or have ``CAP_FOWNER``.

    Args:
        clear_received: Make a received subvolume writable, and clear its received uuid.

    Raises:
        NotSubvolumeError: *target* is not the root of a subvolume.
        PermissionError: *target* is a received subvolume, and *clear_received* is false.
    """
    with opened(target) as fd:
        try:
            flags = ioctl.subvol_getflags(fd)
        except OSError as error:
            _check_root(error, target)
            raise
        if read_only:
            ioctl.subvol_setflags(fd, flags | SUBVOL_RDONLY)
            return
        received = bool(flags & SUBVOL_RDONLY) and any(ioctl.get_subvol_info(fd).received_uuid)
        if received and not clear_received:
            raise PermissionError(
                errno.EPERM, "cannot make a received subvolume writable without clear_received=True", target
            )
        ioctl.subvol_setflags(fd, flags & ~SUBVOL_RDONLY)
        if received:
            ioctl.set_received_subvol(fd, bytes(16))


def get_default(filesystem: Target) -> int:
    """
    Return the id of the default subvolume, which is mounted unless the mount options name another.

    Issues a tree search, which needs ``CAP_SYS_ADMIN``.
    """
    key = Key(items.ROOT_TREE_DIR_OBJECTID, items.DIR_ITEM_KEY, 0)
    for item in search(filesystem, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=key._replace(offset=MAX)):
        for entry in items.dir_item(item.data):
            if entry.name == b"default":
                return entry.location.objectid
    return FS_TREE_OBJECTID


def set_default(filesystem: Target, subvolid: int) -> None:
    """
    Make *subvolid* the default subvolume. The default subvolume cannot be deleted.

    Issues ``BTRFS_IOC_DEFAULT_SUBVOL``, which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: The subvolume does not exist.
    """
    with opened(filesystem) as fd:
        ioctl.default_subvol(fd, subvolid)


def is_subvolume(target: Target) -> bool:
    """
    Return whether *target* is the root of a subvolume.

    Issues fstat(2) and fstatfs(2), which need no privilege, and no permission for *target* itself.
    """
    with opened(target, syscall.O_PATH) as fd:
        return is_root(fd)


def is_root(fd: int) -> bool:
    return syscall.fstat_ino(fd) == FIRST_FREE_OBJECTID and syscall.fstatfs_type(fd) == syscall.BTRFS_SUPER_MAGIC


def _check_root(error: OSError, target: Target) -> None:
    """
    Raise NotSubvolumeError if *error* of ``BTRFS_IOC_SUBVOL_GETFLAGS`` says that *target* is not a root.
    """
    if error.errno == errno.EINVAL:
        raise not_subvolume(target, error) from error


def missing(subvolid: int) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"subvolume {subvolid} does not exist")


def lookup(fd: int, subvolid: int) -> SubvolInfo:
    """
    Return the subvolume *subvolid*.

    Raises:
        FileNotFoundError: The subvolume does not exist, or is deleted.
    """
    found = lookup_root(fd, subvolid)
    if found is None or is_deleted(found):
        raise missing(subvolid)
    return found


def lookup_root(fd: int, subvolid: int) -> SubvolInfo | None:
    """
    Return the subvolume *subvolid*, also if it is deleted and not cleaned yet, or None.
    """
    if not isinstance(subvolid, int):
        raise TypeError(f"{subvolid!r} is not the id of a subvolume")
    if not 0 <= subvolid <= MAX:
        raise ValueError(f"{subvolid!r} is not the id of a subvolume")
    return next(search_subvolumes(fd, SubvolInfo, min_id=subvolid, max_id=subvolid, buffer_size=_ONE), None)


def is_deleted(found: SubvolInfo) -> bool:
    return found.parent_id == 0 and found.treeid != FS_TREE_OBJECTID


def _find(fd: int, type_: int, uuid: UUID | bytes) -> tuple[int, ...]:
    value = uuid if isinstance(uuid, bytes) else getattr(uuid, "bytes", None)
    if not isinstance(value, bytes):
        raise TypeError(f"{uuid!r} is neither a UUID nor the bytes of one")
    if len(value) != 16:
        raise ValueError(f"{uuid!r} is not a uuid of 16 bytes")
    key = Key(int.from_bytes(value[:8], "little"), type_, int.from_bytes(value[8:], "little"))
    for item in search(fd, tree_id=UUID_TREE_OBJECTID, min_key=key, max_key=key):
        if found := items.uuid_item(item.data):
            return found
    kind = "received uuid" if type_ == items.UUID_KEY_RECEIVED_SUBVOL else "uuid"
    raise FileNotFoundError(errno.ENOENT, f"no subvolume has the {kind} {value.hex()}")


def directory_path(fd: int, treeid: int, dirid: int) -> bytes:
    """
    Return the path of a directory from the root of its subvolume, with a trailing slash.
    """
    if dirid == FIRST_FREE_OBJECTID:
        return b""
    try:
        return ioctl.ino_lookup(fd, treeid, dirid)[1]
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    path = b""
    while dirid != FIRST_FREE_OBJECTID:
        key = Key(dirid, items.INODE_REF_KEY, 0)
        item = next(search(fd, tree_id=treeid, min_key=key, max_key=key._replace(offset=MAX)), None)
        if item is None:
            raise FileNotFoundError(errno.ENOENT, f"subvolume {treeid} has no inode {dirid}")
        path = items.inode_ref(item.data)[0].name + b"/" + path
        dirid = item.offset
    return path


def _uuid(value: bytes) -> UUID | None:
    from uuid import UUID

    return UUID(bytes=value) if any(value) else None


def _datetime(nanoseconds: int) -> datetime:
    from datetime import UTC, datetime, timedelta

    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
