"""
What a store holds at one moment: its snapshots with their subvolumes and sizes, and the subvolumes that are no
snapshot's.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pybtrfs import ioctl, mountinfo, subvolume, syscall
from pybtrfs.path import opened
from pybtrfs.subvolume import SubvolumeInfo
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError, translating
from snapshotter.model import Info, Kind, Usage
from snapshotter.store import records
from snapshotter.store.layout import EMPTY, FS, LAYER, SNAPSHOTS
from snapshotter.store.record_storage import XATTR
from snapshotter.store.records import Record, State
from snapshotter.store.usage import measure_by_id


class Volume(NamedTuple):
    """
    A subvolume in a store, with those nested in it.

    Args:
        path: Where it is, from the root of the store.
        base: The layer that it began as; None where it began empty, or that layer is gone.
    """

    path: str
    info: SubvolumeInfo
    nested: tuple[SubvolumeInfo, ...] = ()
    base: SubvolumeInfo | None = None

    @property
    def subvolids(self) -> frozenset[int]:
        return frozenset(info.id for info in (self.info, *self.nested))


class Entry(NamedTuple):
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
        volumes = {volume.path: volume for volume in _volumes(fd, store.root)}
        mounted = mountinfo.read(mountinfo.device_of(fd), store.root).subvolids
        located = {each.info.name: each for each in store.opened.locate()}
        children = Counter(each.info.parent for each in located.values())
        entries = {}
        for name in sorted(located):
            info, path, known_usage, problem = located[name]
            volume = volumes.get(path)
            if volume is None and not problem:
                continue  # its owner committed or removed it meanwhile
            usage = None
            if volume:
                base = volumes.get(located[info.parent].path) if info.parent in located else None
                volume = Volume(path, volume.info, volume.nested, base.info if base else None)
                usage = (known_usage or _usage(store, fd, name, volume)) if measured else None
            in_use = volume is not None and volume.info.id in mounted
            own = None if info.kind is Kind.VIEW else volume
            entries[name] = Entry(info, own, usage, children[name], in_use, problem)
        known = {entry.volume.path for entry in entries.values() if entry.volume} | {EMPTY}
        unknown = {problem.subject.removeprefix(f"{store.root}/") for problem in store.problems()}
        pending, orphaned = [], []
        for path in sorted(volumes.keys() - known):
            directory = _directory(path)
            if not directory or directory in unknown:
                orphaned.append(_with_origin(volumes, path))
            elif (record := _record(fd, directory)) and _is_pending(record, path):
                layer = volumes.get(f"{SNAPSHOTS}/{record.parent}/{LAYER}")
                pending.append(volumes[path]._replace(base=layer.info if layer else None))
        return Inventory(entries, tuple(pending), tuple(orphaned))


def _usage(store: Snapshotter, fd: int, key: str, volume: Volume) -> Usage | None:
    base = volume.base
    try:
        # By ids, for thousands of active snapshots: to open them and their parents takes longer than to search.
        if base and volume.info.raw.parent_uuid == base.raw.uuid:
            return store.opened.usage_of(measure_by_id(fd, volume.info.id, volume.info.otransid, base.id))
        return store.usage(key)
    except (DataLossError, FileNotFoundError):
        return None  # its parent's subvolume is lost, or its own was destroyed meanwhile


def _volumes(fd: int, root: str) -> Iterator[Volume]:
    """
    The subvolumes below the *root*, which is open as *fd*.
    """
    inode = os.fstat(fd).st_ino
    above = "" if inode == ioctl.FIRST_FREE_OBJECTID else os.fsdecode(ioctl.ino_lookup(fd, 0, inode)[1])
    with os.scandir(os.path.join(root, SNAPSHOTS)) as entries:
        directories = {entry.inode(): f"{above}{SNAPSHOTS}/{entry.name}/" for entry in entries}
    whole: dict[str, SubvolumeInfo] = {}
    nested: dict[str, list[SubvolumeInfo]] = {}
    for path, info in subvolume.iterate(fd, top=0, directories=directories):
        if path.startswith(above):
            path = path[len(above) :]
            directory, *names = path.split("/", 3)
            if directory == SNAPSHOTS and len(names) == 3:
                nested.setdefault(f"{directory}/{names[0]}/{names[1]}", []).append(info)
            else:
                whole[path] = info
    for path, info in whole.items():
        yield Volume(path, info, tuple(nested.get(path, ())))


def _directory(path: str) -> str:
    """
    The directory of the snapshot that the subvolume *path* is or was of; empty for what is elsewhere.
    """
    directory, _, name = path.rpartition("/")
    return directory if directory.startswith(f"{SNAPSHOTS}/") and name in (FS, LAYER) else ""


def _with_origin(volumes: Mapping[str, Volume], path: str) -> Volume:
    """
    The volume at *path*, of which no record says what it began as, with what the filesystem does.
    """
    volume = volumes[path]
    source = volume.info.raw.parent_uuid
    base = next(
        (other.info for other in volumes.values() if other.info.read_only and other.info.raw.uuid == source), None
    )
    return volume._replace(base=base)


def _record(fd: int, directory: str) -> Record | None:
    """
    The record of a snapshot, as it is by now; None when there is none that can be read.
    """
    try:
        data, _ = syscall.read_directory(fd, directory, XATTR, ())
        return records.decode(data, int(directory.rpartition("/")[2])) if data else None
    except (FileNotFoundError, records.DamagedError):
        return None


def _is_pending(record: Record, path: str) -> bool:
    """
    Whether *record* says that the subvolume *path* is to be destroyed, not that it is newer than the inventory.
    """
    left_over = State.COMMITTED if path.endswith(f"/{FS}") else State.ACTIVE
    return record.state in (State.REMOVED, State.COMMITTING, left_over)
