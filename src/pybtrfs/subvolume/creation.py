"""
Making subvolumes and snapshots.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pybtrfs import ioctl
from pybtrfs.errors import not_subvolume
from pybtrfs.ioctl import SUBVOL_RDONLY, Inherit
from pybtrfs.path import Destination, Target, at, opened
from pybtrfs.qgroup import QgroupInherit
from pybtrfs.subvolume.deletion import delete, destroy
from pybtrfs.subvolume.info import get_id, is_root, set_read_only
from pybtrfs.subvolume.listing import children, get_child_path, open_beneath, open_child


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
    at(dest, ioctl.subvol_create_v2, inherit)


def snapshot(
    source: Target,
    dest: Destination,
    *,
    read_only: bool = False,
    recursive: bool = False,
    inherit: QgroupInherit | None = None,
) -> None:
    """
    Create a snapshot of the subvolume *source* at *dest*.

    The snapshot is atomic, shares all extents, contains all that was written to *source* before, and is on disk when
    this returns. Subvolumes nested in *source* appear in it as empty directories. Data that the disk refused is missing
    without an error: `pybtrfs.syscall.syncfs` afterwards tells.

    Issues ``BTRFS_IOC_SNAP_CREATE_V2``. The caller must own *source* or have ``CAP_FOWNER``, and be able to write to
    the directory of *dest*. Snapshots into one directory wait for each other.

    Args:
        recursive: Make snapshots of the subvolumes nested in *source* too, each in the place of its empty directory.
            This is not atomic: each is of a moment of its own, those created or moved meanwhile may be missing, and
            after an error some are made, and writable. The caller must be able to read and search *source*, and must
            own what is nested in it. It needs Linux 5.6.
        inherit: As in `create`; for each of them.

    Raises:
        FileExistsError: *dest* exists.
        NotSubvolumeError: *source* is not the root of a subvolume.
        OSError: EXDEV: *source* and *dest* are on different filesystems, or something is mounted on a nested one.
            ETXTBSY: *source* holds an active swapfile.
    """
    flags = SUBVOL_RDONLY if read_only and not recursive else 0

    def make(dirfd: int, name: bytes) -> None:
        try:
            ioctl.snap_create_v2(source_fd, dirfd, name, flags, inherit)
        except OSError as error:
            if error.errno == errno.EINVAL and not is_root(source_fd):
                raise not_subvolume(source, error) from error
            if error.errno != errno.ENOTTY:
                error.filename, error.filename2 = source, dest if not isinstance(dest, tuple) else dest[1]
            raise
        if recursive:
            made = open_beneath(dirfd, name)
            try:
                snapshot_below(source_fd, made, get_id(made), inherit)
                if read_only:
                    _make_read_only(made)
            finally:
                os.close(made)

    with opened(source) as source_fd:
        at(dest, make)


@contextmanager
def temporary_snapshot(source: Target, directory: str | os.PathLike[str], *, read_only: bool = True) -> Iterator[str]:
    """
    Make a snapshot of the subvolume *source* in *directory*, under a name of its own, and yield its path; it and the
    subvolumes made in it meanwhile are deleted afterwards, whatever happens.

    The privileges and errors are those of `snapshot` and `delete`. A process that is killed leaves the snapshot behind.
    """
    name = f"snapshot-{os.urandom(8).hex()}"
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        snapshot(source, (fd, name), read_only=read_only)
        try:
            yield os.path.join(directory, name)
        finally:
            _discard(fd, name)
    finally:
        os.close(fd)


class Batch:
    """
    What `batch` yields: creates and deletes subvolumes without waiting for the disk.
    """

    def __init__(self) -> None:
        self._changed = -1

    def create(self, dest: Destination, *, inherit: QgroupInherit | None = None) -> None:
        """
        Create an empty subvolume, as the function of the same name.
        """
        at(dest, self._change, ioctl.subvol_create_v2, inherit)

    def delete(self, dest: Destination, *, recursive: bool = False) -> None:
        """
        Delete a subvolume, as the function of the same name.
        """
        at(dest, self._change, destroy, recursive)

    def _change(self, dirfd: int, name: bytes, change: Callable[..., None], argument: object) -> None:
        change(dirfd, name, argument)
        # The directory changed last is in the last transaction, and those before it are on disk by then.
        if self._changed < 0:
            self._changed = os.dup(dirfd)
        elif not os.path.sameopenfile(self._changed, dirfd):
            os.dup2(dirfd, self._changed, inheritable=False)

    def _commit(self) -> None:
        if self._changed >= 0:
            os.fsync(self._changed)

    def _close(self) -> None:
        if self._changed >= 0:
            os.close(self._changed)


@contextmanager
def batch() -> Iterator[Batch]:
    """
    Yield what creates and deletes many subvolumes, and at the end put all of it on disk at once.

    This is not atomic: a crash before the end, or an exception, leaves some of it done, and what is done perhaps not on
    disk. All subvolumes must be on one filesystem.

    Issues fsync(2) of the directory changed last, which commits.
    """
    made = Batch()
    try:
        yield made
        made._commit()
    finally:
        made._close()


def snapshot_below(source_fd: int, made_fd: int, made_id: int, inherit: Inherit | None) -> None:
    """
    Put snapshots of what is nested in a subvolume into the snapshot *made_id* of it, or below.
    """
    for child in children(source_fd):
        if child.id == made_id:
            continue  # the snapshot itself, inside its source
        try:
            path = get_child_path(source_fd, child)
            child_fd = open_child(source_fd, path, child)
        except FileNotFoundError:
            continue  # deleted or moved meanwhile
        try:
            head, tail = os.path.split(path)
            directory = open_beneath(made_fd, head or ".")
            try:
                os.rmdir(tail, dir_fd=directory)
                ioctl.snap_create_v2(child_fd, directory, os.fsencode(tail), 0, inherit)
                copy_fd = open_beneath(directory, tail)
            finally:
                os.close(directory)
            try:
                snapshot_below(child_fd, copy_fd, made_id, inherit)
            finally:
                os.close(copy_fd)
        finally:
            os.close(child_fd)


def _make_read_only(fd: int) -> None:
    for child in children(fd):
        child_fd = open_child(fd, get_child_path(fd, child), child)
        try:
            _make_read_only(child_fd)
        finally:
            os.close(child_fd)
    set_read_only(fd)


def _discard(dirfd: int, name: str) -> None:
    try:
        delete((dirfd, name))
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            delete((dirfd, name), recursive=True)
        elif error.errno == errno.EROFS:
            # Only root may delete a read-only one as it is.
            made = open_beneath(dirfd, name)
            try:
                set_read_only(made, False, clear_received=True)
            finally:
                os.close(made)
            delete((dirfd, name))
        else:
            raise
