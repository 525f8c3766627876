"""
System calls that Python's standard library lacks, one function each.

A refusal is an `OSError` with the name of the call as a note. For ``EPERM``, a second note has the missing privilege.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import kernel
from pybtrfs._ffi import call, check, ffi, lib, new, typeof, uncleared, without_nul

BTRFS_SUPER_MAGIC: int = lib.PYBTRFS_SUPER_MAGIC

MS_RDONLY: int = lib.MS_RDONLY
MS_NOSUID: int = lib.MS_NOSUID
MS_NODEV: int = lib.MS_NODEV
MS_NOEXEC: int = lib.MS_NOEXEC
MS_REMOUNT: int = lib.MS_REMOUNT
MS_NOATIME: int = lib.MS_NOATIME
MS_BIND: int = lib.MS_BIND
MS_REC: int = lib.MS_REC
MS_PRIVATE: int = lib.MS_PRIVATE

MOUNT_ATTR_RDONLY: int = lib.PYBTRFS_MOUNT_ATTR_RDONLY
MOUNT_ATTR_IDMAP: int = lib.PYBTRFS_MOUNT_ATTR_IDMAP

OPEN_TREE_CLONE: int = lib.PYBTRFS_OPEN_TREE_CLONE
MOVE_MOUNT_F_EMPTY_PATH: int = lib.PYBTRFS_MOVE_MOUNT_F_EMPTY_PATH

AT_FDCWD: int = lib.AT_FDCWD
AT_EMPTY_PATH: int = lib.AT_EMPTY_PATH
AT_RECURSIVE: int = lib.AT_RECURSIVE

MNT_FORCE: int = lib.MNT_FORCE
MNT_DETACH: int = lib.MNT_DETACH
UMOUNT_NOFOLLOW: int = lib.UMOUNT_NOFOLLOW

O_PATH: int = lib.O_PATH
"""``os.O_PATH``, which PyPy lacks."""

ST_RDONLY: int = lib.MS_RDONLY
"""``os.ST_RDONLY``, which PyPy lacks; statvfs(2) has the flags of mount(2)."""

RESOLVE_NO_XDEV: int = lib.PYBTRFS_RESOLVE_NO_XDEV
RESOLVE_NO_MAGICLINKS: int = lib.PYBTRFS_RESOLVE_NO_MAGICLINKS
RESOLVE_NO_SYMLINKS: int = lib.PYBTRFS_RESOLVE_NO_SYMLINKS
RESOLVE_BENEATH: int = lib.PYBTRFS_RESOLVE_BENEATH

if TYPE_CHECKING:
    from pybtrfs._ffi import CData

_PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_FILEID_BTRFS_WITHOUT_PARENT = 0x4D
_HANDLE_BYTES = 20
_XATTR_SIZE_MAX = 1 << 16
_NAMESPACES = 256  # enough for most hosts; a larger buffer follows if it is too small
_MOUNTS_SIZE = 1 << 16  # bytes; as above


def mount(source: _PathLike, target: _PathLike, fstype: str, flags: int = 0, data: str | bytes = b"") -> None:
    """
    Mount the filesystem on *source* at *target*.

    Issues mount(2), which needs ``CAP_SYS_ADMIN``.

    Args:
        flags: ``MS_*`` flags.
        data: The options of the filesystem, separated by commas.
    """
    result = call(lib.pybtrfs_mount, _text(source), _text(target), _text(fstype), flags, _text(data))
    check(result, "mount", "CAP_SYS_ADMIN", target)


def umount2(target: _PathLike, flags: int = 0) -> None:
    """
    Unmount the filesystem at *target*.

    Issues umount2(2), which needs ``CAP_SYS_ADMIN``.

    Args:
        flags: ``MNT_*`` and ``UMOUNT_*`` flags.
    """
    check(call(lib.pybtrfs_umount2, _text(target), flags), "umount2", "CAP_SYS_ADMIN", target)


def open_tree(dirfd: int, path: _PathLike, flags: int) -> int:
    """
    Open the mount that contains *path*, relative to *dirfd*, and return the fd, close-on-exec.

    Issues open_tree(2) (Linux 5.2). ``OPEN_TREE_CLONE`` needs ``CAP_SYS_ADMIN``.

    Args:
        flags: ``OPEN_TREE_CLONE`` copies the mount; the copy is attached nowhere, and ends with the fd. With it,
            ``AT_RECURSIVE`` copies the mounts below, too.
    """
    result = call(lib.pybtrfs_open_tree, dirfd, _text(path), flags | os.O_CLOEXEC)
    return check(result, "open_tree", "CAP_SYS_ADMIN", path)


def move_mount(from_dirfd: int, from_path: _PathLike, to_dirfd: int, to_path: _PathLike, flags: int) -> None:
    """
    Move the mount at *from_path*, relative to *from_dirfd*, to *to_path*, relative to *to_dirfd*.

    Issues move_mount(2) (Linux 5.2), which needs ``CAP_SYS_ADMIN``.

    Args:
        flags: With ``MOVE_MOUNT_F_EMPTY_PATH``, an empty *from_path* stands for *from_dirfd*.
    """
    result = call(lib.pybtrfs_move_mount, from_dirfd, _text(from_path), to_dirfd, _text(to_path), flags)
    check(result, "move_mount", "CAP_SYS_ADMIN", to_path)


def mount_setattr(
    dirfd: int, path: _PathLike, flags: int, *, attr_set: int = 0, attr_clr: int = 0, userns_fd: int = 0
) -> None:
    """
    Change the attributes of the mount at *path*, relative to *dirfd*.

    Issues mount_setattr(2) (Linux 5.12), which needs ``CAP_SYS_ADMIN``.

    Args:
        flags: ``AT_EMPTY_PATH`` and ``AT_RECURSIVE``.
        attr_set: The ``MOUNT_ATTR_*`` flags to set.
        attr_clr: The ``MOUNT_ATTR_*`` flags to clear.
        userns_fd: The user namespace whose maps ``MOUNT_ATTR_IDMAP`` applies. The mount must be attached nowhere. btrfs
            supports it since Linux 5.15.
    """
    attr = new("struct pybtrfs_mount_attr *", {"attr_set": attr_set, "attr_clr": attr_clr, "userns_fd": userns_fd})
    result = call(lib.pybtrfs_mount_setattr, dirfd, _text(path), flags, attr)
    check(result, "mount_setattr", "CAP_SYS_ADMIN", path)


def user_namespace(uid_map: str, gid_map: str) -> int:
    """
    Create a user namespace for ``MOUNT_ATTR_IDMAP``, and return its fd, close-on-exec.

    Issues clone(2). Needs ``CAP_SETUID`` and ``CAP_SETGID`` for other ids than the caller's.

    Args:
        uid_map: A line ``CONTAINER HOST SIZE`` for each range, as in ``/proc/PID/uid_map``.
        gid_map: As above, of groups.
    """
    result = call(lib.pybtrfs_user_namespace, _text(uid_map), _text(gid_map))
    return check(result, "clone, /proc/PID/uid_map", "CAP_SETUID and CAP_SETGID")


def syncfs(fd: int) -> None:
    """
    Write all data of the filesystem that contains *fd* to disk.

    Issues syncfs(2). An error of write-back since *fd* was opened is raised once.
    """
    check(call(lib.pybtrfs_syncfs, fd), "syncfs")


def fstatfs_type(fd: int) -> int:
    """
    Return the magic number of the filesystem that contains *fd*.

    Issues fstatfs(2).
    """
    return kernel.current.fstatfs_type(fd)


def fstat_ino(fd: int) -> int:
    """
    Return the inode number of *fd*.

    Issues fstat(2). Unlike os.fstat(), it returns btrfs's numbers for the fake subvolumes of `pybtrfs.testing`.
    """
    return kernel.current.fstat_ino(fd)


def openat2(dirfd: int, path: _PathLike, flags: int, resolve: int = 0, mode: int = 0) -> int:
    """
    Open *path*, relative to *dirfd*, and return the fd, close-on-exec.

    Issues openat2(2) (Linux 5.6).

    Args:
        resolve: ``RESOLVE_*`` flags, which restrict the components of *path*.
        mode: The permissions of a file that ``O_CREAT`` creates.
    """
    how = new("struct pybtrfs_open_how *", {"flags": flags | os.O_CLOEXEC, "mode": mode, "resolve": resolve})
    return check(call(lib.pybtrfs_openat2, dirfd, _text(path), how), "openat2", filename=path)


def make_directory(dirfd: int, name: _PathLike, mode: int, xattr: str, value: bytes) -> int:
    """
    Create the directory *name* in *dirfd* with an extended attribute, and return its fd, close-on-exec.

    A failure removes the directory again. If the process is killed, the directory may remain without the attribute.

    Issues mkdirat(2), openat(2) and fsetxattr(2). Releases the GIL once for all calls, because each re-acquisition
    waits for other threads.
    """
    result = call(lib.pybtrfs_make_directory, dirfd, _text(name), mode, _text(xattr), value, len(value))
    return check(result, "mkdirat, openat, fsetxattr", filename=name)


def read_directory(
    dirfd: int, name: _PathLike, xattr: str, names: tuple[_PathLike, ...]
) -> tuple[bytes | None, list[int]]:
    """
    Return an extended attribute of the directory *name* in *dirfd*, and the inode numbers of its entries *names*.

    The value is None if the attribute does not exist. The inode number is 0 for an entry that does not exist, or is not
    a directory. Symlinks are not followed.

    Issues openat(2), fgetxattr(2) and fstatat(2). Releases the GIL once for all calls. For thousands of directories,
    re-acquiring it and building intermediate objects would take twice as long as the calls themselves.

    Raises:
        FileNotFoundError: *name* does not exist.
        NotADirectoryError: *name* is not a directory.
    """
    value = uncleared(typeof("char[]"), _XATTR_SIZE_MAX)
    inodes = uncleared(typeof("uint64_t[]"), len(names))
    size = call(
        lib.pybtrfs_read_directory,
        dirfd,
        _text(name),
        _text(xattr),
        value,
        _XATTR_SIZE_MAX,
        _joined(names),
        inodes,
        len(names),
    )
    if size != -errno.ENODATA:
        check(size, "openat, fgetxattr, fstatat", filename=name)
    return ffi.buffer(value, size)[:] if size >= 0 else None, [int(inodes[i]) for i in range(len(names))]


@cache
def _joined(names: tuple[_PathLike, ...]) -> bytes:
    return b"".join(_text(name) + b"\0" for name in names)


def name_to_handle_at(dirfd: int, path: _PathLike, flags: int = 0) -> tuple[int, int]:
    """
    Return the subvolume id and the inode number of the file at *path*, relative to *dirfd*.

    A final symlink is not followed, and no file is opened.

    Issues name_to_handle_at(2), which some sandboxes refuse without ``CAP_SYS_ADMIN``.

    Raises:
        OSError: EOPNOTSUPP: *path* is not on btrfs.
    """
    handle = new("struct pybtrfs_file_handle *", {"handle_bytes": _HANDLE_BYTES})
    result = call(lib.pybtrfs_name_to_handle_at, dirfd, _text(path), handle, flags)
    if result == -errno.EOVERFLOW or (result == 0 and handle.handle_type != _FILEID_BTRFS_WITHOUT_PARENT):
        result = -errno.EOPNOTSUPP
    check(result, "name_to_handle_at", filename=path)
    return int(handle.root_objectid), int(handle.objectid)


def open_by_handle_at(fd: int, treeid: int, objectid: int, generation: int, flags: int) -> int:
    """
    Open the inode *objectid* of the subvolume *treeid* on the btrfs that contains *fd*, and return the fd,
    close-on-exec.

    No path is followed, and the permissions of the directories above are not checked.

    Issues open_by_handle_at(2), which needs ``CAP_DAC_READ_SEARCH``.

    Args:
        generation: The generation in the INODE_ITEM, which tells the inode from a later one with the same number.

    Raises:
        OSError: ESTALE: no such inode has this generation.
    """
    handle = new(
        "struct pybtrfs_file_handle *",
        {
            "handle_bytes": _HANDLE_BYTES,
            "handle_type": _FILEID_BTRFS_WITHOUT_PARENT,
            "objectid": objectid,
            "root_objectid": treeid,
            "gen": generation & 0xFFFFFFFF,
        },
    )
    return kernel.current.open_by_handle_at(fd, handle, flags | os.O_CLOEXEC)


class MountNamespace(NamedTuple):
    """
    A mount namespace.

    Args:
        id: The id for `read_mounts`, which the kernel never reuses.
        inode: The inode number that ``/proc/PID/ns/mnt`` shows.
    """

    id: int
    inode: int


class StatMount(NamedTuple):
    """
    The fields of ``struct statmount`` that locate a mount.
    """

    mnt_id: int
    mnt_parent_id: int
    sb_dev: tuple[int, int]
    sb_magic: int
    read_only: bool
    mnt_root: bytes
    mnt_point: bytes
    mnt_opts: bytes


def mount_namespaces() -> list[MountNamespace]:
    """
    Return the mount namespaces in which the caller has ``CAP_SYS_ADMIN``, also those without a process, and the
    caller's own.

    Issues ``NS_MNT_GET_NEXT`` (Linux 6.12) once for each namespace. Releases the GIL once for all calls.
    """
    size = _NAMESPACES
    while True:
        found = uncleared(typeof("struct pybtrfs_mount_namespace[]"), size)
        count = check(call(lib.pybtrfs_mount_namespaces, found, size), "NS_MNT_GET_NEXT", "CAP_SYS_ADMIN")
        if count <= size:
            return [MountNamespace(int(found[i].id), int(found[i].inode)) for i in range(count)]
        size = count * 2


def read_mounts(namespace_id: int, device: tuple[int, int] | None) -> list[StatMount]:
    """
    Return the mounts of one filesystem in a mount namespace, and all mounts that have one of these as their parent.

    A namespace that has ended has no mounts. Mount points are paths from the root of the namespace.

    Issues listmount(2) and statmount(2) (Linux 6.11), which need ``CAP_SYS_ADMIN`` in the namespace. Releases the GIL
    once for all calls.

    Args:
        device: The device number of the filesystem, as ``/proc/PID/mountinfo`` shows it; None for every btrfs.
    """
    major, minor = device or (0, 0)
    size = _MOUNTS_SIZE
    while True:
        buffer = uncleared(typeof("char[]"), size)
        used = call(lib.pybtrfs_read_mounts, namespace_id, major, minor, buffer, size)
        if used != -errno.EOVERFLOW:
            break
        size *= 4
    found, at = [], 0
    while at < check(used, "listmount, statmount", "CAP_SYS_ADMIN"):
        mount = ffi.cast("struct pybtrfs_statmount *", buffer + at)
        found.append(_stat_mount(mount))
        at += (mount.size + 7) & ~7
    return found


def _stat_mount(mount: CData) -> StatMount:
    return StatMount(
        mount.mnt_id,
        mount.mnt_parent_id,
        (mount.sb_dev_major, mount.sb_dev_minor),
        mount.sb_magic,
        bool(mount.mnt_attr & lib.PYBTRFS_MOUNT_ATTR_RDONLY),
        *(
            ffi.string(mount.str + offset) if mount.mask & present else b""
            for present, offset in (
                (lib.PYBTRFS_STATMOUNT_MNT_ROOT, mount.mnt_root),
                (lib.PYBTRFS_STATMOUNT_MNT_POINT, mount.mnt_point),
                (lib.PYBTRFS_STATMOUNT_MNT_OPTS, mount.mnt_opts),
            )
        ),
    )


def _text(value: _PathLike) -> bytes:
    return without_nul(os.fsencode(value))
