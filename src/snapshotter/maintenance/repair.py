"""
Repair of a store: damage whose undoing is certain is undone, and the rest is moved to the quarantine.

Nothing is deleted here. `quarantine.purge` deletes entries of the quarantine after somebody has inspected them.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pybtrfs import filesystem, subvolume
from pybtrfs.path import open_directory, owned
from snapshotter.errors import FailedPreconditionError, is_damage, is_full, translating
from snapshotter.store import header, records, recovery
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.header import Header
from snapshotter.store.layout import (
    EMPTY,
    FS,
    LAYER,
    SNAPSHOTS,
    STORE,
    Directory,
    is_subvolume,
    real_path,
)
from snapshotter.store.lock import Lock
from snapshotter.store.record_storage import RecordStorage
from snapshotter.store.records import DamagedError, Record, State
from snapshotter.store.recovery import Recovered, Verdict
from snapshotter.store.store import ID_BLOCK, Store

Keep = Callable[[str, Mapping[str, str]], bool]

_MOVED = "moved to the quarantine"
_AGAIN = "remove snapshots, then run `snapshotter doctor --fix` again"


@dataclass(frozen=True, slots=True)
class Repair:
    """
    A repair that was made, or that the full disk refused.

    Args:
        subject: The key of a snapshot, or the path of an entry without a key.
    """

    subject: str
    what: str


def fix(root: str | os.PathLike[str], *, keep: Keep | None = None) -> list[Repair]:
    """
    Repair the problems that `doctor.examine` finds in the store at *root*, and return the repairs made.

    - A flipped bit in a record is flipped back. If the store's own record is damaged further, it is replaced.
    - Records in each other's directories are moved to the subvolumes whose uuids are in the records.
    - A renamed directory of a snapshot is renamed back, and a renamed subvolume whose uuid is in the record.
    - A layer that was made writable is made read-only again, if its content has not changed.
    - Every entry that belongs to no snapshot is moved to the quarantine.

    Each repair is durable before the next one starts. After an interruption, call it again. A repair that the full disk
    refuses keeps no other from being made, but then nothing is moved to the quarantine.

    Needs ``CAP_SYS_ADMIN``.

    Args:
        keep: Whether directories that belong to no snapshot stay in place, because the client may need them. Called at
            most once, with the client and the parents of the usable snapshots, by key.

    Raises:
        NotFoundError: *root* does not exist.
        FailedPreconditionError: *root* is not a store, is a copy of a store, or was written by a newer release.
        StoreHeldError: Another process holds the store.
    """
    path = real_path(root)
    with translating(f"repair store {path!r}"), contextlib.ExitStack() as stack:
        volumes = BtrfsVolumes(path, "btrfs")
        stack.callback(volumes.close)
        header_repair = _repair_header(path, volumes)
        store = Store(path, volumes)
        stack.callback(store.close)
        if store.is_copy:
            raise FailedPreconditionError(f"{path!r} is a copy of a store: make it one with `snapshotter init --adopt`")
        stack.callback(store.acquire().release)
        fixer = _Fixer(store, volumes, keep)
        if header_repair:
            fixer.done(path, header_repair)
        fixer.fix()
        return fixer.repairs


def _repair_header(root: str, volumes: BtrfsVolumes) -> str:
    """
    Make the header of the store at *root* readable again, durably, and describe the repair; "" if none was needed.

    A flipped bit is flipped back. A header that is damaged further, or missing, is replaced by one without a client.
    If nothing shows that *root* is a store, nothing is changed, and opening the store fails.

    Raises:
        FailedPreconditionError: A newer release wrote the header.
        StoreHeldError: Another process holds the store.
    """
    storage = volumes.record_storage
    with contextlib.ExitStack() as stack:
        root_fd = stack.enter_context(owned(os.open(root, os.O_RDONLY | os.O_DIRECTORY)))
        try:
            store_fd, snapshots_fd = (
                stack.enter_context(owned(open_directory(root_fd, name))) for name in (STORE, SNAPSHOTS)
            )
        except FileNotFoundError:
            return ""
        ids = [int(name) for name in os.listdir(snapshots_fd) if name.isdecimal()]
        if storage.read(store_fd) is None and not any(_has_record(storage, snapshots_fd, each) for each in ids):
            return ""
        stack.enter_context(Lock(root_fd, root))
        data = storage.read(store_fd)
        if data is not None:
            with contextlib.suppress(DamagedError):
                header.decode(data)
                return ""
            data = records.repair_bit_flip(data, header.decode)
        repair = "repaired the record of the store: one bit had flipped"
        if data is None:
            repair = "replaced the record of the store: the first client that changes the store gets the snapshots"
            new = Header(header.new_uuid(), volumes.identity(), id_limit=max(ids, default=0) + ID_BLOCK)
            data = records.seal(new._asdict())
        storage.write(store_fd, data)
        volumes.barrier(store_fd)
        return repair


def _has_record(storage: RecordStorage, snapshots_fd: int, snapshot_id: int) -> bool:
    """
    Return whether the directory of a snapshot has an undamaged record.
    """
    with contextlib.suppress(OSError, DamagedError), owned(open_directory(snapshots_fd, str(snapshot_id))) as fd:
        data = storage.read(fd)
        return data is not None and bool(records.unseal(data))
    return False


def has_empty(root: str) -> bool:
    """
    Return whether the store at *root* has the empty, read-only subvolume that a view without a parent shows.
    """
    path = os.path.join(root, EMPTY)
    if not os.path.isdir(path) or os.path.islink(path) or not subvolume.is_subvolume(path):
        return False
    return subvolume.get_read_only(path) and not os.listdir(path)


class _Fixer:
    def __init__(self, store: Store, volumes: BtrfsVolumes, keep: Keep | None) -> None:
        self._store = store
        self._volumes = volumes
        self._keep = keep
        self._kept: bool | None = None
        self._is_full = False
        self.repairs: list[Repair] = []

    def done(self, subject: str, what: str) -> None:
        self.repairs.append(Repair(subject, what))

    @contextlib.contextmanager
    def _attempting(self, name: str) -> Iterator[None]:
        """
        End the ``with`` at an entry that cannot be read, or whose repair the full disk refuses: the entry stays.
        """
        try:
            yield
        except OSError as error:
            if is_full(error):
                self._is_full = True
                self.done(self._path(name), f"not repaired, because of {error.strerror!r}: {_AGAIN}")
            elif not is_damage(error):
                raise

    def fix(self) -> None:
        if not has_empty(self._store.root):
            with self._attempting(f"../{EMPTY}"):
                self._recreate_empty()
        for item in self._survey(Verdict.ORPHAN):
            with self._attempting(item.name):
                self._repair_record(item)
        misplaced = {}
        for item in self._survey(Verdict.ORPHAN):
            with self._attempting(item.name):
                if record := self._misplaced_record(item.name):
                    misplaced[item.name] = record
        self._return_records(misplaced)
        for item in self._survey(Verdict.QUARANTINED):
            with self._attempting(item.name):
                self._repair_subvolume(item)
        if self._is_full:
            return  # an entry that had to wait for space can be repaired later, so it must not be moved away
        for item in self._survey(Verdict.ORPHAN):
            with self._attempting(item.name):
                if not self._stays(self._store.snapshots_fd, item.name):
                    self._quarantine(self._store.snapshots_fd, item.name, item.name)
                    self.done(self._path(item.name), f"{item.problem}: {_MOVED}")
        for item in self._survey(Verdict.QUARANTINED, Verdict.REMOVED):
            with self._attempting(item.name):
                self._quarantine_unexpected(item)

    def _stays(self, dir_fd: int, name: str) -> bool:
        """
        Return whether an entry stays in place, because it may be a snapshot that the client needs.
        """
        if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            return False
        if self._kept is None and self._keep:
            usable = self._survey(Verdict.ACTIVE, Verdict.VIEW, Verdict.COMMITTED)
            found = {item.id: item.record for item in usable if item.record}
            keys = {id_: record.key for id_, record in found.items()}
            parents = {
                record.key: keys.get(record.parent, f"{SNAPSHOTS}/{record.parent}") if record.parent else ""
                for record in found.values()
            }
            self._kept = self._keep(self._store.header.client, parents)
        return bool(self._kept)

    def _survey(self, *verdicts: Verdict) -> list[Recovered]:
        return [item for item in recovery.survey(self._store, self._volumes) if item.verdict in verdicts]

    def _recreate_empty(self) -> None:
        repair = "recreated the empty, read-only subvolume"
        with contextlib.suppress(FileNotFoundError):
            self._quarantine(self._store.fd, EMPTY, EMPTY)
            repair += f": its predecessor was {_MOVED}"
        self._volumes.make_empty(self._store.fd)
        self._volumes.barrier(self._store.fd)
        self.done(os.path.join(self._store.root, EMPTY), repair)

    # -- records

    def _repair_record(self, item: Recovered) -> None:
        with self._opened(item.name) as directory:
            data = directory and self._store.read(directory)
            if directory is None or not data:
                return

            def read(data: bytes) -> Record:
                return records.decode(self._store.whole(item.id, data), item.id)

            repaired = records.repair_bit_flip(data, read)
            if repaired:
                self._write(directory, repaired)
                self.done(read(repaired).key, "repaired its record: one bit had flipped")

    def _write(self, directory: Directory, record: bytes) -> None:
        self._store.write(directory, record)
        self._volumes.barrier(directory.fd)
        self._store.tidy(directory)

    def _misplaced_record(self, name: str) -> Record | None:
        """
        Return the record in the directory *name* if it is undamaged and belongs to another directory.
        """
        with self._opened(name) as directory, contextlib.suppress(DamagedError, KeyError):
            data = directory and self._store.read(directory)
            if data:
                record = records.decode(data, records.unseal(data)["id"])
                return record if str(record.id) != name else None
        return None

    def _return_records(self, found: dict[str, Record]) -> None:
        """
        Reunite misplaced records, by the directory that each is in, with their directories.
        """
        # A directory whose own name is free is renamed back, which frees the name that it had for the next.
        while free := [name for name, record in found.items() if str(record.id) not in self._store.names()]:
            record = found.pop(free[0])
            if self._may_hold(free[0], record):
                with self._attempting(free[0]):
                    self._rename(free[0], str(record.id))
                    self.done(record.key, f"renamed its directory back from {free[0]!r}")
        # The rest are cycles of directories that hold each other's records, and chains that end in a cycle.
        while found:
            name = next(iter(found))
            chain = {}
            while name in found:
                chain[name] = record = found.pop(name)
                name = str(record.id)
            if name in chain:
                names = list(chain)
                with self._attempting(name):
                    self._resolve_cycle({each: chain[each] for each in names[names.index(name) :]})

    def _resolve_cycle(self, found: Mapping[str, Record]) -> None:
        """
        Resolve a cycle: either its records were moved or its directories were renamed.

        The kinds and the uuids of the subvolumes decide. If they allow neither, or both, the cycle is left alone.
        """
        if_records = all(self._may_hold(str(record.id), record) for record in found.values())
        if_directories = all(self._may_hold(name, record) for name, record in found.items())
        if if_records == if_directories:
            return
        if if_records:
            for record in found.values():
                with self._store.directory(record.id) as directory:
                    self._write(directory, records.encode(record))
                self.done(record.key, "moved its record back from the directory of another snapshot")
            return
        for name in found:
            self._rename(name, f"{name}.moved")
        for name, record in found.items():
            self._rename(f"{name}.moved", str(record.id))
            self.done(record.key, f"renamed its directory back from {name!r}")

    def _may_hold(self, name: str, record: Record) -> bool:
        """
        Return whether the directory *name* has the subvolume that *record* describes, as far as the record knows it.
        """
        wanted = _subvolume_name(record)
        with self._opened(name) as directory:
            if directory is None:
                return False
            if not wanted:
                return not os.listdir(directory.fd)
            uuid = self._uuid(directory, wanted)
            return bool(uuid) and record.uuid in ("", uuid)

    # -- subvolumes

    def _repair_subvolume(self, item: Recovered) -> None:
        record = item.record
        if record is None:
            return
        name = _subvolume_name(record)
        with self._store.directory(item.id) as directory:
            for other in item.contents.unexpected:
                if record.uuid and name not in item.contents.unexpected and self._uuid(directory, other) == record.uuid:
                    os.rename(other, name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                    self._volumes.barrier(directory.fd)
                    self.done(record.key, f"renamed its subvolume back from {other!r}")
            if name == LAYER and is_subvolume(directory.fd, LAYER):
                self._freeze(directory, record)

    def _uuid(self, directory: Directory, name: str) -> str:
        """
        Return the uuid of the subvolume *name*; "" if it is none or cannot be read.
        """
        try:
            return self._volumes.uuid(directory, name) if is_subvolume(directory.fd, name) else ""
        except OSError as error:
            if not is_damage(error):
                raise
        return ""

    def _freeze(self, directory: Directory, record: Record) -> None:
        with owned(open_directory(directory.fd, LAYER)) as fd:
            if subvolume.get_read_only(fd):
                return
            filesystem.sync(fd)  # ctransid counts only changes that have been written back
            info = subvolume.get_info(fd)
            if info.ctransid <= info.otransid:
                subvolume.set_read_only(fd)
                self.done(record.key, "made its layer read-only again: its content had not changed")

    def _quarantine_unexpected(self, item: Recovered) -> None:
        """
        Move away every entry that would keep the directory of the snapshot from being removed.
        """
        with self._store.directory(item.id) as directory:
            for name in item.contents.unexpected:
                if item.verdict is Verdict.QUARANTINED and self._stays(directory.fd, name):
                    continue
                self._quarantine(directory.fd, name, f"{item.name}-{name}")
                self.done(f"{directory.path}/{name}", f"it is not a subvolume of the snapshot: {_MOVED}")

    # -- directories

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Directory | None]:
        """
        Open the directory *name* in ``snapshots/`` for a ``with``; None if it is not a directory.
        """
        try:
            fd = open_directory(self._store.snapshots_fd, name)
        except NotADirectoryError:
            yield None
            return
        with Directory(fd, self._path(name)) as directory:
            yield directory

    def _path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self._store.root, SNAPSHOTS, name))

    def _rename(self, name: str, new: str) -> None:
        fd = self._store.snapshots_fd
        os.rename(name, new, src_dir_fd=fd, dst_dir_fd=fd)
        self._volumes.barrier(fd)

    def _quarantine(self, dir_fd: int, name: str, as_: str) -> None:
        if is_subvolume(dir_fd, name):
            with owned(open_directory(dir_fd, name)) as subvolume_fd:
                # The kernel does not move a read-only subvolume to another directory.
                subvolume.set_read_only(subvolume_fd, read_only=False, clear_received=True)
        self._store.quarantine(dir_fd, name, as_)


def _subvolume_name(record: Record) -> str:
    """
    Return the name of the subvolume that *record* describes; "" if it describes none.
    """
    return {State.COMMITTED: LAYER, State.VIEW: "", State.REMOVED: ""}.get(record.state, FS)
