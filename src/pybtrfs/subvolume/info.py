"""
What a subvolume is: its place, its relations, and what can be set of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pybtrfs import ioctl, items, syscall
from pybtrfs.errors import not_subvolume
from pybtrfs.ioctl import FIRST_FREE_OBJECTID, SUBVOL_RDONLY, SubvolInfo, SubvolRecord
from pybtrfs.items import FS_TREE_OBJECTID, ROOT_TREE_OBJECTID, UUID_TREE_OBJECTID, Key
from pybtrfs.path import Target, opened
from pybtrfs.tree_search import MAX, search, search_subvolumes

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

_ONE = 4096  # bytes; the items of one subvolume fit into them


class SubvolumeInfo(SubvolRecord):
    """
    A subvolume.

    Attributes:
        generation: The last transaction that changed it, or made a snapshot of it.
        ctransid: The last transaction that changed an inode in it.
        otransid: The transaction that made it.
        stransid: For a received one, the generation of what was sent.
        rtransid: The transaction in which it was received.
    """

    __slots__ = ()
    _fields = (
        *("id", "name", "parent_id", "dir_id", "read_only", "uuid", "parent_uuid", "received_uuid"),
        *("generation", "ctransid", "otransid", "stransid", "rtransid", "ctime", "otime", "stime", "rtime"),
    )

    @property
    def raw(self) -> SubvolInfo:
        """
        What the kernel says of it.
        """
        return SubvolInfo(self[:])  # a tuple of a class of its own would be copied item by item

    @property
    def id(self) -> int:
        """
        Its id, used again for another one once it is deleted.
        """
        return self[0]

    @property
    def name(self) -> str:
        """
        Its name; empty for the top level.
        """
        return os.fsdecode(self[1])

    @property
    def parent_id(self) -> int:
        """
        The subvolume that contains it; 0 for the top level.
        """
        return self[2]

    @property
    def dir_id(self) -> int:
        """
        The inode number of the directory that contains it; 0 for the top level.
        """
        return self[3]

    generation = SubvolInfo.generation
    ctransid = SubvolInfo.ctransid
    otransid = SubvolInfo.otransid
    stransid = SubvolInfo.stransid
    rtransid = SubvolInfo.rtransid

    @property
    def read_only(self) -> bool:
        return bool(self.raw.flags & items.ROOT_SUBVOL_RDONLY)

    @property
    def uuid(self) -> UUID | None:
        return _uuid(self.raw.uuid)

    @property
    def parent_uuid(self) -> UUID | None:
        """
        The subvolume it is a snapshot of.
        """
        return _uuid(self.raw.parent_uuid)

    @property
    def received_uuid(self) -> UUID | None:
        """
        The subvolume that was sent, and received as this one.
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

    __repr__ = SubvolInfo.__repr__


class Subvolume:
    """
    An open subvolume: owns a file descriptor of its root, and can be given to whatever takes a *target*.

    Close it when no other thread uses it: the number of its file descriptor may be given to another file at once.
    """

    def __init__(self, target: Target) -> None:
        with opened(target) as fd:
            if not is_root(fd):
                raise not_subvolume(target)
            self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)

    def fileno(self) -> int:
        if self._fd < 0:
            raise ValueError("the subvolume is closed")
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Subvolume:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def get_id(target: Target) -> int:
    """
    Return the id of the subvolume that contains *target*.

    Issues ``BTRFS_IOC_INO_LOOKUP``, which needs no privilege for this.

    Raises:
        NotBtrfsError: *target* is not on btrfs.
        NotSubvolumeError: *target* stands in a snapshot for a subvolume nested in its source.
    """
    with opened(target) as fd:
        return ioctl.ino_lookup(fd, 0, FIRST_FREE_OBJECTID)[0]


