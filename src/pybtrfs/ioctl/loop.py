"""
The ioctls on loop devices.
"""

from __future__ import annotations

from typing import NamedTuple

from pybtrfs import kernel
from pybtrfs._ffi import ffi, lib, new

LO_FLAGS_READ_ONLY: int = lib.PYBTRFS_LO_FLAGS_READ_ONLY
LO_FLAGS_AUTOCLEAR: int = lib.PYBTRFS_LO_FLAGS_AUTOCLEAR
LO_FLAGS_DIRECT_IO: int = lib.PYBTRFS_LO_FLAGS_DIRECT_IO


def loop_ctl_get_free(fd: int) -> int:
    return kernel.current.ioctl(fd, "LOOP_CTL_GET_FREE")


def loop_ctl_add(fd: int, number: int) -> int:
    return kernel.current.ioctl(fd, "LOOP_CTL_ADD", number)


def loop_configure(
    fd: int,
    file_fd: int,
    *,
    flags: int = 0,
    block_size: int = 0,
    offset: int = 0,
    sizelimit: int = 0,
    file_name: bytes = b"",
) -> None:
    """
    Attach the file *file_fd* to the loop device *fd*.

    Args:
        flags: ``LO_FLAGS_*``.
        block_size: In bytes; 0 lets the kernel choose.
        offset: The start of the device in the file, in bytes.
        sizelimit: In bytes; 0 is no limit.
        file_name: The name that `loop_get_status64` and losetup show. The kernel keeps the first 63 bytes.
    """
    info = {"lo_offset": offset, "lo_sizelimit": sizelimit, "lo_flags": flags, "lo_file_name": file_name[:63]}
    arguments = new("struct pybtrfs_loop_config *", {"fd": file_fd, "block_size": block_size, "info": info})
    kernel.current.ioctl(fd, "LOOP_CONFIGURE", arguments)


def loop_set_fd(fd: int, file_fd: int) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_FD", file_fd)


def loop_set_status64(fd: int, flags: int) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_STATUS64", new("struct pybtrfs_loop_info64 *", {"lo_flags": flags}))


def loop_clr_fd(fd: int) -> None:
    kernel.current.ioctl(fd, "LOOP_CLR_FD")


def loop_set_capacity(fd: int) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_CAPACITY")


def loop_set_direct_io(fd: int, *, enable: bool) -> None:
    kernel.current.ioctl(fd, "LOOP_SET_DIRECT_IO", int(enable))


class LoopInfo(NamedTuple):
    """
    The fields of ``struct loop_info64`` that describe the attached file.
    """

    lo_device: int
    lo_inode: int
    lo_offset: int
    lo_sizelimit: int
    lo_number: int
    lo_flags: int
    lo_file_name: bytes


def loop_get_status64(fd: int) -> LoopInfo:
    info = ffi.new("struct pybtrfs_loop_info64 *")
    kernel.current.ioctl(fd, "LOOP_GET_STATUS64", info)
    return LoopInfo(
        info.lo_device,
        info.lo_inode,
        info.lo_offset,
        info.lo_sizelimit,
        info.lo_number,
        info.lo_flags,
        bytes(info.lo_file_name).split(b"\0", 1)[0],
    )
