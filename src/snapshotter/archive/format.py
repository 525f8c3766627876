"""
Names and numbers of the tar format, and how its files are opened.
"""

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator

from pybtrfs import syscall

_CHUNK = 1 << 20  # in bytes

_BLOCK = tarfile.BLOCKSIZE

_XATTR = "SCHILY.xattr."

_DEVICES = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}
_TYPES = {kind: type_ for type_, kind in _DEVICES.items()} | {stat.S_IFDIR: tarfile.DIRTYPE}


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


# Reading an active one is no change of it.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME


def _open_beneath(fd: int, path: str, flags: int = _DIRECTORY) -> int:
    # Whoever made the names in there may have made links of them.
    resolve = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_XDEV
    return syscall.openat2(fd, path or ".", flags | os.O_CLOEXEC, resolve)
