"""
What a store holds at one moment: its snapshots with their subvolumes and sizes, and the subvolumes that are no
snapshot's.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from pybtrfs import ioctl, subvolume, tree_search
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
        mounted = mountinfo.read(mountinfo.device_of(fd), store.root).subvolids
        infos = sorted(store.walk(), key=attrgetter("name"))
        children = Counter(info.parent for info in infos)
        places = {info.name: _place(store, info.name) for info in infos}
        entries = {}
        for info in infos:
            path, problem = places[info.name]
            volume = volumes.get(path)
            if volume is None and not problem:
                continue  # its owner committed or removed it meanwhile
            usage = None
            if volume and measured:
                base = volumes.get(places[info.parent][0]) if info.parent in places else None
                usage = _usage(store, fd, info, volume, base)
            own = None if info.kind is Kind.VIEW else volume
            in_use = volume is not None and volume.info.id in mounted
            entries[info.name] = Entry(info, own, usage, children[info.name], in_use, problem)
        known = {entry.volume.path for entry in entries.values() if entry.volume} | {EMPTY}
        unknown = {problem.subject.removeprefix(f"{store.root}/") for problem in store.problems()}
        pending, orphaned = [], []
        for path, volume in volumes.items():
            directory = _directory(path)
            if path not in known and (not directory or directory in unknown):
                orphaned.append(volume)
            elif path not in known and _is_pending(fd, path):
                pending.append(volume)
        return Inventory(entries, tuple(pending), tuple(orphaned))


def _place(store: Snapshotter, key: str) -> tuple[str, str]:
    """
    The path of the subvolume of a snapshot from the root, or why there is none.
    """
    try:
        return store.subvolume(key).removeprefix(f"{store.root}/"), ""
    except DataLossError as error:
        return "", str(error)


def _usage(store: Snapshotter, fd: int, info: Info, volume: Volume, base: Volume | None) -> Usage | None:
    # One search instead of ten system calls for each of the thousands that were never written to.
    if info.kind is Kind.ACTIVE and base and volume.info.raw.parent_uuid == base.info.raw.uuid:
        since = volume.info.otransid + 1
        if next(tree_search.search_files(fd, tree_id=volume.info.id, min_transid=since), None) is None:
            return Usage()
    try:
        return store.usage(info.name)
    except DataLossError:
        return None  # its parent's subvolume is lost, or its own was destroyed meanwhile


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


def _directory(path: str) -> str:
    """
    The directory of the snapshot that the subvolume *path* is or was of; empty for what is elsewhere.
    """
    directory, _, name = path.rpartition("/")
    return directory if directory.startswith(f"{SNAPSHOTS}/") and name in (FS, LAYER) else ""


def _is_pending(fd: int, path: str) -> bool:
    """
    Whether the record says that the subvolume *path* is to be destroyed, not that it is newer than the inventory.
    """
    directory, _, name = path.rpartition("/")
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return False
    try:
        data = records.medium(directory_fd).read(directory_fd)
        state = records.decode(data, int(directory.rpartition("/")[2])).state if data else None
    except records.DamagedError:
        return False
    finally:
        os.close(directory_fd)
    return state in (State.REMOVED, State.COMMITTING) or state is (State.COMMITTED if name == FS else State.ACTIVE)
