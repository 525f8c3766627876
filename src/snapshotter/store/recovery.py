"""
What a store holds after whatever happened to it: each snapshot judged from its record and its directory.
"""

import math
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

from snapshotter.errors import quoted
from snapshotter.store import records
from snapshotter.store.layout import FS, LAYER
from snapshotter.store.records import Record, State
from snapshotter.store.store import Store
from snapshotter.store.volumes import Contents, Volumes

LOST = "its subvolume is missing"  # and nothing there tells why


class Verdict(Enum):
    """
    What a snapshot's directory turns out to hold.
    """

    ACTIVE = auto()
    VIEW = auto()
    COMMITTED = auto()
    QUARANTINED = auto()  # its subvolume is gone; it stays until it is removed
    REMOVED = auto()  # to be destroyed
    ORPHAN = auto()  # without a record that can be read: reported, never deleted


class Recovered(NamedTuple):
    """
    One entry of ``snapshots/``.

    Attributes:
        id: 0 where *name* is none.
        record: What the record should say; None for what is removed or unknown.
        written: What it says.
        problem: What is wrong with an unknown or a quarantined one.
    """

    name: str
    verdict: Verdict
    id: int = 0
    record: Record | None = None
    written: Record | None = None
    contents: Contents = Contents(False, False, False)
    problem: str = ""


def judge(state: State | None, contents: Contents, *, verified: bool = False) -> Verdict:
    """
    The verdict on a record's *state*, None for no record, beside what was *found*.

    What a verdict leaves over goes: a ``layer`` beside an active's ``fs``, a ``fs`` beside a committed ``layer``.
    A commit that was not *verified* is not believed while the active is there: it may lack data that the disk refused.
    """
    match state:
        case State.PREPARING:
            return Verdict.ACTIVE if contents.fs else Verdict.REMOVED
        case State.VIEW:
            return Verdict.VIEW
        case State.COMMITTING if contents.layer and (verified or not contents.fs):
            return Verdict.COMMITTED
        case State.ACTIVE | State.COMMITTING:
            return Verdict.ACTIVE if contents.fs else Verdict.QUARANTINED
        case State.COMMITTED:
            return Verdict.COMMITTED if contents.layer else Verdict.QUARANTINED
        case State.REMOVED:
            return Verdict.REMOVED
        case None:
            return Verdict.ORPHAN if contents.anything else Verdict.REMOVED


def survey(store: Store, volumes: Volumes) -> Iterator[Recovered]:
    """
    Judge every entry of ``snapshots/``, parents before their children; those that the store's owner changes meanwhile
    as they were before or after it.
    """
    return resolve_duplicate_keys(list(_judged(store, volumes)))


def resolve_duplicate_keys(items: Sequence[Recovered]) -> Iterator[Recovered]:
    """
    Of *items*, by id, those of one key: all but the one that took it last have failed to, for it was free then. Where
    the disk refused the undoing of a creation, that is undone now, and a commit's snapshot is active again.

    What cannot have failed, such as a copy made by hand, is unknown.
    """
    owners: dict[str, Recovered] = {}
    taken: dict[str, float] = {}
    for item in items:
        if (record := item.record) and record.created > taken.get(record.key, -math.inf):
            owners[record.key] = item
            taken[record.key] = _taken(record, item)
    for item in items:
        record, written = item.record, item.written
        if not record or not written or owners[record.key] is item:
            yield item
        elif written.commitment and item.contents.fs and written.key not in owners:
            owners[written.key] = item
            yield item._replace(verdict=Verdict.ACTIVE, record=written.active())
        elif written.state in (State.PREPARING, State.VIEW) and item.id < owners[record.key].id:
            yield item._replace(verdict=Verdict.REMOVED, record=None)
        else:
            problem = f"its key {quoted(record.key)} is another's"
            yield item._replace(verdict=Verdict.ORPHAN, record=None, problem=problem)


def _taken(record: Record, item: Recovered) -> float:
    """
    When *item* took its key, for comparison with what was made after it, in nanoseconds.
    """
    if record.state is not State.COMMITTED:
        return -math.inf  # when it was made
    if item.written and item.written.commitment and item.contents.fs:
        return record.created
    return math.inf  # brought up to date, or without its former active: it was answered


def _judged(store: Store, volumes: Volumes) -> Iterator[Recovered]:
    names = store.names()
    ids = sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))
    for name in sorted(set(names) - set(map(str, ids))):
        yield Recovered(name, Verdict.ORPHAN, problem="it is not the directory of a snapshot")
    for snapshot_id in ids:
        try:
            yield _recovered(store, volumes, snapshot_id)
        except FileNotFoundError:
            continue  # removed by the store's owner while we read
        except NotADirectoryError:
            yield Recovered(str(snapshot_id), Verdict.ORPHAN, snapshot_id, problem="it is not a directory")


def _recovered(store: Store, volumes: Volumes, snapshot_id: int) -> Recovered:
    place = store.place(snapshot_id)
    data, contents = volumes.inspect(place)
    while True:
        item = _read_record(snapshot_id, data, contents)
        # What fits was so. Else its owner may have gone on between the two.
        if item.verdict not in (Verdict.QUARANTINED, Verdict.ORPHAN):
            return item
        before = data
        data, contents = volumes.inspect(place)
        if data == before:
            return item


def _read_record(snapshot_id: int, data: bytes | None, contents: Contents) -> Recovered:
    """
    What the record *data* and what was *found* beside it tell.
    """
    name = str(snapshot_id)
    if data is None:
        return Recovered(name, judge(None, contents), snapshot_id, contents=contents, problem="it has no record")
    try:
        written = records.decode(data, snapshot_id)
    except records.DamagedError as error:
        return Recovered(
            name, Verdict.ORPHAN, snapshot_id, contents=contents, problem=f"its record is damaged: {error}"
        )
    verdict = judge(written.state, contents, verified=written.commitment is not None and written.commitment.verified)
    record: Record | None = written
    if verdict is Verdict.REMOVED:
        record = None
    elif verdict is Verdict.ACTIVE and written.state is not State.ACTIVE:
        record = written.active()
    elif written.commitment:
        # Of a lost one the commit had happened, too: only then does the worker destroy `fs`.
        record = written.committed()
    problem = _loss(written.state, contents) if verdict is Verdict.QUARANTINED else ""
    return Recovered(name, verdict, snapshot_id, record, written, contents, problem)


def _loss(state: State, contents: Contents) -> str:
    """
    What became of a subvolume that is not there.
    """
    if contents.writable and state is not State.ACTIVE:
        return "its layer is writable, and may not be what was committed"
    for name in contents.unexpected:
        if name in (FS, LAYER):
            return f"its subvolume is missing: {name!r} is something else, such as a symbolic link"
    if contents.unexpected:
        return f"its subvolume is missing: was it renamed to {contents.unexpected[0]!r}?"
    return LOST
