"""
Devices of a filesystem, with their sizes, states, error counters and nodes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import filesystem, ioctl, sysfs
from pybtrfs.path import Target, opened

if TYPE_CHECKING:
    from collections.abc import Generator
    from uuid import UUID

_NO_PATHS = ("", "<missing disk>")  # the paths that the kernel shows for a missing device


class DeviceInfo(NamedTuple):
    """
    A device of a filesystem. Sizes are in bytes.

    Attributes:
        bytes_used: The bytes allocated to block groups.
    """

    devid: int
    uuid_bytes: bytes
    bytes_used: int
    total_bytes: int
    path: str

    @property
    def uuid(self) -> UUID:
        from uuid import UUID

        return UUID(bytes=self.uuid_bytes)


class DeviceStats(NamedTuple):
    """
    The error counters of a device, since the filesystem was created or the counters were reset.
    """

    write_errs: int
    read_errs: int
    flush_errs: int
    corruption_errs: int
    generation_errs: int


class DeviceState(NamedTuple):
    """
    The state of a device in its filesystem.

    Attributes:
        missing: The filesystem is mounted without the device (option ``degraded``).
        seed: The device belongs to another filesystem, which this filesystem was sprouted from, and is never written.
    """

    missing: bool
    seed: bool


class Node(NamedTuple):
    """
    A device node by which a filesystem can be mounted.

    Attributes:
        path: The path of the node.
        link: A link in sysfs that exists as long as the device is one of the filesystem; empty without sysfs.
    """

    path: str
    link: str


def get_info(target: Target, devid: int) -> DeviceInfo:
    """
    Return the device *devid* of the filesystem.

    Issues ``BTRFS_IOC_DEV_INFO``, which needs no privilege.

    Raises:
        OSError: ENODEV: the filesystem has no such device.
    """
    with opened(target) as fd:
        return _device_info(ioctl.dev_info(fd, devid))


def iterate(target: Target) -> Generator[DeviceInfo, None, None]:
    """
    Yield the devices of the filesystem, by devid. A device that is removed concurrently is skipped.

    Issues ``BTRFS_IOC_FS_INFO``, and ``BTRFS_IOC_DEV_INFO`` for each devid up to the largest. They need no privilege.
    """
    with opened(target) as fd:
        for info in filesystem.dev_infos(fd):
            yield _device_info(info)


def get_stats(target: Target, devid: int | None = None, *, reset: bool = False) -> DeviceStats:
    """
    Return the error counters of the device *devid*, and atomically reset them to 0 if *reset* is true.

    Without *devid*, the filesystem must have only one device, whose devid need not be 1.

    Writes that fail because the device itself is out of space, such as an image on a full host, are not counted.

    Issues ``BTRFS_IOC_GET_DEV_STATS``, which needs no privilege, or ``CAP_SYS_ADMIN`` to reset.

    Raises:
        ValueError: The filesystem has several devices, and *devid* is missing.
        OSError: ENODEV: the filesystem has no such device.
    """
    with opened(target) as fd:
        chosen = filesystem.only_devid(fd) if devid is None else devid
        return DeviceStats(*ioctl.get_dev_stats(fd, chosen, ioctl.DEV_STATS_RESET if reset else 0))


def get_state(target: Target, device: DeviceInfo) -> DeviceState:
    """
    Return the state of *device*, a device of the filesystem.

    Reads ``/sys/fs/btrfs``, which needs no privilege. Without sysfs, a device with a path is present, and no device is
    a seed. Before Linux 5.17, which has no fsid there, every device that cannot be written to is a seed.
    """
    with opened(target) as fd:
        return _state(_directory(fd), device)


def find_node(target: Target) -> Node:
    """
    Return a device node by which the filesystem can be mounted: of a device that is present and no seed.

    The kernel remembers the path by which a device was found, and the node may have been renamed since. So the node's
    number is compared with the numbers in ``/sys/fs/btrfs``. Where /dev has no disks, as in a sandbox, the kernel's
    name of a device decides, and without sysfs the remembered path. Needs no privilege.

    Raises:
        OSError: ENODEV: no device is present.
    """
    with opened(target) as fd:
        directory = _directory(fd)
        numbers = _numbers(directory)
        devices = [(each, _state(directory, each)) for each in iterate(fd)]
    present = [(each.path, state.seed) for each, state in devices if not state.missing]
    paths = [path for path, seed in present if not seed] or [path for path, _ in present]
    seeds = {_name(each.path, numbers) for each, state in devices if state.seed}
    others = [name for name in numbers if name not in seeds]
    by_number = {number: name for name, number in numbers.items()}
    candidates = [
        *((path, by_number.get(_number(path))) for path in paths),
        *((_path(name), name if _number(_path(name)) == numbers[name] else None) for name in others),
        *((path, _name(path, numbers)) for path in paths),
        *((_path(name), name) for name in others),
    ]
    for path, name in candidates:
        if name is not None:
            return Node(path, f"{directory}/devices/{name}")
    if not paths:
        raise OSError(errno.ENODEV, "no device of the filesystem is present")
    return Node(next(filter(_number, paths), paths[0]), "")


def _directory(fd: int) -> str:
    return sysfs.directory(filesystem.get_info(fd).fsid_bytes)


def _state(directory: str, device: DeviceInfo) -> DeviceState:
    own = f"{directory}/devinfo/{device.devid}"
    missing = device.path in _NO_PATHS or sysfs.read(f"{own}/missing") == "1"
    fsid = sysfs.read(f"{own}/fsid")
    seed = fsid != os.path.basename(directory) if fsid else sysfs.read(f"{own}/writeable") == "0"
    return DeviceState(missing, seed and not missing)


def _numbers(directory: str) -> dict[str, str]:
    """
    Return the block devices of a filesystem, by the kernel's name, each with its number as ``major:minor``.
    """
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(f"{directory}/devices"))
        return {name: number for name in names if (number := sysfs.read(f"{directory}/devices/{name}/dev"))}
    return {}


def _path(name: str) -> str:
    """
    Return the path of the node that the kernel makes for the block device *name*.
    """
    return "/dev/" + name.replace("!", "/")


def _number(path: str) -> str:
    """
    Return the number of the node *path* as ``major:minor``, or "" if *path* is no block device.
    """
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return ""


def _name(path: str, numbers: dict[str, str]) -> str | None:
    """
    Return the kernel's name of the device whose path is *path*, by number or by name, or None if that is unknown.
    """
    number = _number(path)
    for name, own in numbers.items():
        mapped = sysfs.read(f"/sys/class/block/{name}/dm/name")
        if number == own or (not number and path in (_path(name), f"/dev/mapper/{mapped}")):
            return name
    return None


def _device_info(info: ioctl.DevInfo) -> DeviceInfo:
    return DeviceInfo(info.devid, info.uuid, info.bytes_used, info.total_bytes, os.fsdecode(info.path))
