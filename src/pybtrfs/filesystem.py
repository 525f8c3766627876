"""
Identity, size and transactions of a filesystem.

A *target* is any file of the filesystem.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal, NamedTuple

from pybtrfs import ioctl
from pybtrfs.path import Target, opened

if TYPE_CHECKING:
    from collections.abc import Generator
    from uuid import UUID


class FilesystemInfo(NamedTuple):
    """
    A filesystem. Sizes are in bytes.

    Attributes:
        generation: The running transaction, or the last transaction if none is running.
        max_id: The largest devid in use.
    """

    max_id: int
    num_devices: int
    fsid_bytes: bytes
    nodesize: int
    sectorsize: int
    clone_alignment: int
    csum_type: int
    csum_size: int
    flags: int
    generation: int
    metadata_uuid_bytes: bytes

    @property
    def fsid(self) -> UUID:
        return _uuid(self.fsid_bytes)

    @property
    def metadata_uuid(self) -> UUID:
        return _uuid(self.metadata_uuid_bytes)


def get_info(target: Target) -> FilesystemInfo:
    """
    Return the filesystem of *target*.

    Issues ``BTRFS_IOC_FS_INFO``, which needs no privilege.

    Raises:
        NotBtrfsError: *target* is not on btrfs.
    """
    with opened(target) as fd:
        return FilesystemInfo(*ioctl.fs_info(fd))


def sync(target: Target) -> None:
    """
    Write all data of the filesystem to disk, and commit. The kernel then starts to clean deleted subvolumes.

    A failed write-back is not reported here, but by os.fsync and `pybtrfs.syscall.syncfs`.

    Issues ``BTRFS_IOC_SYNC``, which needs no privilege.
    """
    with opened(target) as fd:
        ioctl.sync(fd)


def start_sync(target: Target) -> int:
    """
    Start to commit the running transaction, and return its id for `wait_sync`.

    If no transaction is running, the id is that of the last transaction. Data that is not written back is not
    committed.

    Issues ``BTRFS_IOC_START_SYNC``, which needs no privilege. See the warning at `wait_sync`.
    """
    with opened(target) as fd:
        return ioctl.start_sync(fd)


def wait_sync(target: Target, transid: int = 0) -> None:
    """
    Wait until the transaction *transid* is durable; 0 means the transaction that is being committed.

    Warning: if other transactions commit concurrently, the kernel may lose the wake-up that `start_sync` sends to its
    committing thread. The wait then lasts until the next periodic commit, up to 30 seconds. This was seen on Linux 6.18
    and 7.3, with one caller and with several. If latency matters, call os.fsync on the directory in which a subvolume
    was created or deleted, which commits by itself.

    On a filesystem that was aborted after an error, a wait for 0 returns without an error.

    Issues ``BTRFS_IOC_WAIT_SYNC``, which needs no privilege.

    Raises:
        OSError: EINVAL: *transid* lies in the future.
    """
    with opened(target) as fd:
        ioctl.wait_sync(fd, transid)


def resize(target: Target, size: int | Literal["max"], *, devid: int | None = None) -> None:
    """
    Grow or shrink the filesystem on the device *devid* to *size* bytes, or to the whole device for ``"max"``.

    Issues ``BTRFS_IOC_RESIZE``, which needs ``CAP_SYS_ADMIN``.

    Args:
        devid: By default the only device, whose devid need not be 1.

    Raises:
        ValueError: *size* is wrong; or the filesystem has several devices, and *devid* is missing.
        OSError: EFBIG: the device is smaller than *size*. ENOSPC: the data does not fit into *size*.
    """
    if size != "max" and (not isinstance(size, int) or size <= 0):
        raise ValueError(f"{size!r} is neither a size in bytes nor 'max'")
    with opened(target) as fd:
        ioctl.resize(fd, f"{only_devid(fd) if devid is None else devid}:{size}".encode())


def dev_infos(fd: int) -> Generator[ioctl.DevInfo, None, None]:
    """
    Yield the devices of the filesystem of *fd*, by devid. A device that is removed concurrently is skipped.
    """
    for devid in range(1, ioctl.fs_info(fd).max_id + 1):
        try:
            info = ioctl.dev_info(fd, devid)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        else:
            yield info


def only_devid(fd: int) -> int:
    """
    Return the devid of the only device of the filesystem of *fd*.

    Raises:
        ValueError: The filesystem has several devices.
    """
    devids = [info.devid for info in dev_infos(fd)]
    if len(devids) != 1:
        raise ValueError(f"the filesystem has the devices {', '.join(map(str, devids))}: choose one as devid")
    return devids[0]


def _uuid(value: bytes) -> UUID:
    from uuid import UUID

    return UUID(bytes=value)
