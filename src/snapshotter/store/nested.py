"""
Subvolumes nested in an active snapshot. A snapshot of the snapshot has an empty directory in place of each.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import closing

from pybtrfs import ioctl, subvolume
from pybtrfs.path import open_beneath, open_directory, owned
from pybtrfs.subvolume import SubvolumeRef
from pybtrfs.subvolume.info import directory_path
from pybtrfs.subvolume.listing import open_inode, open_reference, walk
from snapshotter.errors import FailedPreconditionError

FROZEN_FLAGS = ioctl.FS_IMMUTABLE_FL | ioctl.FS_APPEND_FL


def change_times(fd: int) -> Iterator[int]:
    """
    Yield numbers that change whenever a subvolume nested in *fd* does, at any depth; nothing if there is none.

    The change time of the root is used, because the generation of a new subvolume stays the same in its first
    transaction.
    """
    try:
        with closing(walk(fd, unreachable=())) as found:
            for child, _, child_fd in found:
                yield child.id
                yield ioctl.get_subvol_info(child_fd).ctime
    except OSError:
        yield time.monotonic_ns()  # a subvolume cannot be opened, so it may have changed


def find_empty(fd: int) -> list[SubvolumeRef]:
    """
    Return the children of the subvolume *fd*, all of which must be empty.

    Raises:
        FailedPreconditionError: A nested subvolume is not empty.
    """
    found = []
    for child in subvolume.children(fd):
        with owned(open_reference(fd, child)) as child_fd:
            if os.listdir(child_fd):
                raise FailedPreconditionError(
                    f"the content of the nested subvolume {_path(fd, child)!r} would be lost: "
                    "delete the subvolume, or copy it to a directory"
                )
        found.append(child)
    return found


def flatten(fd: int, copy_fd: int, children: list[SubvolumeRef]) -> None:
    """
    Replace the stubs of nested subvolumes in the snapshot *copy_fd* of *fd* by directories.

    In place of each nested subvolume, a snapshot has an empty directory in which nothing can be created.

    Args:
        children: The nested subvolumes, all of which are empty.
    """
    for child in children:
        parent_fd, name = _open_parent(fd, copy_fd, child)
        with owned(parent_fd), owned(open_reference(fd, child)) as original_fd:
            times = os.fstat(parent_fd)
            # The directory may be immutable or append-only, which the copy inherits.
            flags = ioctl.getflags(parent_fd)
            if flags & FROZEN_FLAGS:
                ioctl.setflags(parent_fd, flags & ~FROZEN_FLAGS)
            _replace(parent_fd, name, original_fd)
            os.utime(parent_fd, ns=(times.st_atime_ns, times.st_mtime_ns))
            if flags & FROZEN_FLAGS:
                ioctl.setflags(parent_fd, flags)


def _open_parent(fd: int, copy_fd: int, child: SubvolumeRef) -> tuple[int, str]:
    """
    Open the directory in *copy_fd* that has the stub of *child*, and return its file descriptor and the stub's name.
    """
    try:
        # A snapshot has the inode numbers of its source.
        return open_inode(copy_fd, subvolume.get_id(copy_fd), child.dir_id), subvolume.get_info(fd, child.id).name
    except PermissionError:
        parent, name = os.path.split(subvolume.get_child_path(fd, child))
        return open_beneath(copy_fd, parent, cross_mounts=True), name


def _replace(parent_fd: int, name: str, original_fd: int) -> None:
    status = os.fstat(original_fd)
    os.rmdir(name, dir_fd=parent_fd)
    os.mkdir(name, dir_fd=parent_fd)
    with owned(open_directory(parent_fd, name)) as new_fd:
        os.fchown(new_fd, status.st_uid, status.st_gid)
        os.fchmod(new_fd, status.st_mode & 0o7777)
        for attribute in os.listxattr(original_fd):
            os.setxattr(new_fd, attribute, os.getxattr(original_fd, attribute))
        os.utime(new_fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _path(fd: int, child: SubvolumeRef) -> str:
    try:
        return subvolume.get_child_path(fd, child)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    info = subvolume.get_info(fd, child.id)
    return os.fsdecode(directory_path(fd, info.parent_id, child.dir_id)) + info.name
