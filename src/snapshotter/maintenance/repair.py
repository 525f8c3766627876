"""
Mending a store that nobody else has: what can be known is made right again, the rest is moved to the quarantine.

Nothing is deleted but by `purge`: what is in the quarantine, once somebody has looked at it.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pybtrfs import filesystem, subvolume
from pybtrfs.path import open_directory, owned
from snapshotter.errors import FailedPreconditionError, translating
from snapshotter.store import header, records, recovery
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.header import Header
from snapshotter.store.layout import (
    EMPTY,
    FS,
    LAYER,
    QUARANTINE,
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

# Times in nanoseconds. A subvolume is made after the time in its record: a layer once its data is on the disk.
_NEAR = {FS: 60_000_000_000, LAYER: 3_600_000_000_000}
# Of two ways to pair records with subvolumes one has to fit so much better.
_TELLING = 1_000_000_000

_MOVED = "it is in the quarantine now"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Repair:
    """
    Something that was mended.

    Args:
        subject: A key, or the path of what has none.
    """

    subject: str
    what: str


def fix(root: str | os.PathLike[str]) -> list[Repair]:
    """
    Mend what `doctor.examine` finds in the store at *root*, as far as it can be known. Needs CAP_SYS_ADMIN.

    - A record in which one bit has flipped is what it was. The store's own, where it is damaged further, is made anew.
    - Records in each other's directories go where the subvolumes are that were made when they say.
    - A subvolume, or the directory of a snapshot, that was renamed gets its name back.
    - A layer that was made writable is read-only again, if nothing has changed in it.
    - What no record accounts for is moved to the quarantine.

    Each is durable before the next; one that was interrupted can be done again.

    Raises:
        NotFoundError: *root* does not exist.
        FailedPreconditionError: It is not a store, or a newer release's, or a copy of one.
        StoreHeldError: Another process has it.
    """
    path = real_path(root)
    with translating(f"mend store {path!r}"), contextlib.ExitStack() as stack:
        volumes = BtrfsVolumes(path, "btrfs")
        stack.callback(volumes.close)
        how = _repair_header(path, volumes)
        store = Store(path, volumes)
        stack.callback(store.close)
        if store.is_copy:
            raise FailedPreconditionError(f"{path!r} is a copy of a store: make it one with `snapshotter init --adopt`")
        stack.callback(store.acquire().release)
        fixer = _Fixer(store, volumes)
        if how:
            fixer.done(path, how)
        fixer.fix()
        return fixer.repairs


def _repair_header(root: str, volumes: BtrfsVolumes) -> str:
    """
    Make the header of the store at *root* readable again, durably, and describe the repair; "" if there was none.

    A single flipped bit is flipped back. Any other damaged header is replaced by a new one, without a client. Where
    nothing shows that *root* is a store, nothing is changed, and opening it fails.

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
        how = "the record of the store is what it was: one bit had flipped"
        if data is None:
            how = "the record of the store is made anew: the first client that comes has the snapshots"
            new = Header(header.new_uuid(), volumes.identity(), id_limit=max(ids, default=0) + ID_BLOCK)
            data = records.seal(new._asdict())
        storage.write(store_fd, data)
        volumes.barrier(store_fd)
        return how


def _has_record(storage: RecordStorage, snapshots_fd: int, snapshot_id: int) -> bool:
    """
    Return whether the directory of a snapshot has a whole record.
    """
    with contextlib.suppress(OSError, DamagedError), owned(open_directory(snapshots_fd, str(snapshot_id))) as fd:
        data = storage.read(fd)
        return data is not None and bool(records.unseal(data))
    return False


def has_empty(root: str) -> bool:
    """
    Whether the store at *root* has what a view without parent shows.
    """
    path = os.path.join(root, EMPTY)
    if not os.path.isdir(path) or os.path.islink(path) or not subvolume.is_subvolume(path):
        return False
    return subvolume.get_read_only(path) and not os.listdir(path)


