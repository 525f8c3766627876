"""
The calls of the kernel that a test can replace: `current` is the real kernel, or the fake of `pybtrfs.testing`.

All ioctls go through `current`, except `pybtrfs.ioctl.snap_create_v2_in`, which is one call of C. So do the system
calls that recognise a subvolume, and that open a directory by its inode number.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import TYPE_CHECKING, Protocol

from pybtrfs._ffi import call, check, ffi, lib, without_nul

if TYPE_CHECKING:
    from pybtrfs._ffi import CData

_OWNER = "ownership of the subvolume, or CAP_FOWNER"
_DESTROY = (
    "CAP_SYS_ADMIN, or write permission and the mount option user_subvol_rm_allowed; nobody may destroy a subvolume "
    "that is the default, immutable or append-only, is being sent, or holds an active swapfile"
)
_PRIVILEGES = {
    "BTRFS_IOC_SNAP_CREATE_V2": _OWNER,
    "BTRFS_IOC_SUBVOL_SETFLAGS": _OWNER,
    "BTRFS_IOC_SET_RECEIVED_SUBVOL": _OWNER,
    "BTRFS_IOC_SNAP_DESTROY": _DESTROY,
    "BTRFS_IOC_SNAP_DESTROY_V2": _DESTROY,
    "FS_IOC_SETFLAGS": "ownership, or CAP_FOWNER; CAP_LINUX_IMMUTABLE for immutable and append-only",
}

SUM_NANOSECONDS = 50_000_000  # in C at a time, because Python's signal handlers run between the calls

# Only these ioctls are interrupted by signals, and only these can be repeated without a second effect.
_WAITS = ("BTRFS_IOC_SUBVOL_SYNC_WAIT", "BTRFS_IOC_QUOTA_RESCAN_WAIT")

# Hot path: the C functions fill and read the structs of the most frequent ioctls, and are looked up once, at import.
# Both save a large part of a call.
_c_value_ioctl = lib.pybtrfs_value_ioctl
_c_vol_ioctl = lib.pybtrfs_vol_ioctl
_c_get_subvol_info = lib.pybtrfs_get_subvol_info
_null = ffi.NULL


class Kernel(Protocol):
    """
    The calls that `current` answers. A refusal is an `OSError` with the name of the call as a note.
    """

    def ioctl(self, fd: int, name: str, argument: CData | int = 0, /) -> int:
        """
        Issue the ioctl *name* on *fd*, with a struct that the kernel reads and fills, or with a number.
        """

    def value_ioctl(self, fd: int, name: str, /) -> int:
        """
        Issue the ioctl *name* on *fd*, and return the number that the kernel fills.

        For ``BTRFS_IOC_INO_LOOKUP``, return the id of the subvolume that contains *fd*.
        """

    def vol_ioctl(
        self,
        dirfd: int,
        name: str,
        filename: bytes,
        source_fd: int = 0,
        flags: int = 0,
        inherit: CData = ...,
        /,
    ) -> None:
        """
        Issue the ioctl *name*, which creates or destroys the subvolume *filename* in the directory *dirfd*.

        Args:
            source_fd: The subvolume to take a snapshot of.
            inherit: A ``struct btrfs_qgroup_inherit``, or NULL.
        """

    def info_ioctl(self, fd: int, name: str, subvolume: CData, /) -> None:
        """
        Issue the ioctl *name*, ``BTRFS_IOC_GET_SUBVOL_INFO``, on *fd*, and fill a ``struct pybtrfs_subvolume``.
        """

    def sum_ioctl(self, fd: int, name: str, changes: CData, /) -> bool:
        """
        Issue the ioctl *name*, ``BTRFS_IOC_TREE_SEARCH_V2``, on *fd* for some time, and add to a struct of sums.

        Return whether a part of the tree is left.
        """

    def fstat_ino(self, fd: int, /) -> int:
        """
        Return the inode number of *fd*.
        """

    def fstatfs_type(self, fd: int, /) -> int:
        """
        Return the magic number of the filesystem that contains *fd*.
        """

    def open_by_handle_at(self, fd: int, handle: CData, flags: int, /) -> int:
        """
        Open the inode of *handle*, a ``struct pybtrfs_file_handle``, on the filesystem that contains *fd*.
        """


class _Linux:
    """
    The real kernel.
    """

    def ioctl(self, fd: int, name: str, argument: CData | int = 0, /) -> int:
        if isinstance(argument, int):
            if not 0 <= argument < 1 << 31:
                raise ValueError(f"{argument!r} is not an argument of {name}")
            argument = ffi.cast("void *", argument)
        number = request(name)
        try:
            # Python's signal handlers run between the calls.
            while (result := lib.pybtrfs_ioctl(fd, number, argument)) == -errno.EINTR and name in _WAITS:
                pass
        except OverflowError as error:
            raise _bad_descriptor(fd) from error
        return result if result >= 0 else check(result, name, privilege(name))

    def value_ioctl(self, fd: int, name: str, /) -> int:
        try:
            result = _c_value_ioctl(fd, request(name))
        except OverflowError as error:
            raise _bad_descriptor(fd) from error
        return result if result >= 0 else check(result, name, privilege(name))

    def vol_ioctl(
        self,
        dirfd: int,
        name: str,
        filename: bytes,
        source_fd: int = 0,
        flags: int = 0,
        inherit: CData = _null,
        /,
    ) -> None:
        try:
            result = _c_vol_ioctl(dirfd, request(name), filename, len(filename), source_fd, flags, inherit)
        except OverflowError as error:
            raise ValueError(f"{(dirfd, source_fd, flags)!r:.80} do not fit: {error}") from error
        if result < 0:
            without_nul(filename)
            check(result, name, privilege(name))

    def info_ioctl(self, fd: int, name: str, subvolume: CData, /) -> None:
        try:
            result = _c_get_subvol_info(fd, subvolume)
        except OverflowError as error:
            raise _bad_descriptor(fd) from error
        if result < 0:
            check(result, name)

    def sum_ioctl(self, fd: int, name: str, changes: CData, /) -> bool:
        result = call(lib.pybtrfs_sum_changes, fd, changes, SUM_NANOSECONDS)
        return bool(check(result, name, privilege(name)))

    def fstat_ino(self, fd: int, /) -> int:
        try:
            return os.fstat(fd).st_ino
        except OverflowError as error:
            raise _bad_descriptor(fd) from error

    def fstatfs_type(self, fd: int, /) -> int:
        return check(call(lib.pybtrfs_fstatfs_type, fd), "fstatfs")

    def open_by_handle_at(self, fd: int, handle: CData, flags: int, /) -> int:
        result = call(lib.pybtrfs_open_by_handle_at, fd, handle, flags)
        return check(result, "open_by_handle_at", "CAP_DAC_READ_SEARCH")


current: Kernel = _Linux()
"""The kernel that answers. A test may put another object here, or replace a method of this one."""


@cache
def request(name: str) -> int:
    """
    Return the request number of the ioctl *name*.
    """
    return int(getattr(lib, "PYBTRFS_" + name.removeprefix("BTRFS_")))


def privilege(name: str) -> str:
    """
    Return the privilege that the ioctl *name* needs, if any, for the note on its refusal.
    """
    return _PRIVILEGES.get(name, "CAP_SYS_ADMIN")


def _bad_descriptor(fd: object) -> ValueError:
    return ValueError(f"{fd!r} is not a file descriptor")
