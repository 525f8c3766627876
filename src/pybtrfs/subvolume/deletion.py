"""
Deletion of subvolumes, and the deleted subvolumes that the kernel has not cleaned yet.
"""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import ioctl, items, syscall
from pybtrfs.errors import not_subvolume
from pybtrfs.ioctl import FIRST_FREE_OBJECTID, SUBVOL_RDONLY
from pybtrfs.items import FS_TREE_OBJECTID, ROOT_TREE_OBJECTID, DropProgress, Key
from pybtrfs.path import Destination, Target, at, open_beneath, opened, owned
from pybtrfs.subvolume.emptying import unlink_subvolume
from pybtrfs.subvolume.info import is_deleted, is_root, lookup, lookup_root
from pybtrfs.subvolume.listing import SubvolumeRef, open_inode, references
from pybtrfs.tree_search import MAX, search

if TYPE_CHECKING:
    from collections.abc import Generator

_POLL_SECONDS = 0.1


class DeletedSubvolume(NamedTuple):
    """
    A deleted subvolume that the kernel has not cleaned yet.

    Attributes:
        bytes_used: The size of its tree, in bytes; file data is not included, except inline data.
        progress: The part of the tree that the kernel has freed.
    """

    id: int
    generation: int
    uuid_bytes: bytes
    bytes_used: int
    progress: DropProgress


def delete(dest: Destination, *, recursive: bool = False, unlink: bool = False) -> None:
    """
    Delete the subvolume *dest* with everything in it. The kernel frees its space later; see `wait_deleted`.

    The kernel does not refuse a subvolume in use: open files stay readable, and mounts of it are detached. The deletion
    is not durable when this returns; call os.fsync on the directory that contained it.

    Issues ``BTRFS_IOC_SNAP_DESTROY``. The caller must have ``CAP_SYS_ADMIN``, or own the subvolume on a filesystem that
    is mounted with ``user_subvol_rm_allowed``. Without ``CAP_SYS_ADMIN``, a read-only subvolume is refused.

    Args:
        recursive: First delete all nested subvolumes one by one, also read-only, immutable and append-only ones. This
            uses tree searches and deletion by id, which need ``CAP_SYS_ADMIN`` and Linux 5.6. It is not atomic: an
            error leaves some subvolumes deleted and some writable.
        unlink: If the caller lacks ``CAP_SYS_ADMIN``, make the subvolume writable, which also clears its received uuid.
            If the kernel still refuses the ioctl, delete the files one by one, and the empty subvolume by rmdir(2)
            (Linux 5.6). The caller must own the subvolume and its directories. This takes time for each file, and is
            not atomic: an error leaves the subvolume writable and partly deleted. Nothing outside of the subvolume is
            deleted: symlinks are not followed, and a mount inside is EBUSY. With *recursive*, nested subvolumes are
            deleted in the same way, each when its directory is reached.

    Raises:
        NotSubvolumeError: *dest* is a directory, but not the root of a subvolume.
        PermissionError: The caller lacks the privilege, and *unlink* is false or does not suffice. With *unlink*, also
            an immutable or append-only file, an active swap file, or the default subvolume, which is empty then.
        OSError: ENOTEMPTY: the subvolume contains subvolumes. EROFS: the subvolume that contains it is read-only, or
            *unlink* is false and the subvolume is read-only. EXDEV: *recursive* or *unlink* is true, and something is
            mounted on the subvolume. EBUSY: *unlink* is true, and something is mounted inside.
    """
    at(dest, partial(delete_at, recursive=recursive, unlink=unlink))