class _Fixer:
    def __init__(self, store: Store, volumes: BtrfsVolumes) -> None:
        self._store = store
        self._volumes = volumes
        self.repairs: list[Repair] = []

    def done(self, subject: str, what: str) -> None:
        self.repairs.append(Repair(subject, what))

    def fix(self) -> None:
        if not has_empty(self._store.root):
            self._mend_empty()
        for item in self._survey(Verdict.ORPHAN):
            self._mend_record(item)
        unknown = [item.name for item in self._survey(Verdict.ORPHAN)]
        self._sort_records({name: record for name in unknown if (record := self._foreign(name))})
        for item in self._survey(Verdict.QUARANTINED):
            self._mend_subvolume(item)
        for item in self._survey(Verdict.ORPHAN):
            self._quarantine(self._store.snapshots_fd, item.name, item.name)
            self.done(self._path(item.name), f"{item.problem}: {_MOVED}")
        for item in self._survey(Verdict.QUARANTINED, Verdict.REMOVED):
            self._clear(item)

    def _survey(self, *verdicts: Verdict) -> list[Recovered]:
        return [item for item in recovery.survey(self._store, self._volumes) if item.verdict in verdicts]

    def _mend_empty(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._quarantine(self._store.fd, EMPTY, EMPTY)
        self._volumes.make_empty(self._store.fd)
        self._volumes.barrier(self._store.fd)
        self.done(os.path.join(self._store.root, EMPTY), "it is made anew; what it was is in the quarantine")

    # -- records

    def _mend_record(self, item: Recovered) -> None:
        with self._opened(item.name) as directory:
            data = directory and self._store.read(directory)
            if directory is None or not data:
                return
            whole = records.repair_bit_flip(data, lambda data: records.decode(data, item.id))
            if whole:
                self._store.write(directory, whole)
                self._volumes.barrier(directory.fd)
                self.done(records.decode(whole, item.id).key, "its record is what it was: one bit had flipped")

    def _foreign(self, name: str) -> Record | None:
        """
        The record in a directory, if it is whole and another directory's.
        """
        with self._opened(name) as directory, contextlib.suppress(DamagedError, KeyError):
            data = directory and self._store.read(directory)
            if data:
                record = records.decode(data, records.unseal(data)["id"])
                return record if str(record.id) != name else None
        return None

    def _sort_records(self, found: dict[str, Record]) -> None:
        """
        Bring records, by the directories that they are in, to where they belong.
        """
        # Directories whose name is free get it back, and make room for the next.
        while free := [name for name, record in found.items() if str(record.id) not in self._store.names()]:
            record = found.pop(free[0])
            if self._apart(free[0], record) < _NEAR[_wanted(record) or FS]:
                self._rename(free[0], str(record.id))
                self.done(record.key, f"its directory has its name again, which was {free[0]!r}")
        # What is left are rounds of directories, each with the record of the next, and what leads into one.
        while found:
            name = next(iter(found))
            way = {}
            while name in found:
                way[name] = record = found.pop(name)
                name = str(record.id)
            if name in way:
                names = list(way)
                self._sort_round({each: way[each] for each in names[names.index(name) :]})

    def _sort_round(self, found: Mapping[str, Record]) -> None:
        if_records = sum(self._apart(str(record.id), record) for record in found.values())
        if_directories = sum(self._apart(name, record) for name, record in found.items())
        if min(if_records, if_directories) == math.inf or abs(if_records - if_directories) < _TELLING:
            return
        if if_records < if_directories:
            for record in found.values():
                with self._store.directory(record.id) as directory:
                    self._store.write(directory, records.encode(record))
                    self._volumes.barrier(directory.fd)
                self.done(record.key, "its record is its own again: it was in another's directory")
            return
        for name in found:
            self._rename(name, f"{name}.moved")
        for name, record in found.items():
            self._rename(f"{name}.moved", str(record.id))
            self.done(record.key, f"its directory has its name again, which was {name!r}")

    def _apart(self, name: str, record: Record) -> float:
        """
        How long after *record* the subvolume in the directory *name* was made; for ever when it is not of its kind.
        """
        wanted = _wanted(record)
        with self._opened(name) as directory:
            if directory is None:
                return math.inf
            if not wanted:
                return 0 if not os.listdir(directory.fd) else math.inf
            return self._age(directory, wanted, record)

    def _age(self, directory: Directory, name: str, record: Record) -> float:
        if not is_subvolume(directory.fd, name):
            return math.inf
        with owned(open_directory(directory.fd, name)) as fd:
            return abs(subvolume.get_info(fd).raw.otime - record.created)

    # -- subvolumes

    def _mend_subvolume(self, item: Recovered) -> None:
        record = item.record
        if record is None:
            return
        name = _wanted(record)
        with self._store.directory(item.id) as directory:
            near = [other for other in item.contents.unexpected if self._age(directory, other, record) < _NEAR[name]]
            if len(near) == 1 and name not in item.contents.unexpected:
                os.rename(near[0], name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                self._volumes.barrier(directory.fd)
                self.done(record.key, f"its subvolume has its name again, which was {near[0]!r}")
            if name == LAYER and is_subvolume(directory.fd, LAYER):
                self._freeze(directory, record)

    def _freeze(self, directory: Directory, record: Record) -> None:
        with owned(open_directory(directory.fd, LAYER)) as fd:
            if subvolume.get_read_only(fd):
                return
            filesystem.sync(fd)  # only then it tells what was written
            info = subvolume.get_info(fd)
            if info.ctransid <= info.otransid:
                subvolume.set_read_only(fd)
                self.done(record.key, "its layer is read-only again: nothing had changed in it")

    def _clear(self, item: Recovered) -> None:
        """
        Take away what would keep the directory of a removed snapshot from going.
        """
        with self._store.directory(item.id) as directory:
            for name in item.contents.unexpected:
                self._quarantine(directory.fd, name, f"{item.name}-{name}")
                self.done(f"{directory.path}/{name}", f"it is no subvolume of a snapshot: {_MOVED}")

    # -- directories

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Directory | None]:
        """
        What *name* in ``snapshots/`` is, open; None where it is no directory.
        """
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self._store.snapshots_fd)
        except NotADirectoryError:
            yield None
            return
        try:
            yield Directory(fd, self._path(name))
        finally:
            os.close(fd)

    def _path(self, name: str) -> str:
        return os.path.join(self._store.root, SNAPSHOTS, name)

    def _rename(self, name: str, new: str) -> None:
        fd = self._store.snapshots_fd
        os.rename(name, new, src_dir_fd=fd, dst_dir_fd=fd)
        self._volumes.barrier(fd)

    def _quarantine(self, dir_fd: int, name: str, as_: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(QUARANTINE, 0o700, dir_fd=self._store.fd)
        with owned(open_directory(self._store.fd, QUARANTINE)) as fd:
            taken = os.listdir(fd)
            names = itertools.chain([as_], (f"{as_}.{number}" for number in itertools.count(2)))
            new = next(each for each in names if each not in taken)
            if is_subvolume(dir_fd, name):
                with owned(open_directory(dir_fd, name)) as subvolume_fd:
                    subvolume.set_read_only(
                        subvolume_fd, read_only=False, clear_received=True
                    )  # or it could not be moved
            os.rename(name, new, src_dir_fd=dir_fd, dst_dir_fd=fd)
            for each in (fd, dir_fd, self._store.fd):
                self._volumes.barrier(each)


def _wanted(record: Record) -> str:
    """
    The name of the subvolume that a record is of; empty for one of none.
    """
    return {State.COMMITTED: LAYER, State.VIEW: "", State.REMOVED: ""}.get(record.state, FS)
