"""
What a store holds at one moment: its snapshots with their subvolumes and sizes, and the subvolumes that are no
snapshot's.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter

from pybtrfs import ioctl, subvolume
from pybtrfs.path import opened
from pybtrfs.subvolume import SubvolumeInfo
from snapshotter import mountinfo, records
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError
from snapshotter.records import State
from snapshotter.session import translating
from snapshotter.snapshot import Info, Kind, Usage
from snapshotter.store import SNAPSHOTS
from snapshotter.volumes import EMPTY, FS, LAYER


@dataclass(frozen=True, slots=True)
class Volume:
    """
    A subvolume in a store, with those nested in it.

    Args:
        path: Where it is, from the root of the store.
    """

    path: str
    info: SubvolumeInfo
    nested: tuple[SubvolumeInfo, ...] = ()

    @property
    def subvolids(self) -> frozenset[int]:
        return frozenset(info.id for info in (self.info, *self.nested))


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A snapshot.

    Args:
        volume: Its own; None for a view, and for one that is lost.
        usage: What it added to its parent; None when it or its parent is lost, and where nobody asked.
        children: How many snapshots rest on it.
        mounted: In any mount namespace that can be seen; of a view it cannot be told from the others of its parent.
        problem: Why it cannot be used; empty when it can.
    """

    info: Info
    volume: Volume | None
    usage: Usage | None
    children: int
    mounted: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """
    Args:
        entries: By key, in its order.
        pending: What is left of removed snapshots, and of commits, until it is destroyed.
        orphaned: What no record accounts for; `Snapshotter.problems` names it.
    """

    entries: dict[str, Entry]
    pending: tuple[Volume, ...]
    orphaned: tuple[Volume, ...]


def take(store: Snapshotter, *, measured: bool = True) -> Inventory:
    """
    Take the inventory of an open *store*, best of one opened read-only: it needs no lock, beside whoever has it.

    What its owner makes or removes meanwhile is left out. Issues one tree search of all subvolumes, and one for each
    active snapshot; needs ``CAP_SYS_ADMIN``.

    Args:
        measured: Ask for the usage of each.

    Raises:
        UnavailableError: The filesystem does not answer.
    """
    with translating(f"take the inventory of store {store.root!r}"), opened(store.root) as fd:
        volumes = {volume.path: volume for volume in _volumes(fd)}
        mounted = mountinfo.read(mountinfo.device_of(fd), store.root)
        entries = {}
        infos = sorted(store.walk(), key=attrgetter("name"))
        children = Counter(info.parent for info in infos)
        for info in infos:
            entry = _entry(store, info, volumes, children[info.name], mounted.subvolids, measured)
            if entry:
                entries[info.name] = entry
        own = {entry.volume.path for entry in entries.values() if entry.volume}
        rest = [volume for path, volume in volumes.items() if path not in own and path != EMPTY]
        unknown = {os.path.relpath(problem.subject, store.root) for problem in store.problems()}
        orphaned = [volume for volume in rest if _directory(volume) in unknown or not _directory(volume)]
        pending = [volume for volume in rest if volume not in orphaned and _is_pending(fd, volume)]
        return Inventory(entries, tuple(pending), tuple(orphaned))


def _volumes(fd: int) -> Iterator[Volume]:
    """
    The subvolumes below the root *fd*.
    """
    inode = os.fstat(fd).st_ino
    above = "" if inode == ioctl.FIRST_FREE_OBJECTID else os.fsdecode(ioctl.ino_lookup(fd, 0, inode)[1])
    whole: dict[str, SubvolumeInfo] = {}
    nested: dict[str, list[SubvolumeInfo]] = {}
    for path, info in subvolume.iterate(fd, top=0):
        if path.startswith(above):
            path = path[len(above) :]
            outer = _outer(path)
            if outer == path:
                whole[path] = info
            else:
                nested.setdefault(outer, []).append(info)
    for path, info in whole.items():
        yield Volume(path, info, tuple(nested.get(path, ())))


def _outer(path: str) -> str:
    """
    The subvolume of a store that *path*, of a subvolume, is or is nested in.
    """
    return "/".join(path.split("/", 3)[:3]) if path.startswith(f"{SNAPSHOTS}/") else path


def _directory(volume: Volume) -> str:
    """
    The directory of the snapshot that *volume* is or was of; empty for what is elsewhere.
    """
    directory, _, name = volume.path.rpartition("/")
    return directory if directory.startswith(f"{SNAPSHOTS}/") and name in (FS, LAYER) else ""


def _entry(
    store: Snapshotter,
    info: Info,
    volumes: dict[str, Volume],
    children: int,
    mounted: Collection[int],
    measured: bool,
) -> Entry | None:
    try:
        path = os.path.relpath(store.subvolume(info.name), store.root)
    except DataLossError as error:
        return Entry(info, None, None, children, False, str(error))
    volume = volumes.get(path)
    if volume is None:
        return None  # its owner committed or removed it meanwhile
    usage = None
    if measured:
        with contextlib.suppress(DataLossError):  # its parent's is, or its own was destroyed meanwhile
            usage = store.usage(info.name)
    is_view = info.kind is Kind.VIEW
    return Entry(info, None if is_view else volume, usage, children, volume.info.id in mounted, "")


def _is_pending(fd: int, volume: Volume) -> bool:
    """
    Whether its record says that *volume* is to be destroyed, not that it is newer than the inventory.
    """
    name = volume.path.rpartition("/")[2]
    directory = _directory(volume)
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return False
    try:
        data = records.read(directory_fd)
        state = records.decode(data, int(directory.rpartition("/")[2])).state if data else None
    except records.DamagedError:
        return False
    finally:
        os.close(directory_fd)
    return state in (State.REMOVED, State.COMMITTING) or state is (State.COMMITTED if name == FS else State.ACTIVE)
