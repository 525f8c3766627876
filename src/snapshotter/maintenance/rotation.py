"""
Rotation of the disks below a filesystem, as far as sysfs shows it.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from enum import Enum

from pybtrfs import sysfs

# The buses of KVM, Xen and Hyper-V, and the models of disks that an emulator puts on another bus.
_VIRTUAL_BUS = re.compile(r"/(virtio\d+|vbd-\d+|VMBUS:\w+)/")
_VIRTUAL_MODEL = re.compile(r"QEMU|VMware|VBOX|Virtual")


class Rotation(Enum):
    """
    The rotation of the disks of a filesystem.

    Attributes:
        NONE: No disk rotates.
        CLAIMED: Only disks of a virtual machine call themselves rotational. Most hypervisors say so of every disk.
        POSSIBLE: A disk rotates, or the disks are unknown.
    """

    NONE = "none"
    CLAIMED = "claimed"
    POSSIBLE = "possible"


def of(devices: str, *, by_number: str = "/sys/dev/block") -> Rotation:
    """
    Return the rotation of the block devices in a directory of sysfs, down to the disks below them.

    Args:
        devices: A directory with a link to each device, such as ``/sys/fs/btrfs/FSID/devices``.
        by_number: The directory with a link to each block device of the system, named ``major:minor``.
    """
    disks = {disk for path in _listed(devices) for disk in _disks(path, by_number)}
    rotating = [disk for disk in disks if sysfs.read(f"{disk}/queue/rotational") != "0"]
    if disks and not rotating:
        return Rotation.NONE
    return Rotation.CLAIMED if rotating and all(map(_is_virtual, rotating)) else Rotation.POSSIBLE


def _disks(path: str, by_number: str) -> Iterator[str]:
    """
    Yield the disks below a block device: of a partition, of a loop device, of the device mapper, or of an array.
    """
    path = os.path.realpath(path)
    if os.path.exists(f"{path}/partition"):
        path = os.path.dirname(path)
    below = _listed(f"{path}/slaves") or _backing(path, by_number)
    for each in below:
        yield from _disks(each, by_number)
    if not below:
        yield path


def _backing(path: str, by_number: str) -> list[str]:
    file = sysfs.read(f"{path}/loop/backing_file")
    with contextlib.suppress(OSError):  # deleted, or in another mount namespace
        number = os.stat(file).st_dev
        device = f"{by_number}/{os.major(number)}:{os.minor(number)}"
        if os.path.exists(device):  # a filesystem without a device, or with several, has another number
            return [device]
    return []


def _is_virtual(disk: str) -> bool:
    model = sysfs.read(f"{disk}/device/vendor") + sysfs.read(f"{disk}/device/model")
    return bool(_VIRTUAL_BUS.search(disk) or _VIRTUAL_MODEL.search(model))


def _listed(directory: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory))]
    return []
