"""
Durable steps of each operation, in the order in which they reach the disk.

The methods of `snapshotter.contract.Snapshotter` list the steps, with the result of recovery after a stop behind each.
Nothing here checks permissions: the caller has done so, and holds the keys in the index.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from pybtrfs.mountinfo import MountTable
from snapshotter.errors import (
    DataLossError,
    Error,
    InvalidArgumentError,
    NotFoundError,
    is_damage,
    is_full,
    quoted,
    tolerating_full,
)
from snapshotter.events import Event
from snapshotter.model import Kind, Measured
from snapshotter.store import records
from snapshotter.store.index import Index, Snapshot
from snapshotter.store.layout import FS, LAYER, Directory, Place
from snapshotter.store.records import Commitment, Record, State
from snapshotter.store.store import Store
from snapshotter.store.volumes import Volumes
from snapshotter.store.worker import Worker
from snapshotter.store.write_errors import WriteErrors

CLEANUP_SECONDS = 5.0  # for destroying subvolumes and for getting their space back, together
MAX_TEXT_SIZE = 1 << 20  # bytes of a key and its labels in the record
FEW_LABELS = 32  # labels that fit in any case, because the contract limits the key and each label

_LAYER_COUNTER = (-1,)  # the change counter of a measurement that never changes
_NO_MOUNTS = MountTable()

P = ParamSpec("P")
T = TypeVar("T")


class Operations:
    """
    The operations on the snapshots of one open store.

    Each takes effect as a whole or not at all: a failed step is undone before its error is raised.
    """

    def __init__(self, store: Store, volumes: Volumes, index: Index, worker: Worker, write_errors: WriteErrors) -> None:
        self._store = store
        self._volumes = volumes
        self._index = index
        self._worker = worker
        self._write_errors = write_errors

    # -- creating

    def create(self, state: State, key: str, parent: Snapshot | None, labels: Mapping[str, str]) -> Record:
        """
        Create the directory of a new snapshot and, unless it is a view, its subvolume; return its record.

        Args:
            state: ``PREPARING`` or ``VIEW``.

        Raises:
            InvalidArgumentError: Key and labels are too large.
        """
        now = time.time_ns()
        record = Record(
            self._take_id(),
            state,
            key,
            parent.id if parent else None,
            labels,
            now,
            now,
            write_errors=self._volumes.write_errors(recent=True).to_record(),
        )
        copied = parent if state is not State.VIEW else None
        return self._create(record, self._store.subvolume(copied.id, LAYER) if copied else None)

    def fork(self, source: Snapshot, key: str) -> Record:
        """
        Create the directory of a new active snapshot with a copy of *source*, active too, and return its record.
        """
        with self._store.directory(source.id) as directory:
            base_transid = self._base_transid(source, directory)
        now = time.time_ns()
        record = source.record._replace(
            id=self._take_id(),
            state=State.PREPARING,
            key=key,
            created=now,
            updated=now,
            base_transid=base_transid,
            uuid="",
        )
        return self._create(record, self._store.subvolume(source.id, FS), source)

    def _take_id(self) -> int:
        return self._with_space(self._store.take_id)

    def _create(self, record: Record, origin: Place | None, source: Snapshot | None = None) -> Record:
        """
        Create the directory of *record*, with a snapshot of the subvolume *origin*, which commits, or without.

        Args:
            source: The active snapshot that *origin* belongs to, if it is no layer.
        """
        _check_size(record.key, record.labels)
        self._forget_source(record.key, barrier=origin is None)
        reclaimed = False
        while True:
            if source is not None:
                # After the id was taken: a loss that is reported later makes every id suspect that was taken before.
                record = record._replace(suspect=self._write_errors.is_suspect(source))
            data = records.encode(record)
            try:
                self._make(record, data, origin, is_layer=source is None)
            except FileExistsError:
                pass  # an orphan has the id: leave it alone, and take another id
            except BaseException as error:
                self._discard(record.id)
                if reclaimed or not is_full(error):
                    raise
                self._worker.reclaim(CLEANUP_SECONDS, always=True)
                reclaimed = True
            else:
                return record
            record = record._replace(id=self._take_id())

    def _make(self, record: Record, data: bytes, origin: Place | None, *, is_layer: bool) -> None:
        if origin and is_layer and self._store.fits(data):
            # Directory, record and subvolume in one call: prepare is the hot path.
            self._volumes.snapshot(origin, self._store.place(record.id), data)
            return
        with self._store.make_directory(record.id, data) as directory:
            if origin:
                self._volumes.fork(origin, directory)
                return
            if record.state is not State.VIEW:
                self._volumes.create(directory)
            self._volumes.barrier(directory.fd)

    def _discard(self, snapshot_id: int) -> None:
        """
        Undo a creation that was never acknowledged.
        """
        with contextlib.suppress(OSError), self._store.directory(snapshot_id) as directory:
            self._write(directory, Record(snapshot_id, State.REMOVED, ""))
        self._worker.destroy(snapshot_id)

    # -- committing

    def freeze(self, active: Snapshot, name: str, labels: Mapping[str, str]) -> Record:
        """
        Make the layer of *active*, a read-only snapshot of this moment, and return the record of the committed *name*.

        Raises:
            DataLossError: The disk may have refused data of *active*.
            InvalidArgumentError: Name and labels are too large.
        """
        _check_size(name, labels)
        self._forget_source(name, barrier=False)
        now = _not_before(active.record)
        return self._with_space(self._freeze, active, self._take_id(), Commitment(name, labels, now))

    def _freeze(self, active: Snapshot, claim: int, commitment: Commitment) -> Record:
        with self._store.directory(active.id) as directory:
            committing = active.record._replace(
                state=State.COMMITTING,
                base_transid=self._base_transid(active, directory),
                claim=claim,
                commitment=commitment,
            )
            try:
                self._write(directory, committing)
                self._volumes.freeze(directory)
                self._write_errors.verify(active)
                self._write(directory, committing._replace(commitment=commitment._replace(verified=True)))
                self._volumes.barrier(directory.fd)
            except BaseException:
                # The layer goes first, because recovery takes a layer with a verified record for a commit.
                with contextlib.suppress(OSError):
                    self._volumes.destroy(directory, LAYER, _NO_MOUNTS)
                self._restore(directory, active)
                raise
            self._store.tidy(directory)
        return committing.committed()

    def retire(self, committed: Snapshot) -> None:
        """
        Have the worker destroy the former subvolume of *committed*, and settle its record.
        """
        # Later, because the kernel locks the directory until it has dropped the cached files: 0.1 s for 20,000.
        self._worker.destroy(committed.id, FS, later=True)
        self.settle_later(committed)

    # -- changing and removing

    def rewrite(self, snapshot: Snapshot, labels: Mapping[str, str]) -> Record:
        """
        Replace the labels in the record of *snapshot*, and return the record.

        Raises:
            InvalidArgumentError: Key and labels are too large.
        """
        _check_size(snapshot.key, labels)
        record = snapshot.record._replace(labels=labels, updated=_not_before(snapshot.record))
        self._replace(snapshot, record)
        return record

    def mark_removed(self, snapshot: Snapshot) -> None:
        """
        Mark the record of *snapshot* as removed. If the disk is too full for that, destroy the subvolume at once.
        """
        with contextlib.suppress(FileNotFoundError), self._store.directory(snapshot.id) as directory:
            try:
                # The parent stays, because `snapshotter.analysis.space` measures what is left of *snapshot* beside it.
                # The generation stays, because the worker reads the changes since then before it destroys them.
                # The key stays for `snapshotter.analysis.holders`. Without labels the record is smaller than before.
                key, parent, base_transid = snapshot.record.key, snapshot.record.parent, snapshot.record.base_transid
                removed = Record(snapshot.id, State.REMOVED, key, parent, base_transid=base_transid)
                data = records.encode(removed)
                if not self._store.fits(data):
                    data = records.encode(removed._replace(key=""))  # because pieces need space
                self._store.write(directory, data)
                self._volumes.barrier(directory.fd)
            except OSError as error:
                try:
                    if not is_full(error):
                        raise
                    self._worker.destroy_now(snapshot.id)
                except BaseException:
                    self._restore(directory, snapshot)
                    raise
                # If the disk is too full for the barrier, too, a power failure can bring the snapshot back.
                with tolerating_full():
                    self._volumes.barrier(directory.fd)

    def record_losses(self) -> None:
        """
        Put on record which active snapshots may have lost data before this open, by the counters of the devices.

        Without the record, a reset of the counters would make the snapshots look healthy.
        """
        actives = [each for each in self._index.snapshots() if each.kind is Kind.ACTIVE and not each.quarantine]
        with contextlib.suppress(OSError):  # then each commit reads the counters, or fails
            for snapshot in self._write_errors.unreported(actives):
                self._suspect(snapshot)

    def _suspect(self, snapshot: Snapshot) -> None:
        with self._index.change(snapshot.key):
            record = snapshot.record._replace(suspect=True)
            try:
                self._replace(snapshot, record)
            except OSError as error:
                Event.UNSETTLED.emit(key=snapshot.key, id=snapshot.id, error=str(error))
                self._index.update(snapshot, record, settled=False)
            else:
                self._index.update(snapshot, record, settled=True)

    # -- settling

    def settle_later(self, snapshot: Snapshot) -> None:
        """
        Have the worker settle the record of *snapshot*.
        """
        self._worker.submit(lambda: self.settle(snapshot))

    def settle(self, snapshot: Snapshot) -> None:
        """
        Write the final record of *snapshot*, with the usage of a committed one. No barrier: recovery can repeat it.
        """
        try:
            usage = self.measure(snapshot) if snapshot.kind is Kind.COMMITTED else None
            key = snapshot.key
            with self._index.change(key):
                if key not in self._index or self._index.get(key) is not snapshot:
                    return
                with self._store.directory(snapshot.id) as directory:
                    uuid = self._volumes.uuid(directory, LAYER if snapshot.kind is Kind.COMMITTED else FS)
                    record = snapshot.record._replace(usage=usage, uuid=uuid)
                    if not snapshot.settled or record != snapshot.record:
                        self._write(directory, record)
                        self._store.tidy(directory)
                        self._index.update(snapshot, record, settled=True)
        except (OSError, Error) as error:
            if self._is_gone(snapshot):
                return  # removed while it was measured
            Event.UNSETTLED.emit(key=snapshot.key, id=snapshot.id, error=str(error))

    def _is_gone(self, snapshot: Snapshot) -> bool:
        try:
            return self._index.get(snapshot.key) is not snapshot
        except NotFoundError:
            return True

    # -- reading

    def measure(self, snapshot: Snapshot) -> Measured:
        """
        Measure *snapshot* without its parent; a measurement is repeated only after a change.

        Raises:
            DataLossError: The subvolume is gone.
        """
        if known := self.known(snapshot):
            return known
        check_usable(snapshot)
        # Before the counter is read, so that a commit in between is seen next time.
        commits = self._volumes.commits()
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(self._store.directory(snapshot.id))
            committed = snapshot.kind is Kind.COMMITTED
            known, last, _ = snapshot.measured or (None, (), None)
            counter = _LAYER_COUNTER if committed else self._volumes.change_counter(directory, last)
            if known and last == counter:
                snapshot.measured = known, counter, commits
                return known
            parent = stack.enter_context(self._store.directory(snapshot.parent.id)) if snapshot.parent else None
            base_transid = self._base_transid(snapshot, directory)
            measured = self._volumes.measure(directory, LAYER if committed else FS, base_transid, parent)
            snapshot.measured = measured, counter, commits
            return measured

    def known(self, snapshot: Snapshot) -> Measured | None:
        """
        Return the usage of *snapshot* if it is known without a look at its subvolume, else None.

        An active snapshot is unchanged until the filesystem commits.
        """
        if snapshot.kind is not Kind.ACTIVE or not (last := snapshot.measured):
            return snapshot.known
        measured, _, commits = last
        return measured if commits is not None and commits == self._volumes.commits() else None

    def place(self, snapshot: Snapshot) -> Place:
        """
        Return the place of the subvolume that *snapshot* shows: of a view its parent's, or the empty one.

        Raises:
            DataLossError: The subvolume is gone or unreadable.
        """
        layer = snapshot.parent if snapshot.kind is Kind.VIEW else None
        for needed in (snapshot, layer):
            if needed:
                check_usable(needed)
        return self.former_place(snapshot)

    def former_place(self, snapshot: Snapshot) -> Place:
        """
        Return the place of the subvolume that *snapshot* shows or, if it is quarantined, should show.
        """
        if snapshot.kind is Kind.ACTIVE:
            return self._store.subvolume(snapshot.id, FS)
        layer = snapshot.parent if snapshot.kind is Kind.VIEW else snapshot
        if layer is None:
            return self._store.empty
        return self._store.subvolume(layer.id, LAYER)

    # -- steps

    def _forget_source(self, key: str, *, barrier: bool) -> None:
        """
        Forget that a snapshot was committed from *key*, because *key* is used again.

        Args:
            barrier: Make the change durable. Without a barrier, the next snapshot ioctl of the caller does.
        """
        committed = self._index.committed_from(key)
        if committed:
            self._with_space(self._write_without_source, committed, barrier=barrier)

    def _write_without_source(self, committed: Snapshot, *, barrier: bool) -> None:
        record = committed.record._replace(source="")
        try:
            self._replace(committed, record, barrier=barrier)
        except OSError as error:
            # A lost or damaged layer must not keep its former key from being used again.
            if not (isinstance(error, FileNotFoundError) or is_damage(error)):
                raise
        self._index.update(committed, record, settled=True)

    def _with_space(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Take *step*; if the disk is full, once more after the space of destroyed subvolumes is back.
        """
        try:
            return step(*args, **kwargs)
        except OSError as error:
            if not is_full(error):
                raise
        self._worker.reclaim(CLEANUP_SECONDS, always=True)
        return step(*args, **kwargs)

    def _replace(self, snapshot: Snapshot, record: Record, *, barrier: bool = True) -> None:
        """
        Replace the record of *snapshot* on disk, durably with a *barrier*. If a step fails, the former record is back.
        """
        with self._store.directory(snapshot.id) as directory:
            try:
                self._write(directory, record)
                if barrier:
                    self._volumes.barrier(directory.fd)
            except BaseException:
                self._restore(directory, snapshot)
                raise
            self._store.tidy(directory)

    def _write(self, directory: Directory, record: Record) -> None:
        self._store.write(directory, records.encode(record))

    def _restore(self, directory: Directory, snapshot: Snapshot) -> None:
        """
        Write back the record of *snapshot* after a failed change. Where this fails too, recovery copes.
        """
        with contextlib.suppress(OSError):
            self._store.restore(directory, records.encode(snapshot.record))

    def _base_transid(self, snapshot: Snapshot, directory: Directory) -> int:
        if snapshot.record.base_transid is not None:
            return snapshot.record.base_transid
        return self._volumes.base_transid(directory) if snapshot.parent else 0


def check_usable(snapshot: Snapshot) -> None:
    """
    Raise DataLossError if *snapshot* is quarantined.
    """
    if snapshot.quarantine:
        raise DataLossError(f"snapshot {quoted(snapshot.key)} cannot be used: {snapshot.quarantine}")


def _check_size(key: str, labels: Mapping[str, str]) -> None:
    # Prepare is the hot path, so few labels are not encoded here. They fit, even with an escape for each character.
    if len(labels) > FEW_LABELS and (size := records.text_size(key, labels)) > MAX_TEXT_SIZE:
        raise InvalidArgumentError(
            f"key and labels of snapshot {quoted(key)} need {size} bytes, more than {MAX_TEXT_SIZE}"
        )


def _not_before(record: Record) -> int:
    """
    Return the time in nanoseconds since the epoch, but no earlier than the times of *record*: clocks go back.
    """
    return max(time.time_ns(), record.created, record.updated)