def delete_by_id(filesystem: Target, subvolid: int, *, recursive: bool = False) -> None:
    """
    Delete the subvolume *subvolid*, also outside of the mounted tree; otherwise as `delete` without *unlink*.

    Issues ``BTRFS_IOC_SNAP_DESTROY_V2`` (Linux 5.7). The kernel refuses this through an idmapped mount, and if the path
    exceeds 4,095 bytes. Then, and on older kernels, opens the containing directory by its inode number and deletes the
    subvolume by its name. This needs ``CAP_DAC_READ_SEARCH``.

    Raises:
        FileNotFoundError: The subvolume does not exist.
        ValueError: *subvolid* is not an id that a deletable subvolume can have.
    """
    _check_deletable(subvolid)
    with opened(filesystem) as fd:
        try:
            if recursive:
                _destroy_below(fd, subvolid)
            _destroy_by_id(fd, subvolid)
        except OSError as error:
            if _lacks_privilege(fd, error):
                error.add_note("only `delete`, by path, has unlink=True, which needs no CAP_SYS_ADMIN")
            raise


def wait_deleted(filesystem: Target, subvolid: int, timeout: float | None = None) -> None:
    """
    Wait until the kernel has cleaned the deleted subvolume *subvolid*.

    The kernel cleans after a commit and frees the space with the next commit, which may take a minute. Call
    `pybtrfs.filesystem.sync` before and after the cleaning to speed it up.

    Issues ``BTRFS_IOC_SUBVOL_SYNC_WAIT`` (Linux 6.13), which needs no privilege and waits for both commits. With a
    *timeout*, or on older kernels, searches the root tree ten times a second instead. The search needs
    ``CAP_SYS_ADMIN`` and does not wait for the second commit. Through a read-only mount, it must confirm the ioctl.

    Args:
        timeout: In seconds; None waits without a limit.

    Raises:
        FileExistsError: The subvolume is not deleted.
        TimeoutError: The subvolume is not cleaned in time.
        OSError: EROFS: the filesystem is read-only, so that the kernel does not clean.
        ValueError: *subvolid* is not an id that a deletable subvolume can have.
    """
    _check_deletable(subvolid)
    with opened(filesystem) as fd:
        if timeout is None and _waited(fd, subvolid):
            if not os.fstatvfs(fd).f_flag & syscall.ST_RDONLY or lookup_root(fd, subvolid) is None:
                return
            raise OSError(errno.EROFS, f"subvolume {subvolid} is not cleaned: the filesystem is read-only", filesystem)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            found = lookup_root(fd, subvolid)
            if found is None:
                return
            if not is_deleted(found):
                raise FileExistsError(errno.EEXIST, f"subvolume {subvolid} is not deleted", filesystem)
            remaining = _POLL_SECONDS if end is None else end - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"subvolume {subvolid} is not cleaned yet", filesystem)
            time.sleep(min(_POLL_SECONDS, remaining))


def _waited(fd: int, subvolid: int) -> bool:
    """
    Return whether the kernel has the ioctl that waits, after the wait.
    """
    try:
        ioctl.subvol_sync_wait(fd, subvolid, ioctl.SUBVOL_SYNC_WAIT_FOR_ONE)
    except OSError as error:
        # A successful wait ends with ENOENT, too. So does each wait on a read-only filesystem.
        if error.errno not in (errno.ENOENT, errno.ENOTTY):
            raise
        return error.errno == errno.ENOENT
    return True


def count_deleted(filesystem: Target) -> int:
    """
    Return the number of deleted subvolumes that the kernel has not cleaned yet.

    Issues ``BTRFS_IOC_SUBVOL_SYNC_WAIT`` (Linux 6.13), which needs no privilege. It counts neither subvolumes with open
    files, nor any on a filesystem that was mounted read-only. On older kernels searches the root tree, which needs
    ``CAP_SYS_ADMIN`` and counts all.
    """
    with opened(filesystem) as fd:
        try:
            return ioctl.subvol_sync_wait(fd, 0, ioctl.SUBVOL_SYNC_COUNT)[1]
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
        return sum(1 for _ in _orphans(fd))


