"""
Mounts of btrfs subvolumes, read from ``/proc/PID/mountinfo`` of every mount namespace that the caller can see.
"""

import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from pybtrfs import syscall

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# Flags of statvfs(2). `os` has them as well, but not all of them on PyPy.
_INHERITED = {syscall.MS_NOSUID: "nosuid", syscall.MS_NODEV: "nodev", syscall.MS_NOEXEC: "noexec"}
_SUBVOLID = re.compile(rb"(?:^|,)subvolid=(\d+)")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class MountTable(NamedTuple):
    """
    The mounts of one filesystem at one moment.

    Attributes:
        subvolids: The mounted subvolumes, in any mount namespace.
        points: The mount points below a directory, in this mount namespace.
    """

    subvolids: frozenset[int] = frozenset()
    points: tuple[str, ...] = ()

    def has_mount_below(self, path: str) -> bool:
        """
        Return whether something is mounted at *path* or below it.
        """
        return any(point == path or point.startswith(path + "/") for point in self.points)


class MountPoint(NamedTuple):
    """
    A mount of a subvolume, or of a directory in it.

    Attributes:
        path: The mount point, as the processes of its mount namespace see it.
        pid: A process in that namespace.
    """

    subvolid: int
    path: str
    pid: int
    read_only: bool


def device_of(fd: int) -> bytes | None:
    """
    Return ``major:minor`` of the filesystem of *fd* as mountinfo shows it, or None if its mount is not visible.

    It differs from st_dev of stat(2), which is the number of the subvolume.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        mount_id = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(None, 3)
            if fields[0] == mount_id:
                return fields[2]
    return None


def inherited(path: str) -> list[str]:
    """
    Return the mount options of *path* that a bind mount inherits and that break containers: nosuid, nodev, noexec.
    """
    flags = os.statvfs(path).f_flag
    return [name for flag, name in _INHERITED.items() if flags & flag]


def read(device: bytes | None, root: str) -> MountTable:
    """
    Return the mounts of a filesystem in every mount namespace, and the mount points below *root* in this namespace.

    Args:
        device: As `device_of` returns it. None means every btrfs; the ids are then of several filesystems.
        root: An absolute path.
    """
    subvolids: set[int] = set()
    for _, line in _lines(device):
        subvolids.update(map(int, _SUBVOLID.findall(line.rpartition(b" ")[2])))
    with open("/proc/self/mountinfo", "rb") as file:
        points = (_unescape(line.split(None, 5)[4]) for line in file)
        return MountTable(frozenset(subvolids), tuple(point for point in points if point.startswith(root + "/")))


def mount_points(device: bytes | None) -> Iterator[MountPoint]:
    """
    Yield the mounts of the filesystem *device* in every mount namespace.

    Args:
        device: As `device_of` returns it; None means every btrfs.
    """
    for pid, line in _lines(device):
        fields = line.split()
        for subvolid in _SUBVOLID.findall(fields[-1]):
            yield MountPoint(int(subvolid), _unescape(fields[4]), pid, b"ro" in fields[5].split(b","))


def mounted_from(source: str) -> Iterator[str]:
    """
    Yield the mount points of the block device *source*, such as ``/dev/loop0``, in this mount namespace.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            mount, _, filesystem = line.partition(b" - ")
            if _unescape(filesystem.split()[1]) == source:
                yield _unescape(mount.split()[4])


def _lines(device: bytes | None) -> Iterator[tuple[int, bytes]]:
    """
    Yield the lines that may be mounts of the filesystem *device*, or of any btrfs, each with a process that sees it.
    """
    for pid, data in _tables():
        for line in data.splitlines():
            if b" btrfs " in line and (device is None or line.split(None, 3)[2] == device):
                yield pid, line


def _tables() -> Iterator[tuple[int, bytes]]:
    """
    Yield the mountinfo of each mount namespace once, with a process of that namespace.
    """
    seen = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace in seen:
                continue
            with open(f"/proc/{name}/mountinfo", "rb") as file:
                yield int(name), file.read()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                raise  # skipping this table could hide a mount
            continue  # the process ended or is not readable; another process of the same namespace may be
        seen.add(namespace)


def _unescape(path: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), path))
