"""
Recovery of a store at open: the state of each snapshot is decided from its record and the contents of its directory.
"""

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

from snapshotter.errors import is_damage, quoted
from snapshotter.store import records
from snapshotter.store.layout import FS, LAYER
from snapshotter.store.records import Record, State
from snapshotter.store.store import Store
from snapshotter.store.volumes import Contents, Volumes

LOST = "its subvolume is missing"  # for an unknown reason
UNREADABLE = "its subvolume cannot be read"
UNREADABLE_ENTRY = "it cannot be read"


class Verdict(Enum):
    """
    The state of a snapshot's directory.
    """

    ACTIVE = auto()
    VIEW = auto()
    COMMITTED = auto()
    QUARANTINED = auto()  # the subvolume is missing or unreadable; the snapshot can only be removed
    REMOVED = auto()  # the directory is to be destroyed
    ORPHAN = auto()  # no readable record; reported, never deleted


_SHOWN = {Verdict.ACTIVE: FS, Verdict.COMMITTED: LAYER}


class Recovered(NamedTuple):
    """
    An entry of ``snapshots/`` with its verdict.

    Attributes:
        id: The id of the snapshot; 0 if *name* is not an id.
        record: The current record; None for a removed snapshot or an orphan.
        written: The record on disk; None if it cannot be read.
        problem: The reason for the verdict ORPHAN or QUARANTINED, else empty.
    """

    name: str
    verdict: Verdict
    id: int = 0
    record: Record | None = None
    written: Record | None = None
    contents: Contents = Contents()
    problem: str = ""


def judge(state: State | None, contents: Contents, *, verified: bool = False) -> Verdict:
    """
    Return the verdict on a snapshot with a record in *state*, None for no record, and with *contents*.

    The caller destroys the other subvolume: the ``layer`` of an active snapshot, the ``fs`` of a committed one.

    Args:
        verified: The record says that the commit in progress is verified. An unverified commit is rolled back if ``fs``
            exists, because its layer may lack data that the disk refused.
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
        case _:
            return Verdict.ORPHAN if contents.anything else Verdict.REMOVED


def survey(store: Store, volumes: Volumes) -> Iterator[Recovered]:
    """
    Yield every entry of ``snapshots/`` with its verdict, parents before their children.

    If the owner of the store changes an entry concurrently, the verdict fits the entry before or after the change.
    """
    return resolve_duplicate_keys(list(_judged(store, volumes)))


def resolve_duplicate_keys(items: Sequence[Recovered]) -> Iterator[Recovered]:
    """
    Resolve duplicate keys among *items*, which are sorted by id, and yield all of them.

    If several records claim a key, a call that certainly succeeded wins, and else the newest claim. The others are
    creations or commits that failed and could not be rolled back, because the key was free for the newest claim. They
    are rolled back now: a creation is removed, and the snapshot of a commit is active again. A duplicate that no failed
    call can have left becomes an orphan.
    """
    owners: dict[str, Recovered] = {}
    for item in items:
        if record := item.record:
            owner = owners.get(record.key)
            if owner is None or (not _succeeded(owner) and (_succeeded(item) or _claim(item) > _claim(owner))):
                owners[record.key] = item
    for item in items:
        record, written = item.record, item.written
        if not record or not written or owners[record.key] is item:
            yield item
        elif written.commitment and item.contents.fs and written.key not in owners:
            owners[written.key] = item
            yield item._replace(verdict=Verdict.ACTIVE, record=written.active())
        elif written.state in (State.PREPARING, State.VIEW) and item.id < _claim(owners[record.key]):
            yield item._replace(verdict=Verdict.REMOVED, record=None)
        else:
            problem = f"its key {quoted(record.key)} belongs to another snapshot"
            yield item._replace(verdict=Verdict.ORPHAN, record=None, problem=problem)


def _claim(item: Recovered) -> int:
    """
    Return the id that was taken for the claim of *item* to its key. The store takes ids in the order of the calls.

    A creation took the id of the snapshot, and a commit one for itself. An older release recorded no id of a commit,
    so the result is the lower bound.
    Every later creation then counts as newer, and the snapshot of the commit keeps its data.
    """
    return (item.record and item.record.claim) or item.id


def _succeeded(item: Recovered) -> bool:
    """
    Return whether the call that gave *item* its key certainly succeeded.

    A record is settled only after success, and `fs` is destroyed only after the success of a commit.
    """
    written = item.written
    if written is None or written.state in (State.PREPARING, State.VIEW):
        return False
    return written.commitment is None or item.verdict is Verdict.ACTIVE or not item.contents.fs


def _judged(store: Store, volumes: Volumes) -> Iterator[Recovered]:
    names = store.names()
    ids = sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))
    for name in sorted(set(names) - set(map(str, ids))):
        yield Recovered(name, Verdict.ORPHAN, problem="it is not the directory of a snapshot")
    for snapshot_id in ids:
        try:
            yield _recovered(store, volumes, snapshot_id)
        except FileNotFoundError:
            continue  # the owner of the store has removed the snapshot since the listing
        except NotADirectoryError:
            yield Recovered(str(snapshot_id), Verdict.ORPHAN, snapshot_id, problem="it is not a directory")
        except OSError as error:
            # The damage of one directory is no reason to refuse all others.
            if not is_damage(error):
                raise
            problem = f"{UNREADABLE_ENTRY}: {error.strerror}"
            yield Recovered(str(snapshot_id), Verdict.ORPHAN, snapshot_id, problem=problem)


def _recovered(store: Store, volumes: Volumes, snapshot_id: int) -> Recovered:
    place = store.place(snapshot_id)
    data, contents = volumes.inspect(place)
    while True:
        item = _read_record(snapshot_id, data and store.whole(snapshot_id, data), contents)
        # A consistent pair needs no second look. Otherwise the owner may have changed the snapshot between the two
        # reads, so read again.
        if item.verdict not in (Verdict.QUARANTINED, Verdict.ORPHAN):
            return item
        before = data
        data, contents = volumes.inspect(place)
        if data == before:
            return item


def _read_record(snapshot_id: int, data: bytes | None, contents: Contents) -> Recovered:
    """
    Return the verdict on the snapshot with the record *data* and *contents*.
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
        # This includes QUARANTINED: without `fs` the commit succeeded, because `fs` is destroyed only then.
        record = written.committed()
    problem = _loss(written.state, contents) if verdict is Verdict.QUARANTINED else ""
    if damage := contents.unreadable.get(_SHOWN.get(verdict, "")):
        verdict, problem = Verdict.QUARANTINED, f"{UNREADABLE}: {damage}"
    return Recovered(name, verdict, snapshot_id, record, written, contents, problem)


def _loss(state: State, contents: Contents) -> str:
    """
    Return the reason why the subvolume of a snapshot in *state* is unusable.
    """
    if contents.writable and state is not State.ACTIVE:
        return "its layer is writable, so it may differ from the commit"
    for name in contents.unexpected:
        if name in (FS, LAYER):
            return f"its subvolume is missing: {name!r} is not a subvolume"
    if contents.unexpected:
        return f"its subvolume is missing: was it renamed to {contents.unexpected[0]!r}?"
    return LOST
