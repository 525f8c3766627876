"""
Inventory of a store at one moment: its snapshots with their subvolumes and sizes, and its other subvolumes.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pybtrfs import ioctl, mountinfo, subvolume
from pybtrfs.mountinfo import MountPoint
from pybtrfs.path import open_directory, opened, owned
from pybtrfs.subvolume import SubvolumeInfo
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError, NotFoundError, UnavailableError, translating
from snapshotter.model import Info, Kind, Usage
from snapshotter.store import pieces, records
from snapshotter.store.layout import EMPTY, FS, LAYER, SNAPSHOTS
from snapshotter.store.record_storage import Xattrs
from snapshotter.store.records import Record, State
from snapshotter.store.usage import measure_by_id


class Volume(NamedTuple):
    """
    A subvolume in a store, with its nested subvolumes.

    Args:
        path: The path from the root of the store.
        base: The layer that it was snapshotted from; None if it was created empty, or if the layer is gone.
        key: The key of the snapshot, if the subvolume waits for destruction; else empty.
        mounts: The mounts that keep it from being destroyed, if it waits for that.
    """

    path: str
    info: SubvolumeInfo
    nested: tuple[SubvolumeInfo, ...] = ()
    base: SubvolumeInfo | None = None
    key: str = ""
    mounts: tuple[MountPoint, ...] = ()

    @property
    def id(self) -> str:
        """
        The name of the directory that contains it, which is the id of its snapshot.
        """
        return os.path.basename(os.path.dirname(self.path))

    @property
    def subvolids(self) -> frozenset[int]:
        """
        The ids of the subvolume and of its nested subvolumes.
        """
        return frozenset(info.id for info in (self.info, *self.nested))


class Entry(NamedTuple):
    """
    A snapshot in the inventory.

    Args:
        volume: Its own subvolume; None for a view, and if the subvolume is missing.
        usage: Its usage; None if its subvolume or its parent's is missing or unreadable, or if usage was not asked for.
        children: The number of its children.
        mounted: Whether it is mounted in any visible mount namespace. A view counts as mounted whenever its parent's
            layer is, because the two cannot be told apart.
        problem: The reason why it cannot be used or measured; empty if it can.
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
    The inventory of a store.

    Args:
        entries: The snapshots by key, sorted by key.
        pending: The subvolumes that wait for destruction after a removal or a commit.
        orphaned: The subvolumes that belong to no snapshot; `Snapshotter.problems` names their directories.
    """

    entries: dict[str, Entry]
    pending: tuple[Volume, ...]
    orphaned: tuple[Volume, ...]


def take(store: Snapshotter, *, measured: bool = True) -> Inventory:
    """
    Take the inventory of an open *store*.

    Needs no lock, so the store may be open read-only while another process holds it. Snapshots that the other process
    makes or removes during the call are left out.

    Issues one tree search for all subvolumes, and one for each active snapshot. Without ``CAP_SYS_ADMIN``, walks over
    the files of each active snapshot.

    Args:
        measured: Measure the usage of each snapshot.

    Raises:
        UnavailableError: The filesystem does not answer.
    """
    with translating(f"take the inventory of store {store.root!r}"), opened(store.root) as fd:
        volumes = {volume.path: volume for volume in _volumes(fd, store.root)}
        mounted = mountinfo.read(fd, store.root)
        located = {each.info.name: each for each in store.opened.locate()}
        children = Counter(each.info.parent for each in located.values())
        entries = {}
        for name in sorted(located):
            info, path, known_usage, problem = located[name]
            volume = volumes.get(path)
            if volume is None and not problem:
                continue  # committed or removed by the process that holds the store
            usage = None
            if volume:
                base = volumes.get(located[info.parent].path) if info.parent in located else None
                volume = Volume(path, volume.info, volume.nested, base.info if base else None)
                if measured and known_usage:
                    usage = known_usage
                elif measured and not problem:
                    usage, problem = _usage(store, fd, name, volume)
            in_use = volume is not None and (
                not mounted.subvolids.isdisjoint(volume.subvolids) or mounted.has_mount_below(f"{store.root}/{path}")
            )
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
                volume = volumes[path]
                mounts = mounted.of(volume.subvolids, f"{store.root}/{path}")
                pending.append(volume._replace(base=layer.info if layer else None, key=record.key, mounts=mounts))
        return Inventory(entries, tuple(pending), tuple(orphaned))


def _usage(store: Snapshotter, fd: int, key: str, volume: Volume) -> tuple[Usage | None, str]:
    """
    Return the usage of a snapshot, or the reason why the snapshot cannot be measured.
    """
    base = volume.base
    try:
        # Measured by id, because opening a snapshot and its parent takes longer than the search itself.
        if base and volume.info.raw.parent_uuid == base.raw.uuid:
            with contextlib.suppress(PermissionError):
                measured = measure_by_id(fd, volume.info.id, volume.info.otransid, base.id, volume.nested)
                return store.opened.usage_of(measured), ""
        return store.usage(key), ""
    except (DataLossError, NotFoundError, FileNotFoundError):
        return None, ""  # its parent's subvolume is missing, or its own has been destroyed since
    except (OSError, UnavailableError) as error:
        # An unreadable subvolume must not hide the other snapshots.
        return None, f"its subvolume cannot be read: {getattr(error, 'strerror', error)}"


def _volumes(fd: int, root: str) -> Iterator[Volume]:
    """
    Yield the subvolumes below *root*, which is open as *fd*.
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
    Return the snapshot directory that contains the subvolume *path*; "" if *path* is not a subvolume of a snapshot.
    """
    directory, _, name = path.rpartition("/")
    return directory if directory.startswith(f"{SNAPSHOTS}/") and name in (FS, LAYER) else ""


def _with_origin(volumes: Mapping[str, Volume], path: str) -> Volume:
    """
    Return the volume at *path* with the base that the filesystem knows, because no record names one.
    """
    volume = volumes[path]
    source = volume.info.raw.parent_uuid
    base = next(
        (other.info for other in volumes.values() if other.info.read_only and other.info.raw.uuid == source), None
    )
    return volume._replace(base=base)


def _record(fd: int, directory: str) -> Record | None:
    """
    Return the current record of a snapshot; None if it is missing or damaged.
    """
    try:
        with owned(open_directory(fd, directory)) as directory_fd:
            data = Xattrs().read(directory_fd)
            record = data and pieces.join(directory_fd, data)
        return records.decode(record, int(directory.rpartition("/")[2])) if record else None
    except (FileNotFoundError, records.DamagedError):
        return None


def _is_pending(record: Record, path: str) -> bool:
    """
    Return whether *record* has the subvolume *path* destroyed. If not, *path* is newer than the inventory.
    """
    left_over = State.COMMITTED if path.endswith(f"/{FS}") else State.ACTIVE
    return record.state in (State.REMOVED, State.COMMITTING, left_over)
