"""
Holders of a snapshot: its children, its mounts, and the processes that use it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from pybtrfs import mountinfo, processes, subvolume
from pybtrfs.path import opened
from snapshotter.analysis import inventory
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError, NotFoundError, quoted, translating
from snapshotter.store import holding_mounts
from snapshotter.store.holding_mounts import HoldingMount

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
        mounts: Its mounts and the mounts in it, in every visible mount namespace; for a view, those of its parent's
            layer.
        processes: The processes whose root, working directory, program or open files are in it.
        removed: The snapshot is removed, and waits for its destruction.
    """

    children: tuple[str, ...]
    mounts: tuple[HoldingMount, ...]
    processes: tuple[Process, ...]
    removed: bool = False


def find(store: Snapshotter, key: str) -> Holders:
    """
    Find the holders of the snapshot *key*.

    If no snapshot has the key, find the holders of removed snapshots that wait for their destruction. The key is one
    that they had, or an id.

    Processes that start or end during the call may be missing. Files that are mapped but no longer open are not found.
    Processes of other users are found only if the caller is root in their user namespace.

    Raises:
        NotFoundError: No snapshot has the key, and no removed one that waits for its destruction had it.
    """
    try:
        store.stat(key)
    except NotFoundError:
        found = _of_removed(store, key)
        if found is None:
            raise
        return found
    children = tuple(sorted(info.name for info in store.walk() if info.parent == key))
    try:
        path = store.subvolume(key)
    except DataLossError:
        return Holders(children, (), ())  # its subvolume is gone, so nothing can be mounted
    with translating(f"find the holders of snapshot {quoted(key)}"):
        return Holders(children, *_of_subvolume(store.root, path))


def _of_removed(store: Snapshotter, key: str) -> Holders | None:
    pending = inventory.take(store, measured=False).pending
    volumes = [volume for volume in pending if volume.key == key] or [volume for volume in pending if volume.id == key]
    mounts: list[HoldingMount] = []
    using: list[Process] = []
    for volume in volumes:
        with contextlib.suppress(FileNotFoundError):  # destroyed since it was listed
            held, users = _of_subvolume(store.root, f"{store.root}/{volume.path}")
            mounts += held
            using += users
    return Holders((), tuple(mounts), tuple(using), removed=True) if volumes else None


def _of_subvolume(root: str, path: str) -> tuple[tuple[HoldingMount, ...], tuple[Process, ...]]:
    with opened(path) as fd, opened(root) as root_fd:
        subvolids = {subvolume.get_id(fd)}
        if any(subvolume.children(fd)):
            subvolids.update(entry.info.id for entry in subvolume.iterate(fd, top=0))
        mounts = mountinfo.read(root_fd, root).of(subvolids, path)
        return holding_mounts.locate(mounts), tuple(_processes(os.fstat(fd).st_dev))


def _processes(device: int) -> Iterator[Process]:
    """
    Yield the processes that use files on *device*, the device number of the subvolume.
    """
    own = str(os.getpid())
    for pid in processes.pids():
        if pid != own:
            uses = tuple(name for name in ("root", "cwd", "exe") if _is_on(device, f"/proc/{pid}/{name}"))
            files = sum(_is_on(device, f"/proc/{pid}/fd/{fd}") for fd in processes.listed(f"/proc/{pid}/fd"))
            if uses or files:
                yield Process(int(pid), processes.command(pid, _COMMAND_SIZE), uses, files)


def _is_on(device: int, path: str) -> bool:
    try:
        return os.stat(path).st_dev == device
    except OSError:
        return False  # the process ended, the file was closed, or access is denied
