"""
Deleting subvolumes, and what becomes of them until the kernel has cleaned them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from pybtrfs import ioctl, items, syscall
from pybtrfs.errors import not_subvolume
from pybtrfs.ioctl import FIRST_FREE_OBJECTID, SUBVOL_RDONLY
from pybtrfs.items import ROOT_TREE_OBJECTID, DropProgress, Key
from pybtrfs.path import Destination, Target, at, opened
from pybtrfs.subvolume.info import is_deleted, is_root, lookup, lookup_root
from pybtrfs.subvolume.listing import SubvolumeRef, open_beneath
from pybtrfs.tree_search import MAX, search

_POLL_SECONDS = 0.1


class DeletedSubvolume(NamedTuple):
    """
    A subvolume that is deleted and not yet cleaned.

    Attributes:
        bytes_used: What its tree had, in bytes; of files only the smallest are in the tree.
        progress: How far the kernel has freed the tree.
    """

    id: int
    generation: int
    uuid_bytes: bytes
    bytes_used: int
    progress: DropProgress


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
    at(dest, destroy, recursive)


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
            found = lookup_root(fd, subvolid)
            if found is None:
                return
            if not is_deleted(found):
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
        return sum(1 for _ in _orphans(fd))


def iterate_deleted(filesystem: Target) -> Iterator[DeletedSubvolume]:
    """
    Yield the subvolumes that are deleted and not yet cleaned, by id, with how far the kernel is.

    The kernel notes its progress when it begins a transaction, and for small subvolumes never. The listing is not
    atomic: what is cleaned meanwhile is listed or not.

    Issues tree searches, which need ``CAP_SYS_ADMIN``.
    """
    with opened(filesystem) as fd:
        for subvolid in _orphans(fd):
            key = Key(subvolid, items.ROOT_ITEM_KEY, 0)
            for item in search(fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=key._replace(offset=MAX)):
                root = items.root_item(item.data)
                yield DeletedSubvolume(
                    subvolid, root.generation, root.uuid, root.bytes_used, items.drop_progress(item.data)
                )


def _orphans(fd: int) -> Iterator[int]:
    key = Key(items.ORPHAN_OBJECTID, items.ORPHAN_ITEM_KEY, 0)
    for item in search(fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=key._replace(offset=MAX)):
        yield item.offset


def _check_deletable(subvolid: int) -> None:
    if not FIRST_FREE_OBJECTID <= subvolid <= items.LAST_FREE_OBJECTID:
        raise ValueError(f"{subvolid!r} is not the id of a subvolume that can be deleted")


def destroy(dirfd: int, name: bytes, recursive: bool) -> None:
    """
    Delete a subvolume, as `delete`, but let errors be explained by the caller, who has the directory open.
    """
    if recursive:
        # What is mounted on the name is not what is going to be deleted.
        fd = open_beneath(dirfd, name)
        try:
            if not is_root(fd):
                raise not_subvolume(name)
            _destroy_below(fd, ioctl.ino_lookup(fd, 0, FIRST_FREE_OBJECTID)[0])
        finally:
            os.close(fd)
    try:
        ioctl.snap_destroy(dirfd, name)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise not_subvolume(name, error) from error
        raise


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
        found = lookup(fd, subvolid)
        directory = _open_inode(fd, found.parent_id, found.dirid)
        try:
            ioctl.snap_destroy(directory, found.name)
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
