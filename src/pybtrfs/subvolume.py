"""
Subvolumes: making, deleting, inspecting and listing them.

A *target* is something that exists: a path, a file descriptor, or an open file. A *dest* is a name to make or remove: a
path, or an open directory and a name in it. A *filesystem* is any file of the filesystem.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import ioctl, items, syscall
from pybtrfs.errors import not_subvolume
from pybtrfs.ioctl import FIRST_FREE_OBJECTID, SUBVOL_RDONLY
from pybtrfs.items import FS_TREE_OBJECTID, ROOT_TREE_OBJECTID, Key, RootItem, RootRef
from pybtrfs.path import Destination, Target, opened, placed
from pybtrfs.qgroup import QgroupInherit
from pybtrfs.tree_search import MAX, search

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

_POLL_SECONDS = 0.1

_Place = tuple[int, RootRef]
"""The subvolume that contains another one, and where in it."""

_TOP: _Place = 0, RootRef(0, 0, b"")


class SubvolumeInfo(NamedTuple):
    """
    A subvolume.

    Attributes:
        id: Its id, used again for another one once it is deleted.
        name: Its name; empty for the top level.
        parent_id: The subvolume that contains it; 0 for the top level.
        dir_id: The inode number of the directory that contains it; 0 for the top level.
        generation: The last transaction that changed it, or made a snapshot of it.
        ctransid: The last transaction that changed an inode in it.
        otransid: The transaction that made it.
        stransid: For a received one, the generation of what was sent.
        rtransid: The transaction in which it was received.
        ctime_ns: The time of *ctransid*, as the others of theirs, in nanoseconds since 1970.
    """

    id: int
    name: str
    parent_id: int
    dir_id: int
    generation: int
    flags: int
    uuid_bytes: bytes
    parent_uuid_bytes: bytes
    received_uuid_bytes: bytes
    ctransid: int
    otransid: int
    stransid: int
    rtransid: int
    ctime_ns: int
    otime_ns: int
    stime_ns: int
    rtime_ns: int

    @property
    def read_only(self) -> bool:
        return bool(self.flags & items.ROOT_SUBVOL_RDONLY)

    @property
    def uuid(self) -> UUID | None:
        return _uuid(self.uuid_bytes)

    @property
    def parent_uuid(self) -> UUID | None:
        """
        The subvolume it is a snapshot of.
        """
        return _uuid(self.parent_uuid_bytes)

    @property
    def received_uuid(self) -> UUID | None:
        """
        The subvolume that was sent, and received as this one.
        """
        return _uuid(self.received_uuid_bytes)

    @property
    def ctime(self) -> datetime:
        return _datetime(self.ctime_ns)

    @property
    def otime(self) -> datetime:
        return _datetime(self.otime_ns)

    @property
    def stime(self) -> datetime:
        return _datetime(self.stime_ns)

    @property
    def rtime(self) -> datetime:
        return _datetime(self.rtime_ns)


class SubvolumeEntry(NamedTuple):
    """
    A subvolume, and its path below the one whose content was listed.
    """

    path: str
    info: SubvolumeInfo


class SubvolumeRef(NamedTuple):
    """
    A subvolume directly below another one, and the inode number of the directory there that contains it.
    """

    id: int
    dir_id: int


class Subvolume:
    """
    An open subvolume: owns a file descriptor of its root, and can be given to whatever takes a *target*.

    Close it when no other thread uses it: the number of its file descriptor may be given to another file at once.
    """

    def __init__(self, target: Target) -> None:
        with opened(target) as fd:
            if not _is_root(fd):
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


def create(dest: Destination, *, inherit: QgroupInherit | None = None) -> None:
    """
    Create an empty subvolume at *dest*.

    It is not on disk when this returns: os.fsync of the directory that contains it sees to that.

    Issues ``BTRFS_IOC_SUBVOL_CREATE_V2``. The caller must be able to write to the directory.

    Args:
        inherit: The qgroups it joins, and its limits. They need quotas that are enabled and not being rescanned.

    Raises:
        FileExistsError: *dest* exists.
        FileNotFoundError: The directory does not exist, or a qgroup of *inherit*.
    """
    with placed(dest) as (dirfd, name):
        ioctl.subvol_create_v2(dirfd, name, inherit)


def snapshot(
    source: Target, dest: Destination, *, read_only: bool = False, inherit: QgroupInherit | None = None
) -> None:
    """
    Create a snapshot of the subvolume *source* at *dest*.

    The snapshot is atomic, shares all extents, contains all that was written to *source* before, and is on disk when
    this returns. Subvolumes nested in *source* appear in it as empty directories. Data that the disk refused is missing
    without an error: `pybtrfs.syscall.syncfs` afterwards tells.

    Issues ``BTRFS_IOC_SNAP_CREATE_V2``. The caller must own *source* or have ``CAP_FOWNER``, and be able to write to
    the directory of *dest*. Snapshots into one directory wait for each other.

    Raises:
        FileExistsError: *dest* exists.
        NotSubvolumeError: *source* is not the root of a subvolume.
        OSError: EXDEV: *source* and *dest* are on different filesystems. ETXTBSY: *source* holds an active swapfile.
    """
    flags = SUBVOL_RDONLY if read_only else 0
    with opened(source) as source_fd, placed(dest) as (dirfd, name):
        try:
            ioctl.snap_create_v2(source_fd, dirfd, name, flags, inherit)
        except OSError as error:
            if error.errno == errno.EINVAL and not _is_root(source_fd):
                raise not_subvolume(source, error) from error
            if error.errno != errno.ENOTTY:
                error.filename, error.filename2 = source, dest if not isinstance(dest, tuple) else dest[1]
            raise


def delete(dest: Destination, *, recursive: bool = False) -> None:
    """
    Delete the subvolume *dest*, with everything in it. The kernel frees its space later; see `wait_deleted`.

    Files open in it stay readable, and a mount of it is detached: the kernel does not ask who uses it. It is not
    deleted on disk when this returns: os.fsync of the directory that contained it sees to that.

    Issues ``BTRFS_IOC_SNAP_DESTROY``. The caller must have ``CAP_SYS_ADMIN``, or own it on a filesystem mounted with
    ``user_subvol_rm_allowed``.

    Args:
        recursive: Delete the subvolumes nested in it first, wherever in it they are, one after the other. They are
            found by tree search and deleted by id, which needs ``CAP_SYS_ADMIN``. Read-only, immutable and append-only
            ones among them are no obstacle. This is not atomic: after an error some are gone, and some writable. It
            needs Linux 5.6.

    Raises:
        NotSubvolumeError: *dest* is a directory, but not the root of a subvolume.
        OSError: ENOTEMPTY: it contains subvolumes. EROFS: the subvolume that contains it is read-only.
            EXDEV: *recursive*, and something is mounted on it.
    """
    with placed(dest) as (dirfd, name):
        if recursive:
            _destroy_below_name(dirfd, name)
        try:
            ioctl.snap_destroy(dirfd, name)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise not_subvolume(name, error) from error
            raise


def delete_by_id(filesystem: Target, subvolid: int, *, recursive: bool = False) -> None:
    """
    Delete the subvolume *subvolid*, wherever it is. Otherwise as `delete`.

    Issues ``BTRFS_IOC_SNAP_DESTROY_V2`` (Linux 5.7). Where the kernel lacks it or cannot build the path, which may have
    4,095 bytes at most, the containing directory is opened by its inode number, which needs ``CAP_DAC_READ_SEARCH``,
    and the subvolume deleted by its name there.

    Raises:
        FileNotFoundError: There is no such subvolume.
        ValueError: *subvolid* cannot be that of a subvolume that can be deleted.
    """
    _check_deletable(subvolid)
    with opened(filesystem) as fd:
        if recursive:
            _destroy_below(fd, subvolid)
        _destroy_by_id(fd, subvolid)


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

    Issues ``BTRFS_IOC_GET_SUBVOL_INFO`` (Linux 4.18), which needs no privilege, or for another *subvolid* a tree
    search, which needs ``CAP_SYS_ADMIN`` and does not see the times and transactions of what is not yet committed.

    Raises:
        FileNotFoundError: There is no such subvolume, or it is deleted.
    """
    with opened(target) as fd:
        if subvolid == 0:
            info = ioctl.get_subvol_info(fd)
            return SubvolumeInfo(info.treeid, os.fsdecode(info.name), *info[2:])
        root, place = _lookup(fd, subvolid)
        if root is None or place is None:
            raise _missing(subvolid)
        return _info(subvolid, root, *place)


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
            subvolid, ref = _place(fd, subvolid)
            path = _directory(fd, subvolid, ref.dirid) + ref.name + b"/" + path
        return os.fsdecode(path[:-1])


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
        return _is_root(fd)


