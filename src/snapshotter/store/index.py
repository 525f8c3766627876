"""
A store's snapshots in memory: what Stat and Walk answer from, and who may change what at the moment.
"""

import contextlib
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

from snapshotter.errors import NotFoundError, quoted
from snapshotter.model import EPOCH, Info, Kind, Measured, Usage
from snapshotter.store.records import Record

NOTHING = Measured(Usage(), Usage())


class Snapshot:
    """
    One snapshot.

    Attributes:
        record: What its record says, or will say once it is written again: `settled`.
        parent: Never removed before this one.
        children: How many snapshots, and operations under way, rest on it.
        quarantine: Why it cannot be used; empty when it can.
        measured: A measurement, with the version of the subvolume it is of.
    """

    __slots__ = ("children", "measured", "parent", "quarantine", "record", "settled")

    def __init__(
        self, record: Record, parent: "Snapshot | None", quarantine: str = "", *, settled: bool = True
    ) -> None:
        self.record = record
        self.parent = parent
        self.quarantine = quarantine
        self.settled = settled
        self.children = 0
        self.measured: tuple[int, Measured] | None = None

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
        What it measures, where that cannot change.
        """
        return NOTHING if self.kind is Kind.VIEW else self.record.usage

    @property
    def info(self) -> Info:
        """
        Its description, the caller's to keep.
        """
        return describe(self.record, self.parent_key)


def describe(record: Record, parent_key: str) -> Info:
    """
    The description of the snapshot that *record* is of.
    """
    created = _time(record.created)
    return Info(
        kind=record.state.kind,
        name=record.key,
        parent=parent_key,
        labels=dict(record.labels),
        created=created,
        updated=created if record.updated == record.created else _time(record.updated),
    )


def _time(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


class Index:
    """
    Snapshots by key.

    Its lock is never held across a system call. What an operation works on is held by `change` instead: a second one
    on the same key waits, and is judged on the new state.
    """

    def __init__(self) -> None:
        self._by_key: dict[str, Snapshot] = {}
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
        Raises:
            NotFoundError: No snapshot has the key.
        """
        with self._condition:
            try:
                return self._by_key[key]
            except KeyError:
                raise NotFoundError(f"snapshot {quoted(key)} does not exist: not found") from None

    def snapshots(self) -> list[Snapshot]:
        """
        All of them, at one moment.
        """
        with self._condition:
            return list(self._by_key.values())

    @contextlib.contextmanager
    def change(self, *keys: str, parent: str = "") -> Iterator[Snapshot | None]:
        """
        Hold *keys*, which need not exist, until the operation on them is done, and keep *parent* from being removed.

        Waits for whoever holds one of them, for all at once: so nobody waits while holding.

        Raises:
            NotFoundError: *parent* is not empty and no snapshot has that name.
        """
        wanted = {*keys, parent}
        pinned = None
        with self._condition:
            if not self._held.isdisjoint(wanted):
                self._waiting += 1
                self._condition.wait_for(lambda: self._held.isdisjoint(wanted))
                self._waiting -= 1
            if parent:
                pinned = self.get(parent)
                pinned.children += 1
            self._held.update(keys)
        try:
            yield pinned
        finally:
            with self._condition:
                self._held.difference_update(keys)
                if pinned:
                    pinned.children -= 1
                if self._waiting:
                    self._condition.notify_all()

    def add(self, snapshot: Snapshot) -> None:
        with self._condition:
            self._by_key[snapshot.key] = snapshot
            if snapshot.parent:
                snapshot.parent.children += 1

    def update(self, snapshot: Snapshot, record: Record, *, settled: bool) -> None:
        """
        Describe *snapshot* by a new record, under a new name if it has one.
        """
        with self._condition:
            del self._by_key[snapshot.key]
            if snapshot.kind is not record.state.kind:
                snapshot.measured = None
            snapshot.settled = settled
            snapshot.record = record
            self._by_key[snapshot.key] = snapshot

    def remove(self, snapshot: Snapshot) -> None:
        with self._condition:
            del self._by_key[snapshot.key]
            if snapshot.parent:
                snapshot.parent.children -= 1