def get_info(target: Target, subvolid: int = 0) -> SubvolumeInfo:
    """
    Return what the subvolume *subvolid* is, or the one that contains *target* for 0.

    Issues ``BTRFS_IOC_GET_SUBVOL_INFO`` (Linux 4.18), which needs no privilege, or for a *subvolid* a tree search,
    which does not see the times and transactions of what is not yet committed, and needs ``CAP_SYS_ADMIN`` unless
    *subvolid* is the one that contains *target*.

    Raises:
        FileNotFoundError: There is no such subvolume, or it is deleted.
    """
    with opened(target) as fd:
        if subvolid == 0:
            return _own_info(fd)
        try:
            return SubvolumeInfo(lookup(fd, subvolid))
        except PermissionError:
            if get_id(fd) == subvolid:
                return _own_info(fd)
            raise


def get_path(filesystem: Target, subvolid: int) -> str:
    """
    Return the path of the subvolume *subvolid* from the top level of the filesystem, which itself is ``""``.

    What is mounted does not matter. The path may be longer than the kernel accepts.

    Issues tree searches and ``BTRFS_IOC_INO_LOOKUP``, which need ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: There is no such subvolume, or it is deleted.
    """
    with opened(filesystem) as fd:
        path = b""
        while subvolid != FS_TREE_OBJECTID:
            found = lookup(fd, subvolid)
            path = directory_path(fd, found.parent_id, found.dirid) + found.name + b"/" + path
            subvolid = found.parent_id
        return os.fsdecode(path[:-1])


def find_uuid(filesystem: Target, uuid: UUID | bytes) -> int:
    """
    Return the id of the subvolume that has the uuid.

    Issues a search of the tree of uuids (Linux 3.12), which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: There is none, or it is deleted.
    """
    with opened(filesystem) as fd:
        for subvolid in _find(fd, items.UUID_KEY_SUBVOL, uuid):
            return subvolid
        raise FileNotFoundError(errno.ENOENT, f"there is no subvolume with the uuid {_bytes(uuid).hex()}")


def find_received_uuid(filesystem: Target, uuid: UUID | bytes) -> tuple[int, ...]:
    """
    Return the ids of the subvolumes with this received uuid: what was received, and its read-only snapshots.

    Issues a search of the tree of uuids (Linux 3.12), which needs ``CAP_SYS_ADMIN``.
    """
    with opened(filesystem) as fd:
        return _find(fd, items.UUID_KEY_RECEIVED_SUBVOL, uuid)


def ancestors(target: Target, subvolid: int = 0) -> Iterator[SubvolumeInfo]:
    """
    Yield the subvolumes that contain the subvolume *subvolid*, or the one that contains *target* for 0: the innermost
    first, the top level last. What is renamed meanwhile is in one place or the other.

    Issues tree searches, which need ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: There is no such subvolume, or it is deleted.
    """
    with opened(target) as fd:
        info = get_info(fd, subvolid)
        while info.parent_id:
            info = get_info(fd, info.parent_id)
            yield info


