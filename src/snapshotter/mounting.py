"""
Mounting of snapshots: the mount(2) and umount2(2) calls, which `Snapshotter` leaves to its callers.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

from pybtrfs import filesystem, subvolume, syscall
from pybtrfs.errors import NotBtrfsError, NotSubvolumeError
from pybtrfs.path import owned
from snapshotter.errors import FailedPreconditionError, NotFoundError
from snapshotter.model import Mount
from snapshotter.store.layout import SNAPSHOTS

_FLAGS = {"ro": syscall.MS_RDONLY, "rw": 0, "bind": syscall.MS_BIND, "rbind": syscall.MS_BIND | syscall.MS_REC}
_MAPS = ("uidmap", "gidmap")


def mount(mounts: Iterable[Mount], target: str | os.PathLike[str]) -> None:
    """
    Mount *mounts* at the directory *target*, each on top of the previous mount; all or none.

    Needs ``CAP_SYS_ADMIN``. Mounts with mapped ids need Linux 5.15.
    """
    with contextlib.ExitStack() as undo:
        for item in mounts:
            point = os.path.join(target, item.target) if item.target else os.fspath(target)
            _mount(item, point)
            undo.callback(syscall.umount2, point)
        undo.pop_all()


def _mount(item: Mount, point: str) -> None:
    flags = 0
    maps, data = {}, []
    for option in item.options:
        name, _, value = option.partition("=")
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif name in _MAPS:
            maps[name] = value.replace(":", " ").replace(",", "\n")
        else:
            data.append(option)
    try:
        syscall.mount(item.source, point, item.type, flags, ",".join(data))
    except FileNotFoundError as error:
        # The kernel answers the same for a missing source and a missing mount point, and the error names the latter.
        if not os.path.exists(point):
            raise
        raise FileNotFoundError(errno.ENOENT, "the source of the mount does not exist", item.source) from error
    try:
        if flags & syscall.MS_BIND and flags & syscall.MS_RDONLY:
            # The kernel ignores MS_RDONLY in the call that creates a bind mount.
            syscall.mount("", point, "", syscall.MS_REMOUNT | syscall.MS_BIND | syscall.MS_RDONLY)
        if maps:
            _map_ids(point, *(maps[name] for name in _MAPS))
    except BaseException:
        with contextlib.suppress(OSError):
            syscall.umount2(point)
        raise


def _map_ids(point: str, uid_map: str, gid_map: str) -> None:
    """
    Replace the mount at *point* by a copy with mapped ids, because the kernel maps only a mount that is not attached.
    """
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(owned(syscall.user_namespace(uid_map, gid_map)))
        copy = stack.enter_context(
            owned(syscall.open_tree(syscall.AT_FDCWD, point, syscall.OPEN_TREE_CLONE | syscall.AT_RECURSIVE))
        )
        attributes = syscall.MOUNT_ATTR_IDMAP
        syscall.mount_setattr(copy, "", syscall.AT_EMPTY_PATH, attr_set=attributes, userns_fd=namespace)
        syscall.umount2(point, syscall.MNT_DETACH)
        syscall.move_mount(copy, "", syscall.AT_FDCWD, point, syscall.MOVE_MOUNT_F_EMPTY_PATH)


@contextlib.contextmanager
def mounted(mounts: Iterable[Mount], target: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """
    Mount *mounts* at *target*, or at a temporary directory, for the ``with``; give the path.
    """
    mounts = tuple(mounts)
    with contextlib.ExitStack() as stack:
        if target is None:
            import tempfile  # here, because most commands do not need it

            target = tempfile.mkdtemp(prefix="snapshot-")
            stack.callback(os.rmdir, target)
        mount(mounts, target)
        for item in mounts:
            stack.callback(syscall.umount2, os.path.join(target, item.target) if item.target else os.fspath(target))
        yield os.fspath(target)


def check_target(root: str, target: str) -> None:
    """
    Check that a mount at *target* would hide neither files nor the store at *root*.

    Args:
        root: A path without symbolic links.
        target: A path without symbolic links.

    Raises:
        NotFoundError: *target* does not exist.
        FailedPreconditionError: *target* is in the store, is a mount point, or is not an empty directory.
    """
    if target == root or target.startswith(root + "/"):
        raise FailedPreconditionError(f"{target!r} is in the store: choose a directory elsewhere")
    check_empty(target)


def check_empty(target: str) -> None:
    """
    Check that *target*, a path without symbolic links, is an empty directory and not a mount point.

    Raises:
        NotFoundError: *target* does not exist.
        FailedPreconditionError: *target* is a mount point, or is not an empty directory.
    """
    try:
        if os.path.ismount(target):
            raise FailedPreconditionError(f"something is mounted at {target!r} already: choose another directory")
        if names := os.listdir(target):
            raise FailedPreconditionError(f"{target!r} is not empty: a mount would hide {min(names)!r}")
    except FileNotFoundError as error:
        raise NotFoundError(f"{target!r} does not exist: make it first") from error
    except NotADirectoryError as error:
        raise FailedPreconditionError(f"{target!r} is not a directory") from error


def unmount(root: str, target: str) -> None:
    """
    Unmount the snapshot of the store at *root* that is mounted at *target*.

    Needs ``CAP_SYS_ADMIN``.

    Args:
        root: A path without symbolic links.
        target: A path without symbolic links.

    Raises:
        NotFoundError: *target* does not exist.
        FailedPreconditionError: *target* is not a mount of a snapshot of the store, or is in use.
    """
    try:
        if not _is_snapshot(root, target):
            raise FailedPreconditionError(f"no snapshot of store {root!r} is mounted at {target!r}")
        syscall.umount2(target)
    except FileNotFoundError as error:
        raise NotFoundError(f"{target!r} does not exist") from error
    except OSError as error:
        match error.errno:
            case errno.EINVAL:
                raise FailedPreconditionError(f"nothing is mounted at {target!r}") from error
            case errno.EBUSY:
                raise FailedPreconditionError(
                    f"{target!r} is in use: `snapshotter why KEY` lists the processes"
                ) from error
        raise


def _is_snapshot(root: str, target: str) -> bool:
    try:
        info = subvolume.get_info(target)
        same = filesystem.get_info(target).fsid == filesystem.get_info(root).fsid
    except (NotBtrfsError, NotSubvolumeError):
        return False
    if not same or info.parent_id != subvolume.get_id(root):
        return False
    # The parent directory is the root for `EMPTY`, which a view without parent shows, else a directory in snapshots/.
    if info.dir_id == os.stat(root).st_ino:
        return True
    with os.scandir(os.path.join(root, SNAPSHOTS)) as entries:
        return any(entry.inode() == info.dir_id for entry in entries)
