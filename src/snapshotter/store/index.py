"""
Index of a store: its snapshots in memory, and the locks of the keys that operations change.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from snapshotter.errors import NotFoundError, quoted
from snapshotter.model import EPOCH, Info, Kind, Measured, Usage
from snapshotter.store.records import Record

NOTHING = Measured(Usage(), Usage())


class Snapshot:
    """
    A snapshot in memory.

    Attributes:
        record: The current record.
        settled: The record on disk equals *record*; otherwise the worker writes *record* later.
        parent: The parent, which is never removed before its children.
        children: The number of child snapshots, and of operations in progress that create one.
        quarantine: The reason why the snapshot cannot be used; empty if it can.
        measured: The last measurement, with the change counter of the subvolume and the number of commits before it.
    """

    __slots__ = ("_encoded", "children", "measured", "parent", "quarantine", "record", "settled")

    def __init__(
        self, record: Record, parent: "Snapshot | None", quarantine: str = "", *, settled: bool = True
    ) -> None:
        self.record = record
        self.parent = parent
        self.quarantine = quarantine
        self.settled = settled
        self.children = 0
        self.measured: tuple[Measured, tuple[int, ...], int | None] | None = None
        self._encoded: tuple[Record, bytes] | None = None

    @property
    def id(self) -> int:
        return self.record.id

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def parent_key(self) -> str:
        return self.parent.key if self.parent else ""

    @property
    def kind(self) -> Kind:
        return self.record.state.kind

    @property
    def known(self) -> Measured | None:
        """
        The usage if it cannot change any more and is known, else None.
        """
        return NOTHING if self.kind is Kind.VIEW else self.record.usage

    @property
    def info(self) -> Info:
        """
        The description, a copy that the caller may keep.
        """
        return describe(self.record, self.parent_key)

    def encode(self, encode: Callable[[Info], bytes], record: Record) -> bytes:
        """
        Return the description with *record*, a present or former record, by *encode*.

        The bytes are kept until the record changes, so all callers have to pass the same function.
        """
        kept = self._encoded
        if kept is None or kept[0] is not record:
            kept = self._encoded = record, encode(describe(record, self.parent_key))
        return kept[1]


def describe(record: Record, parent_key: str) -> Info:
    """
    Return the description of the snapshot with *record*.
    """
    created = _time(record.created)
    return Info(
        kind=record.state.kind,
        name=record.key,
        parent=parent_key,
        labels=dict(record.labels),
        created=created,
        # An older release wrote the clock's time even when the clock had gone back.
        updated=created if record.updated <= record.created else _time(record.updated),
    )


def _time(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


class Index:
    """
    The snapshots by key.

    The lock of the index is never held across a system call. An operation locks its keys with `change` instead: a
    second operation on the same key waits, and then sees the new state.
    """

    def __init__(self) -> None:
        self._by_key: dict[str, Snapshot] = {}
        self._by_source: dict[str, Snapshot] = {}
        self._held: set[str] = set()
        self._waiting = 0
        self._condition = threading.Condition()

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: str) -> bool:
        with self._condition:
            return key in self._by_key

    def get(self, key: str) -> Snapshot:
        """
        Return the snapshot *key*.

        Raises:
            NotFoundError: No snapshot has the key.
        """
        with self._condition:
            try:
                return self._by_key[key]
            except KeyError:
                raise NotFoundError(f"snapshot {quoted(key)} does not exist: not found") from None

    def committed_from(self, key: str) -> Snapshot | None:
        """
        Return the snapshot that was committed from *key*, or None if there is none or *key* was used again.
        """
        with self._condition:
            return self._by_source.get(key)

    def snapshots(self) -> list[Snapshot]:
        """
        Return all snapshots, as of one moment.
        """
        with self._condition:
            return list(self._by_key.values())

    @contextlib.contextmanager
    def change(self, *keys: str, parent: str = "") -> Iterator[Snapshot | None]:
        """
        Lock *keys* and pin *parent* for the ``with``, so that *parent* cannot be removed; give the snapshot *parent*.

        The keys need not exist. All keys are locked at once, so that no thread waits while it holds a lock. The
        snapshots that were committed from *keys* are locked too, because a new use of a key changes their records.

        Raises:
            NotFoundError: *parent* is not empty and no snapshot has that name.
        """
        locked: set[str] = set()
        pinned = None

        def free() -> bool:
            locked.clear()
            locked.update(keys)
            locked.update(self._by_source[key].key for key in keys if key in self._by_source)
            return self._held.isdisjoint(locked) and parent not in self._held

        with self._condition:
            if not free():
                self._waiting += 1
                self._condition.wait_for(free)
                self._waiting -= 1
            if parent:
                pinned = self.get(parent)
                pinned.children += 1
            self._held.update(locked)
        try:
            yield pinned
        finally:
            with self._condition:
                self._held.difference_update(locked)
                if pinned:
                    pinned.children -= 1
                if self._waiting:
                    self._condition.notify_all()

    def add(self, snapshot: Snapshot) -> None:
        with self._condition:
            self._put(snapshot)
            if snapshot.parent:
                snapshot.parent.children += 1

    def update(self, snapshot: Snapshot, record: Record, *, settled: bool) -> None:
        """
        Replace the record of *snapshot*, and move the snapshot to the key of the new record.
        """
        with self._condition:
            self._take(snapshot)
            if snapshot.kind is not record.state.kind:
                snapshot.measured = None
            snapshot.settled = settled
            snapshot.record = record
            self._put(snapshot)

    def remove(self, snapshot: Snapshot) -> None:
        with self._condition:
            self._take(snapshot)
            if snapshot.parent:
                snapshot.parent.children -= 1

    def _put(self, snapshot: Snapshot) -> None:
        self._by_key[snapshot.key] = snapshot
        if snapshot.record.source:
            self._by_source[snapshot.record.source] = snapshot

    def _take(self, snapshot: Snapshot) -> None:
        del self._by_key[snapshot.key]
        if self._by_source.get(snapshot.record.source) is snapshot:
            del self._by_source[snapshot.record.source]