def iterate(filesystem: Target, *, top: int = FS_TREE_OBJECTID) -> Iterator[SubvolumeEntry]:
    """
    Yield all subvolumes below the subvolume *top*, by id, with their paths from it.

    What is deleted and not yet cleaned is left out. The list is made before the first one is yielded, and not
    atomically: what is renamed meanwhile has one name or the other. Times and transactions of what is not yet committed
    are not seen.

    Issues one tree search, and ``BTRFS_IOC_INO_LOOKUP`` once for each directory that contains subvolumes and is not
    itself one. They need ``CAP_SYS_ADMIN``.
    """
    with opened(filesystem) as fd:
        entries = _sweep(fd, top)
    yield from entries


def children(target: Target) -> Iterator[SubvolumeRef]:
    """
    Yield the subvolumes directly below the one that contains *target*, by id.

    Issues ``BTRFS_IOC_GET_SUBVOL_ROOTREF`` (Linux 4.18), which needs no privilege.
    """
    with opened(target) as fd:
        more: int | None = 0
        while more is not None:
            found, more = ioctl.get_subvol_rootref(fd, more)
            for treeid, dirid in found:
                yield SubvolumeRef(treeid, dirid)


def get_child_path(target: Target, child: SubvolumeRef) -> str:
    """
    Return the path of *child* from *target*, the root of the subvolume that `children` found it in.

    Issues ``BTRFS_IOC_INO_LOOKUP_USER`` (Linux 4.18). The caller must be able to read and search *target* and the
    directories in between, except the last one.

    Raises:
        FileNotFoundError: There is no such subvolume any more.
        OSError: ENAMETOOLONG: the path has more than 3,823 bytes; `get_path` finds it.
    """
    with opened(target) as fd:
        name, directory = ioctl.ino_lookup_user(fd, child.dir_id, child.id)
        return os.fsdecode(directory + name)


