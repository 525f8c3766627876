"""
What keeps a snapshot: the snapshots that rest on it, its mounts, and the processes that use them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pybtrfs import mountinfo, subvolume
from pybtrfs.mountinfo import MountPoint
from pybtrfs.path import opened
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError, quoted, translating

_COMMAND_SIZE = 200  # bytes; more does not tell a process from others


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process that would notice.

    Args:
        uses: Of ``"root"``, when it lives in there as in a container, ``"cwd"`` and ``"exe"`` those that are there.
        open_files: How many it has open there.
    """

    pid: int
    command: str
    uses: tuple[str, ...]
    open_files: int


@dataclass(frozen=True, slots=True)
class Holders:
    """
    Args:
        children: The keys of the snapshots on it: it cannot be removed before them.
        mounts: In every mount namespace that can be seen; of a view these are those of its parent's layer.
        processes: Those that have their root, working directory, program or an open file in it.
    """

    children: tuple[str, ...]
    mounts: tuple[MountPoint, ...]
    processes: tuple[Process, ...]


def find(store: Snapshotter, key: str) -> Holders:
    """
    Find what keeps the snapshot *key*.

    A process that ended, or began, meanwhile is found or not. Files that are mapped and no longer open are not seen,
    nor is what other users' processes do unless the caller is root in their user namespace.

    Raises:
        NotFoundError: No snapshot has the key.
    """
    store.stat(key)
    children = tuple(sorted(info.name for info in store.walk() if info.parent == key))
    try:
        path = store.subvolume(key)
    except DataLossError:
        return Holders(children, (), ())  # there is nothing left to mount
    with translating(f"look for what keeps snapshot {quoted(key)}"), opened(path) as fd:
        subvolids = {subvolume.get_id(fd)}
        if any(subvolume.children(fd)):
            subvolids.update(entry.info.id for entry in subvolume.iterate(fd, top=0))
        mounts = (point for point in mountinfo.mount_points(mountinfo.device_of(fd)) if point.subvolid in subvolids)
        return Holders(children, tuple(mounts), tuple(_processes(os.fstat(fd).st_dev)))


def _processes(device: int) -> Iterator[Process]:
    """
    Those that use what is on *device*, which is the subvolume's own number.
    """
    own = str(os.getpid())
    for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        if pid != own:
            uses = tuple(name for name in ("root", "cwd", "exe") if _is_on(device, f"/proc/{pid}/{name}"))
            files = sum(_is_on(device, f"/proc/{pid}/fd/{fd}") for fd in _listed(f"/proc/{pid}/fd"))
            if uses or files:
                yield Process(int(pid), _command(pid), uses, files)


def _is_on(device: int, path: str) -> bool:
    try:
        return os.stat(path).st_dev == device
    except OSError:
        return False  # ended, closed, or not ours to look at


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read(_COMMAND_SIZE).rstrip(b"\0").replace(b"\0", b" "))
    except OSError:
        return ""
