"""
The ioctl that writes a subvolume, or its changes to another subvolume, as a stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybtrfs import kernel
from pybtrfs._ffi import lib, new

if TYPE_CHECKING:
    from collections.abc import Sequence

SEND_FLAG_NO_FILE_DATA: int = lib.PYBTRFS_SEND_FLAG_NO_FILE_DATA
SEND_FLAG_OMIT_STREAM_HEADER: int = lib.PYBTRFS_SEND_FLAG_OMIT_STREAM_HEADER
SEND_FLAG_OMIT_END_CMD: int = lib.PYBTRFS_SEND_FLAG_OMIT_END_CMD
SEND_FLAG_VERSION: int = lib.PYBTRFS_SEND_FLAG_VERSION
SEND_FLAG_COMPRESSED: int = lib.PYBTRFS_SEND_FLAG_COMPRESSED


def send(
    fd: int, send_fd: int, clone_sources: Sequence[int] = (), parent_root: int = 0, flags: int = 0, version: int = 0
) -> None:
    """
    Write the stream of the subvolume *fd* to *send_fd*.

    Args:
        clone_sources: The treeids of subvolumes that the stream may clone from.
        parent_root: The treeid of the subvolume to send the changes to, or 0 to send all files.
        flags: Flags of ``SEND_FLAG_*``.
        version: The version of the stream, with ``SEND_FLAG_VERSION``; 0 for the newest.
    """
    sources = new("uint64_t[]", list(clone_sources))
    arguments = new(
        "struct pybtrfs_ioctl_send_args *",
        {
            "send_fd": send_fd,
            "clone_sources_count": len(clone_sources),
            "clone_sources": sources,
            "parent_root": parent_root,
            "flags": flags,
            "version": version,
        },
    )
    kernel.current.ioctl(fd, "BTRFS_IOC_SEND", arguments)