def wait_deleted(filesystem: Target, subvolid: int, timeout: float | None = None) -> None:
    """
    Wait until the deleted subvolume *subvolid* is cleaned, and nothing is left of it.

    The kernel cleans after a commit and frees the space with the next one: it may take a minute, unless
    `pybtrfs.filesystem.sync` is called for the one and the other.

    Issues ``BTRFS_IOC_SUBVOL_SYNC_WAIT`` (Linux 6.13), which needs no privilege and waits for both. With a *timeout*,
    and on older kernels, the tree of roots is searched ten times a second, which needs ``CAP_SYS_ADMIN`` and shows the
    first only.

    Args:
        timeout: In seconds; None waits for ever.

    Raises:
        FileExistsError: The subvolume is not deleted.
        TimeoutError: It is not cleaned yet.
        ValueError: *subvolid* cannot be that of a subvolume that can be deleted.
    """
    _check_deletable(subvolid)
    with opened(filesystem) as fd:
        if timeout is None:
            try:
                ioctl.subvol_sync_wait(fd, subvolid, ioctl.SUBVOL_SYNC_WAIT_FOR_ONE)
            except OSError as error:
                # ENOENT is also how a wait ends.
                if error.errno == errno.ENOENT:
                    return
                if error.errno != errno.ENOTTY:
                    raise
            else:
                return
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            root, place = _lookup(fd, subvolid)
            if root is None:
                return
            if place is not None:
                raise FileExistsError(errno.EEXIST, "the subvolume is not deleted", filesystem)
            remaining = _POLL_SECONDS if end is None else end - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "the subvolume is not cleaned yet", filesystem)
            time.sleep(min(_POLL_SECONDS, remaining))


