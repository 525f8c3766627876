"""
The ioctls on a whole filesystem: transactions, identity and size.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from pybtrfs import kernel
from pybtrfs._ffi import lib, new, without_nul


def sync(fd: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_SYNC")


def start_sync(fd: int) -> int:
    return kernel.current.value_ioctl(fd, "BTRFS_IOC_START_SYNC")


def wait_sync(fd: int, transid: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_WAIT_SYNC", new("uint64_t *", transid))


class FsInfo(NamedTuple):
    """
    ``struct btrfs_ioctl_fs_info_args``.
    """

    max_id: int
    num_devices: int
    fsid: bytes
    nodesize: int
    sectorsize: int
    clone_alignment: int
    csum_type: int
    csum_size: int
    flags: int
    generation: int
    metadata_uuid: bytes


def fs_info(fd: int) -> FsInfo:
    wanted = (
        lib.PYBTRFS_FS_INFO_FLAG_CSUM_INFO
        | lib.PYBTRFS_FS_INFO_FLAG_GENERATION
        | lib.PYBTRFS_FS_INFO_FLAG_METADATA_UUID
    )
    info = new("struct pybtrfs_ioctl_fs_info_args *", {"flags": wanted})
    kernel.current.ioctl(fd, "BTRFS_IOC_FS_INFO", info)
    return FsInfo(
        info.max_id,
        info.num_devices,
        bytes(info.fsid),
        info.nodesize,
        info.sectorsize,
        info.clone_alignment,
        info.csum_type,
        info.csum_size,
        info.flags,
        info.generation,
        bytes(info.metadata_uuid),
    )


def resize(fd: int, name: bytes) -> None:
    arguments = new("struct pybtrfs_ioctl_vol_args *", {"name": without_nul(name)})
    try:
        kernel.current.ioctl(fd, "BTRFS_IOC_RESIZE", arguments)
    except OSError as error:
        if error.errno == errno.EINVAL:
            error.add_note(f"{os.fsdecode(name)!r} must have a devid of at least 1, and a size of at least 256 MiB")
        raise
