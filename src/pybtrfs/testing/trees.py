"""
Copies and removal of directory trees, for filesystems without snapshots.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def file_id(status: os.stat_result) -> tuple[int, int]:
    """
    Return the device and inode number, which identify a file.
    """
    return status.st_dev, status.st_ino


def _everything_copied(_: str) -> bool:
    return False


def copy_tree(source: str, target: str, is_nested: Callable[[str], bool] = _everything_copied) -> None:
    """
    Copy the directory *source* to *target*.

    The copy has files of every type, with their modes, times and extended attributes, and keeps hard links. It keeps
    owners as far as the process may set them. A failure leaves nothing of *target*.

    Args:
        is_nested: Return true for the path of a directory in *source* that becomes an empty directory.

    Raises:
        FileExistsError: *target* exists.
    """
    os.mkdir(target)
    made = file_id(os.lstat(target))
    links: dict[tuple[int, int], str] = {}

    def copy(source: str, target: str) -> None:
        status = os.lstat(source)
        if file_id(status) == made:
            return  # *target* is inside *source*, and a copy of it would never end
        if first := links.get(file_id(status)):
            os.link(first, target, follow_symlinks=False)
            return
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(target)
            if not is_nested(source):
                copy_all(source, target)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), target)
        elif stat.S_ISREG(status.st_mode):
            shutil.copyfile(source, target)
        else:
            os.mknod(target, status.st_mode, status.st_rdev)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            links[file_id(status)] = target
        _copy_status(source, status, target)

    def copy_all(source: str, target: str) -> None:
        for name in os.listdir(source):
            copy(os.path.join(source, name), os.path.join(target, name))

    try:
        copy_all(source, target)
        _copy_status(source, os.lstat(source), target)
    except BaseException:
        remove_tree(target)
        raise


def _copy_status(source: str, status: os.stat_result, target: str) -> None:
    try:
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    except OSError as error:
        # EINVAL: the user namespace does not map the owner.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
    shutil.copystat(source, target, follow_symlinks=False)


def remove_tree(path: str) -> None:
    """
    Remove the directory *path* and its contents, including directories that their owner may not write to.

    Raises:
        FileNotFoundError: *path* does not exist.
    """
    try:
        shutil.rmtree(path)
    except PermissionError:
        os.chmod(path, 0o700)
        for directory, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(os.path.join(directory, name)):
                    os.chmod(os.path.join(directory, name), 0o700)
        shutil.rmtree(path)