def count_deleted(filesystem: Target) -> int:
    """
    Return how many deleted subvolumes wait to be cleaned. The space of those that are is free after the next commit.

    Issues ``BTRFS_IOC_SUBVOL_SYNC_WAIT`` (Linux 6.13), which needs no privilege and leaves out those in which a file is
    open. On older kernels the tree of roots is searched, which needs ``CAP_SYS_ADMIN`` and counts them as well.
    """
    with opened(filesystem) as fd:
        try:
            return ioctl.subvol_sync_wait(fd, 0, ioctl.SUBVOL_SYNC_COUNT)[1]
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
        key = Key(items.ORPHAN_OBJECTID, items.ORPHAN_ITEM_KEY, 0)
        orphans = search(fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=key._replace(offset=MAX))
        return sum(1 for _ in orphans)


def _is_root(fd: int) -> bool:
    return os.fstat(fd).st_ino == FIRST_FREE_OBJECTID and syscall.fstatfs_type(fd) == syscall.BTRFS_SUPER_MAGIC


def _flags(fd: int, target: Target) -> int:
    try:
        return ioctl.subvol_getflags(fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise not_subvolume(target, error) from error
        raise


def _check_deletable(subvolid: int) -> None:
    if not FIRST_FREE_OBJECTID <= subvolid <= items.LAST_FREE_OBJECTID:
        raise ValueError(f"{subvolid!r} is not the id of a subvolume that can be deleted")


def _missing(subvolid: int) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"there is no subvolume {subvolid}")


def _lookup(fd: int, subvolid: int) -> tuple[RootItem | None, _Place | None]:
    """
    Return a subvolume's root, which it has until it is cleaned, and its place, which it has until it is deleted.
    """
    root, place = None, _TOP if subvolid == FS_TREE_OBJECTID else None
    for item in search(
        fd,
        tree_id=ROOT_TREE_OBJECTID,
        min_key=Key(subvolid, items.ROOT_ITEM_KEY, 0),
        max_key=Key(subvolid, items.ROOT_BACKREF_KEY, MAX),
    ):
        if item.type == items.ROOT_ITEM_KEY:
            root = items.root_item(item.data)
        elif item.type == items.ROOT_BACKREF_KEY:
            place = item.offset, items.root_ref(item.data)
    return root, place


def _place(fd: int, subvolid: int) -> _Place:
    _, place = _lookup(fd, subvolid)
    if place is None:
        raise _missing(subvolid)
    return place


def _info(subvolid: int, root: RootItem, parent_id: int, ref: RootRef) -> SubvolumeInfo:
    # From the uuid on the fields are the same.
    own = subvolid, os.fsdecode(ref.name), parent_id, ref.dirid, root.generation, root.flags
    return tuple.__new__(SubvolumeInfo, own + root[9:])


def _directory(fd: int, treeid: int, dirid: int) -> bytes:
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


def _sweep(fd: int, top: int) -> list[SubvolumeEntry]:
    roots: dict[int, bytes] = {}
    places: dict[int, _Place] = {}
    for item in search(
        fd,
        tree_id=ROOT_TREE_OBJECTID,
        min_key=Key(FIRST_FREE_OBJECTID, items.ROOT_ITEM_KEY, 0),
        max_key=Key(items.LAST_FREE_OBJECTID, items.ROOT_BACKREF_KEY, MAX),
    ):
        if item.type == items.ROOT_ITEM_KEY:
            roots[item.objectid] = item.data
        elif item.type == items.ROOT_BACKREF_KEY:
            places[item.objectid] = item.offset, items.root_ref(item.data)

    # With a slash behind; None for what is not below the top.
    paths: dict[int, str | None] = {top: ""}
    directories: dict[tuple[int, int], str | None] = {}

    def place(subvolid: int) -> None:
        # A subvolume may have a larger id than one that it contains. None is also the answer to a loop.
        unplaced = []
        while subvolid not in paths:
            paths[subvolid] = None
            if subvolid not in places:
                return
            unplaced.append(subvolid)
            subvolid, _ = places[subvolid]
        for current in reversed(unplaced):
            parent_id, ref = places[current]
            above = directory(parent_id, ref.dirid)
            if above is None:
                return
            paths[current] = f"{above}{os.fsdecode(ref.name)}/"

    def directory(subvolid: int, dirid: int) -> str | None:
        where = subvolid, dirid
        if where not in directories:
            place(subvolid)
            above = paths[subvolid]
            inside = None if above is None else _directory_if_any(fd, subvolid, dirid)
            directories[where] = None if inside is None else f"{above}{os.fsdecode(inside)}"
        return directories[where]

    entries = []
    for subvolid, data in roots.items():
        if subvolid in places and subvolid != top:
            parent_id, ref = places[subvolid]
            above = directory(parent_id, ref.dirid)
            if above is not None:
                info = _info(subvolid, items.root_item(data), parent_id, ref)
                entries.append(SubvolumeEntry(above + info.name, info))
    return entries


