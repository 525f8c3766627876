"""
Holders of a snapshot: its children, its mounts, and the processes that use it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pybtrfs import mountinfo, subvolume
from pybtrfs.mountinfo import MountPoint
from pybtrfs.path import opened
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError, quoted, translating

_COMMAND_SIZE = 200  # bytes of the command line; enough to recognize a process


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process that uses files of a snapshot.

    Args:
        command: The command line, separated by spaces, cut off after 200 bytes.
        uses: The names among ``"root"``, ``"cwd"`` and ``"exe"`` that are in the snapshot.
        open_files: The number of its open files in the snapshot.
    """

    pid: int
    command: str
    uses: tuple[str, ...]
    open_files: int


@dataclass(frozen=True, slots=True)
class Holders:
    """
    Everything that keeps a snapshot from being removed or destroyed.

    Args:
        children: The keys of its children, which must be removed first.
        mounts: Its mounts in every visible mount namespace; for a view, the mounts of its parent's layer.
        processes: The processes whose root, working directory, program or open files are in it.
    """

    children: tuple[str, ...]
    mounts: tuple[MountPoint, ...]
    processes: tuple[Process, ...]


def find(store: Snapshotter, key: str) -> Holders:
    """
    Find the holders of the snapshot *key*.

    Processes that start or end during the call may be missing. Files that are mapped but no longer open are not found.
    Processes of other users are found only if the caller is root in their user namespace.

    Raises:
        NotFoundError: No snapshot has the key.
    """
    store.stat(key)
    children = tuple(sorted(info.name for info in store.walk() if info.parent == key))
    try:
        path = store.subvolume(key)
    except DataLossError:
        return Holders(children, (), ())  # its subvolume is gone, so nothing can be mounted
    with translating(f"find the holders of snapshot {quoted(key)}"), opened(path) as fd:
        subvolids = {subvolume.get_id(fd)}
        if any(subvolume.children(fd)):
            subvolids.update(entry.info.id for entry in subvolume.iterate(fd, top=0))
        mounts = (point for point in mountinfo.mount_points(mountinfo.device_of(fd)) if point.subvolid in subvolids)
        return Holders(children, tuple(mounts), tuple(_processes(os.fstat(fd).st_dev)))


def _processes(device: int) -> Iterator[Process]:
    """
    Yield the processes that use files on *device*, the device number of the subvolume.
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
        return False  # the process ended, the file was closed, or access is denied


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
