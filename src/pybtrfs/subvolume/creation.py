"""
Creation of subvolumes and snapshots.
"""

from __future__ import annotations

import errno
import os
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pybtrfs import ioctl, qgroup
from pybtrfs.errors import not_subvolume
from pybtrfs.ioctl import SUBVOL_RDONLY, Inherit
from pybtrfs.path import Destination, Target, at, open_beneath, open_in_pieces, opened, owned
from pybtrfs.subvolume.deletion import delete, delete_at
from pybtrfs.subvolume.info import get_id, is_root, set_read_only
from pybtrfs.subvolume.listing import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def create(dest: Destination, *, inherit: qgroup.QgroupInherit | None = None) -> None:
    """
    Create an empty subvolume at *dest*.

    The subvolume is not durable when this returns; call os.fsync on its directory.

    Issues ``BTRFS_IOC_SUBVOL_CREATE_V2``. The caller must be able to write to the directory.

    Args:
        inherit: The qgroups that the subvolume joins, and its limits. Quotas must be enabled and not be rescanned.

    Raises:
        FileExistsError: *dest* exists.
        FileNotFoundError: The directory of *dest*, or a qgroup of *inherit*, does not exist.
    """
    at(dest, ioctl.subvol_create_v2, inherit)


def snapshot(
    source: Target,
    dest: Destination,
    *,
    read_only: bool = False,
    recursive: bool = False,
    inherit: qgroup.QgroupInherit | None = None,
) -> None:
    """
    Create a snapshot of the subvolume *source* at *dest*.

    The snapshot is atomic, shares all extents, contains everything written to *source* before, and is durable when this
    returns. Subvolumes nested in *source* appear in it as empty directories. Data that the disk refused is missing
    without an error; `pybtrfs.syscall.syncfs` afterwards reports it.

    Issues ``BTRFS_IOC_SNAP_CREATE_V2``. The caller must own *source* or have ``CAP_FOWNER``, and be able to write to
    the directory of *dest*. Concurrent snapshots into one directory wait for each other.

    Args:
        recursive: Snapshot the subvolumes nested in *source* too, each in the place of its empty directory. This is not
            atomic: each snapshot has its own moment, subvolumes created or moved concurrently may be missing, and an
            error leaves some snapshots behind, writable. The caller must be able to read and search *source*, and own
            all nested subvolumes. Needs Linux 5.6.
        inherit: As in `create`, for each snapshot.

    Raises:
        FileExistsError: *dest* exists.
        NotSubvolumeError: *source* is not the root of a subvolume.
        OSError: EXDEV: *source* and *dest* are on different filesystems, or something is mounted on a nested subvolume.
            ETXTBSY: *source* has an active swap file.
    """
    flags = SUBVOL_RDONLY if read_only and not recursive else 0

    named = dest[1] if isinstance(dest, tuple) else dest

    def make(dirfd: int, name: bytes) -> None:
        ioctl.snap_create_v2(source_fd, dirfd, name, flags, inherit)
        if recursive:
            with owned(open_beneath(dirfd, name)) as made:
                snapshot_below(source_fd, made, get_id(made), inherit)
                if read_only:
                    _make_read_only(made)

    with opened(source) as source_fd:
        try:
            at(dest, make)
        except OSError as error:
            if error.errno == errno.EINVAL:
                if not is_root(source_fd):
                    raise not_subvolume(source, error) from error
                ioctl.subvol_getflags(source_fd)  # raises EBADF, where the kernel says EINVAL for an O_PATH descriptor
            if error.errno != errno.ENOTTY:
                if error.filename is not named:
                    error.add_note(f"at {os.fsdecode(error.filename)!r} below it")
                error.filename, error.filename2 = source, named
            raise


@contextmanager
def temporary_snapshot(source: Target, directory: str | os.PathLike[str], *, read_only: bool = True) -> Iterator[str]:
    """
    Create a snapshot of the subvolume *source* in *directory*, under a random name, and yield its path.

    At the end the snapshot and all subvolumes created in it are deleted, also after an exception. A killed process
    leaves the snapshot behind. Privileges and errors are those of `snapshot` and of `delete` with *unlink*, so the
    owner needs no privilege.
    """
    name = f"snapshot-{os.urandom(8).hex()}"
    path = os.path.join(directory, name)
    with owned(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        with _named(name, path):
            snapshot(source, (fd, name), read_only=read_only)
        try:
            yield path
        finally:
            with _named(name, path):
                delete((fd, name), recursive=True, unlink=True)


@contextmanager
def _named(name: str, path: str) -> Iterator[None]:
    """
    Replace *name* by *path* in an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.filename == name:
            error.filename = path
        elif error.filename2 == name:
            error.filename2 = path
        raise


class Batch:
    """
    Creates and deletes subvolumes without waiting for the disk; see `batch`.
    """

    def __init__(self) -> None:
        self._changed = -1

    def create(self, dest: Destination, *, inherit: qgroup.QgroupInherit | None = None) -> None:
        """
        Create an empty subvolume, as `pybtrfs.subvolume.create` does.
        """
        at(dest, self._change, ioctl.subvol_create_v2, inherit)

    def delete(self, dest: Destination, *, recursive: bool = False, unlink: bool = False) -> None:
        """
        Delete a subvolume, as `pybtrfs.subvolume.delete` does.
        """
        at(dest, self._change, partial(delete_at, recursive=recursive, unlink=unlink))

    def _change(self, dirfd: int, name: bytes, change: Callable[..., None], *arguments: object) -> None:
        change(dirfd, name, *arguments)
        # The last changed directory is in the last transaction, whose commit makes all earlier changes durable too.
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
    Yield a `Batch`, and make all its changes durable with one commit at the end.

    This is not atomic: a crash or an exception before the end keeps some changes, which may not be durable. All
    subvolumes must be on one filesystem.

    Issues fsync(2) of the directory that was changed last.
    """
    made = Batch()
    try:
        yield made
        made._commit()
    finally:
        made._close()


def snapshot_below(source_fd: int, made_fd: int, made_id: int, inherit: Inherit | None) -> None:
    """
    Snapshot the subvolumes nested in *source_fd* into its snapshot *made_fd*.

    Args:
        made_id: The id of the outermost snapshot, which may be inside its own source and is skipped there.
    """
    # ENOENT: deleted or moved concurrently
    with closing(walk(source_fd, unreachable=(errno.ENOENT,), without=made_id)) as found:
        for _, path, child_fd in found:
            head, tail = os.path.split(path)
            with owned(open_in_pieces(made_fd, head)) as directory:
                os.rmdir(tail, dir_fd=directory)
                ioctl.snap_create_v2(child_fd, directory, os.fsencode(tail), 0, inherit)


def _make_read_only(fd: int) -> None:
    with closing(walk(fd, unreachable=())) as found:
        for _, _, child_fd in found:
            set_read_only(child_fd)
    set_read_only(fd)