def iterate_deleted(filesystem: Target) -> Generator[DeletedSubvolume, None, None]:
    """
    Yield the deleted subvolumes that the kernel has not cleaned yet, by id.

    The kernel records its progress when it starts a transaction, and never for small subvolumes. The listing is not
    atomic: a subvolume that is cleaned concurrently may be listed or not.

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


def _orphans(fd: int) -> Generator[int, None, None]:
    key = Key(items.ORPHAN_OBJECTID, items.ORPHAN_ITEM_KEY, 0)
    for item in search(fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=key._replace(offset=MAX)):
        yield item.offset


def _check_deletable(subvolid: int) -> None:
    if not FIRST_FREE_OBJECTID <= subvolid <= items.LAST_FREE_OBJECTID:
        raise ValueError(f"{subvolid!r} is not the id of a subvolume that can be deleted")


def delete_at(dirfd: int, name: bytes, *, recursive: bool, unlink: bool) -> None:
    """
    Delete the subvolume *name* in an open directory, as `delete` does.
    """
    try:
        if recursive:
            _destroy_tree(dirfd, name)
        else:
            _destroy(dirfd, name)
    except OSError as error:
        error.filename = None  # the caller's own argument takes its place
        if not _lacks_privilege(dirfd, error):
            raise
        if not unlink:
            error.add_note("with unlink=True its owner deletes it without CAP_SYS_ADMIN, if necessary file by file")
            raise
        unlink_subvolume(dirfd, name, recursive=recursive)


def _lacks_privilege(fd: int, error: OSError) -> bool:
    """
    Return whether the kernel may have refused a deletion because the caller lacks ``CAP_SYS_ADMIN``.
    """
    if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS):
        return False
    try:
        lookup_root(fd, FS_TREE_OBJECTID)
    except OSError as refusal:
        return refusal.errno == errno.EPERM
    return False


def _destroy_tree(dirfd: int, name: bytes) -> None:
    # If something is mounted on the name, opening it yields the mounted filesystem, not the subvolume to delete.
    # `open_beneath` refuses that.
    with owned(open_beneath(dirfd, name)) as fd:
        if not is_root(fd):
            raise not_subvolume(name)
        _destroy_below(fd, ioctl.ino_lookup_treeid(fd))
    _destroy(dirfd, name)


def _destroy(dirfd: int, name: bytes) -> None:
    try:
        ioctl.snap_destroy(dirfd, name)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise not_subvolume(name, error) from error
        raise


def _destroy_below(fd: int, subvolid: int) -> None:
    """
    Destroy the subvolumes nested in *subvolid*, innermost first.

    Each is looked up again right before its destruction, because other processes may create and delete subvolumes.
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
                pass  # deleted concurrently
            elif error.errno != errno.ENOTEMPTY:
                raise
            # After ENOTEMPTY the next round finds the subvolume that another process created inside.


def _first_child(fd: int, subvolid: int) -> SubvolumeRef | None:
    return next(references(fd, subvolid), None)


def _destroy_by_id(fd: int, subvolid: int) -> None:
    try:
        ioctl.snap_destroy_v2_by_id(fd, subvolid)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.ENAMETOOLONG, errno.EOPNOTSUPP):
            raise
        found = lookup(fd, subvolid)
        with owned(open_inode(fd, found.parent_id, found.dirid)) as directory:
            ioctl.snap_destroy(directory, found.name)


def _unlock(fd: int, treeid: int, objectid: int) -> None:
    """
    Clear the flags that keep a directory and its entries from being deleted: immutable, append-only and, for the root
    of a subvolume, read-only.
    """
    with owned(open_inode(fd, treeid, objectid)) as directory:
        if objectid == FIRST_FREE_OBJECTID:
            ioctl.subvol_setflags(directory, ioctl.subvol_getflags(directory) & ~SUBVOL_RDONLY)
        flags = ioctl.getflags(directory)
        if flags & (ioctl.FS_IMMUTABLE_FL | ioctl.FS_APPEND_FL):
            ioctl.setflags(directory, flags & ~(ioctl.FS_IMMUTABLE_FL | ioctl.FS_APPEND_FL))