def _directory_if_any(fd: int, treeid: int, dirid: int) -> bytes | None:
    try:
        return _directory(fd, treeid, dirid)
    except FileNotFoundError:
        return None


def _destroy_below_name(dirfd: int, name: bytes) -> None:
    # What is mounted on the name is not what is going to be deleted.
    fd = syscall.openat2(
        dirfd, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_XDEV
    )
    try:
        if not _is_root(fd):
            raise not_subvolume(name)
        _destroy_below(fd, ioctl.ino_lookup(fd, 0, FIRST_FREE_OBJECTID)[0])
    finally:
        os.close(fd)


def _destroy_below(fd: int, subvolid: int) -> None:
    """
    Destroy what the subvolume contains, the innermost first. Each is looked up again right before it is destroyed.
    """
    path = [subvolid]
    unlocked = set()
    while path:
        child = _first_child(fd, path[-1])
        if child is None:
            path.pop()
            continue
        if _first_child(fd, child.id) is not None:
            path.append(child.id)
            continue
        try:
            _destroy_by_id(fd, child.id)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EPERM) and child.id not in unlocked:
                _unlock(fd, path[-1], FIRST_FREE_OBJECTID)
                _unlock(fd, path[-1], child.dir_id)
                _unlock(fd, child.id, FIRST_FREE_OBJECTID)
                unlocked.add(child.id)
            elif error.errno == errno.ENOENT and _first_child(fd, path[-1]) != child:
                pass  # somebody else destroyed it
            elif error.errno != errno.ENOTEMPTY:  # then somebody made one inside, which is found now
                raise


def _first_child(fd: int, subvolid: int) -> SubvolumeRef | None:
    key = Key(subvolid, items.ROOT_REF_KEY, 0)
    for item in search(fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=key._replace(offset=MAX), buffer_size=4096):
        return SubvolumeRef(item.offset, items.root_ref(item.data).dirid)
    return None


def _destroy_by_id(fd: int, subvolid: int) -> None:
    try:
        ioctl.snap_destroy_v2_by_id(fd, subvolid)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.ENAMETOOLONG):
            raise
        parent_id, ref = _place(fd, subvolid)
        directory = _open_inode(fd, parent_id, ref.dirid)
        try:
            ioctl.snap_destroy(directory, ref.name)
        finally:
            os.close(directory)


def _unlock(fd: int, treeid: int, objectid: int) -> None:
    """
    Make a directory such that it can be deleted, and from it: its subvolume writable, itself neither immutable nor
    append-only.
    """
    directory = _open_inode(fd, treeid, objectid)
    try:
        if objectid == FIRST_FREE_OBJECTID:
            ioctl.subvol_setflags(directory, ioctl.subvol_getflags(directory) & ~SUBVOL_RDONLY)
        flags = ioctl.getflags(directory)
        if flags & (ioctl.FS_IMMUTABLE_FL | ioctl.FS_APPEND_FL):
            ioctl.setflags(directory, flags & ~(ioctl.FS_IMMUTABLE_FL | ioctl.FS_APPEND_FL))
    finally:
        os.close(directory)


def _open_inode(fd: int, treeid: int, objectid: int) -> int:
    """
    Return a file descriptor of a directory, found without following any path.
    """
    key = Key(objectid, items.INODE_ITEM_KEY, 0)
    item = next(search(fd, tree_id=treeid, min_key=key, max_key=key), None)
    if item is None:
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {objectid} in subvolume {treeid}")
    generation = items.inode_item(item.data).generation
    return syscall.open_by_handle_at(fd, treeid, objectid, generation, os.O_RDONLY | os.O_DIRECTORY)


def _uuid(value: bytes) -> UUID | None:
    from uuid import UUID

    return UUID(bytes=value) if any(value) else None


def _datetime(nanoseconds: int) -> datetime:
    from datetime import UTC, datetime, timedelta

    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
