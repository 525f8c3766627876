"""
Which subvolumes are mounted, and where: ``/proc/PID/mountinfo`` of every mount namespace that can be seen.
"""

import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from pybtrfs import syscall

_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# What statvfs(2) answers with. `os` has it, but PyPy's has not all.
_INHERITED = {syscall.MS_NOSUID: "nosuid", syscall.MS_NODEV: "nodev", syscall.MS_NOEXEC: "noexec"}
_SUBVOLID = re.compile(rb"(?:^|,)subvolid=(\d+)")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class MountTable(NamedTuple):
    """
    What was mounted at one moment.

    Attributes:
        subvolids: Those of one filesystem, in any namespace.
        points: The mount points below a store, in this namespace.
    """

    subvolids: frozenset[int] = frozenset()
    points: tuple[str, ...] = ()

    def has_mount_below(self, path: str) -> bool:
        """
        Whether something is mounted at *path* or inside.
        """
        return any(point == path or point.startswith(path + "/") for point in self.points)


class MountPoint(NamedTuple):
    """
    One mount of a subvolume, or of a directory in it.

    Attributes:
        path: Where, as the processes of its namespace see it.
        pid: Of a process that sees it.
    """

    subvolid: int
    path: str
    pid: int
    read_only: bool


def device_of(fd: int) -> bytes | None:
    """
    ``major:minor`` of the filesystem *fd* is on, as mountinfo shows it, or None when its mount cannot be seen.

    The number that stat(2) gives is the subvolume's own, not the filesystem's.
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
    The options of the mount that *path* is on which a bind mount of it has too, and a container cannot do with.
    """
    flags = os.statvfs(path).f_flag
    return [name for flag, name in _INHERITED.items() if flags & flag]


def read(device: bytes | None, root: str) -> MountTable:
    """
    The mounts of the btrfs *device*, of every btrfs when it is None, which may only find too many; and those below
    the path *root*.
    """
    subvolids: set[int] = set()
    for _, line in _lines(device):
        subvolids.update(map(int, _SUBVOLID.findall(line.rpartition(b" ")[2])))
    with open("/proc/self/mountinfo", "rb") as file:
        points = (_unescape(line.split(None, 5)[4]) for line in file)
        return MountTable(frozenset(subvolids), tuple(point for point in points if point.startswith(root + "/")))


def mount_points(device: bytes | None) -> Iterator[MountPoint]:
    """
    The mounts of the btrfs *device*, of every btrfs when it is None, in every mount namespace.
    """
    for pid, line in _lines(device):
        fields = line.split()
        for subvolid in _SUBVOLID.findall(fields[-1]):
            yield MountPoint(int(subvolid), _unescape(fields[4]), pid, b"ro" in fields[5].split(b","))


def _lines(device: bytes | None) -> Iterator[tuple[int, bytes]]:
    """
    The lines of all tables that may be of the btrfs *device*, or of any, with the process that each is of.
    """
    for pid, data in _tables():
        for line in data.splitlines():
            if b" btrfs " in line and (device is None or line.split(None, 3)[2] == device):
                yield pid, line


def _tables() -> Iterator[tuple[int, bytes]]:
    """
    One mountinfo for each mount namespace, and the process that it is of.
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
            if error.errno in _OUT_OF:
                raise  # what cannot be read now may be mounted
            continue  # the process ended, or is not ours to look at: the next of its namespace may be
        seen.add(namespace)


def _unescape(path: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), path))