def origins(target: Target, subvolid: int = 0) -> Iterator[SubvolumeInfo]:
    """
    Yield the subvolume that *subvolid*, or the one that contains *target* for 0, is a snapshot of, the one that this is
    a snapshot of, and so on, until one is deleted or no snapshot.

    Issues tree searches, which need ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: There is no such subvolume, or it is deleted.
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
    with opened(target) as fd:
        return bool(_flags(fd, target) & SUBVOL_RDONLY)


def set_read_only(target: Target, read_only: bool = True, *, clear_received: bool = False) -> None:
    """
    Make the subvolume *target* read-only, or writable.

    Read-only does not freeze it: files opened and mapped for writing before are still written, and data not yet written
    back is not made durable. A read-only `snapshot` does freeze. The change is on disk when this returns.

    A received subvolume is refused to be made writable: its received uuid would go on saying that it is the same as
    what was sent, and a later incremental receive would build on it.

    Issues ``BTRFS_IOC_SUBVOL_SETFLAGS``. The caller must own *target* or have ``CAP_FOWNER``.

    Args:
        clear_received: Make a received subvolume writable all the same, and clear its received uuid.

    Raises:
        NotSubvolumeError: *target* is not the root of a subvolume.
        PermissionError: *target* is a received subvolume, and *clear_received* is false.
    """
    with opened(target) as fd:
        flags = _flags(fd, target)
        if read_only:
            ioctl.subvol_setflags(fd, flags | SUBVOL_RDONLY)
            return
        received = bool(flags & SUBVOL_RDONLY) and any(ioctl.get_subvol_info(fd).received_uuid)
        if received and not clear_received:
            raise PermissionError(
                errno.EPERM, "a received subvolume stays read-only unless clear_received is true", target
            )
        ioctl.subvol_setflags(fd, flags & ~SUBVOL_RDONLY)
        if received:
            ioctl.set_received_subvol(fd, bytes(16))


def get_default(filesystem: Target) -> int:
    """
    Return the id of the subvolume that is mounted when none is named.

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
    Let the subvolume *subvolid* be mounted when none is named. It cannot be deleted then.

    Issues ``BTRFS_IOC_DEFAULT_SUBVOL``, which needs ``CAP_SYS_ADMIN``.

    Raises:
        FileNotFoundError: There is no such subvolume.
    """
    with opened(filesystem) as fd:
        ioctl.default_subvol(fd, subvolid)


def is_subvolume(target: Target) -> bool:
    """
    Return whether *target* is the root of a subvolume. Needs no privilege.
    """
    with opened(target) as fd:
        return is_root(fd)


def is_root(fd: int) -> bool:
    return syscall.fstat_ino(fd) == FIRST_FREE_OBJECTID and syscall.fstatfs_type(fd) == syscall.BTRFS_SUPER_MAGIC


def _flags(fd: int, target: Target) -> int:
    try:
        return ioctl.subvol_getflags(fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise not_subvolume(target, error) from error
        raise


def _own_info(fd: int) -> SubvolumeInfo:
    return SubvolumeInfo(ioctl.get_subvol_info(fd)[:])


def missing(subvolid: int) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"there is no subvolume {subvolid}")


def lookup(fd: int, subvolid: int) -> SubvolInfo:
    """
    Find a subvolume that is not deleted.
    """
    found = lookup_root(fd, subvolid)
    if found is None or is_deleted(found):
        raise missing(subvolid)
    return found


def lookup_root(fd: int, subvolid: int) -> SubvolInfo | None:
    """
    Find a subvolume that may be deleted, as long as it is not cleaned.
    """
    return next(search_subvolumes(fd, SubvolInfo, min_id=subvolid, max_id=subvolid, buffer_size=_ONE), None)


def is_deleted(found: SubvolInfo) -> bool:
    return found.parent_id == 0 and found.treeid != FS_TREE_OBJECTID


def _find(fd: int, type_: int, uuid: UUID | bytes) -> tuple[int, ...]:
    value = _bytes(uuid)
    key = Key(int.from_bytes(value[:8], "little"), type_, int.from_bytes(value[8:], "little"))
    for item in search(fd, tree_id=UUID_TREE_OBJECTID, min_key=key, max_key=key):
        return items.uuid_item(item.data)
    return ()


def _bytes(uuid: UUID | bytes) -> bytes:
    value = uuid if isinstance(uuid, bytes) else uuid.bytes
    if len(value) != 16:
        raise ValueError(f"{uuid!r} is not a uuid of 16 bytes")
    return value


def directory_path(fd: int, treeid: int, dirid: int) -> bytes:
    """
    Return the path of a directory in a subvolume, from its root, with a slash behind.
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
            raise FileNotFoundError(errno.ENOENT, f"there is no directory {dirid} in subvolume {treeid}")
        path = items.inode_ref(item.data)[0].name + b"/" + path
        dirid = item.offset
    return path


def _uuid(value: bytes) -> UUID | None:
    from uuid import UUID

    return UUID(bytes=value) if any(value) else None


def _datetime(nanoseconds: int) -> datetime:
    from datetime import UTC, datetime, timedelta

    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
