"""
System calls that Python's standard library lacks, one function each.

A refusal is an `OSError` with a note naming the call and, for ``EPERM``, the privilege it needs.
"""

from __future__ import annotations

import errno
import os
from functools import cache

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

MNT_FORCE: int = lib.MNT_FORCE
MNT_DETACH: int = lib.MNT_DETACH
UMOUNT_NOFOLLOW: int = lib.UMOUNT_NOFOLLOW

O_PATH: int = lib.O_PATH
"""`os` has it, but PyPy's has not."""

RESOLVE_NO_XDEV: int = lib.PYBTRFS_RESOLVE_NO_XDEV
RESOLVE_NO_MAGICLINKS: int = lib.PYBTRFS_RESOLVE_NO_MAGICLINKS
RESOLVE_NO_SYMLINKS: int = lib.PYBTRFS_RESOLVE_NO_SYMLINKS
RESOLVE_BENEATH: int = lib.PYBTRFS_RESOLVE_BENEATH

_PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_FILEID_BTRFS_WITHOUT_PARENT = 0x4D
_HANDLE_BYTES = 20
_XATTR_SIZE_MAX = 1 << 16


def mount(source: _PathLike, target: _PathLike, fstype: str, flags: int = 0, data: str | bytes = b"") -> None:
    """
    Attach the filesystem on *source* at *target*, with ``MS_*`` *flags* and the filesystem's own options in *data*.

    Issues mount(2), which needs ``CAP_SYS_ADMIN``.
    """
    result = call(lib.pybtrfs_mount, _text(source), _text(target), _text(fstype), flags, _text(data))
    check(result, "mount", "CAP_SYS_ADMIN", target)


def umount2(target: _PathLike, flags: int = 0) -> None:
    """
    Detach the filesystem mounted at *target*, with ``MNT_*`` or ``UMOUNT_*`` *flags*.

    Issues umount2(2), which needs ``CAP_SYS_ADMIN``.
    """
    check(call(lib.pybtrfs_umount2, _text(target), flags), "umount2", "CAP_SYS_ADMIN", target)


def syncfs(fd: int) -> None:
    """
    Write everything of the filesystem that holds *fd*, and report an error of write-back since *fd* was opened, once.

    Issues syncfs(2).
    """
    check(call(lib.pybtrfs_syncfs, fd), "syncfs")


def fstatfs_type(fd: int) -> int:
    """
    Return the magic number of the filesystem that holds *fd*.

    Issues fstatfs(2).
    """
    return kernel.current.fstatfs_type(fd)


def fstat_ino(fd: int) -> int:
    """
    Return the inode number of *fd*.

    Issues fstat(2). The standard library has it, but there the subvolumes of `pybtrfs.testing` have other numbers.
    """
    return kernel.current.fstat_ino(fd)


def openat2(dirfd: int, path: _PathLike, flags: int, resolve: int = 0, mode: int = 0) -> int:
    """
    Open *path*, relative to *dirfd* and under the ``RESOLVE_*`` rules, close-on-exec, and return the fd.

    Issues openat2(2) (Linux 5.6).
    """
    how = new("struct pybtrfs_open_how *", {"flags": flags | os.O_CLOEXEC, "mode": mode, "resolve": resolve})
    return check(call(lib.pybtrfs_openat2, dirfd, _text(path), how), "openat2", filename=path)


def make_directory(dirfd: int, name: _PathLike, mode: int, xattr: str, value: bytes) -> int:
    """
    Make the directory *name* in *dirfd*, with an extended attribute, or nothing, and return its fd, close-on-exec.

    A crash of the process may leave it without the attribute.

    Issues mkdirat(2), openat(2) and fsetxattr(2), and gives up the GIL once for all of them: where many threads make
    directories, each time is a turn to wait for.
    """
    result = call(lib.pybtrfs_make_directory, dirfd, _text(name), mode, _text(xattr), value, len(value))
    return check(result, "mkdirat, openat, fsetxattr", filename=name)


def read_directory(
    dirfd: int, name: _PathLike, xattr: str, names: tuple[_PathLike, ...]
) -> tuple[bytes | None, list[int]]:
    """
    Return the value of an extended attribute of the directory *name* in *dirfd*, None without one, and then the inode
    numbers of the directories in it that have one of *names*, 0 where there is none. A symlink is none.

    Issues openat(2), fgetxattr(2) and fstatat(2), and gives up the GIL once for all of them: of thousands of
    directories, that and the objects for what is in between take twice as long as the calls.

    Raises:
        FileNotFoundError: There is no *name*.
        NotADirectoryError: It is something else.
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
    Return the subvolume and the inode number of the file at *path*, relative to *dirfd*, on btrfs.

    A symlink at the end is not followed, and nothing is opened.

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
    Open the inode *objectid* of the subvolume *treeid* of the btrfs that holds *fd*, close-on-exec, and return the fd.

    No path is followed, and no permission of a directory above is asked for.

    Issues open_by_handle_at(2), which needs ``CAP_DAC_READ_SEARCH``.

    Args:
        generation: The inode's, as its INODE_ITEM has it: guards against an inode number used again.
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


def _text(value: _PathLike) -> bytes:
    return without_nul(os.fsencode(value))
