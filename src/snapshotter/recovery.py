"""
What a store holds after whatever happened to it: each snapshot judged from its record and its directory.
"""

from collections.abc import Iterator
from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple

from snapshotter import records
from snapshotter.records import Record, State
from snapshotter.store import Store
from snapshotter.volumes import Found, Volumes


class Verdict(Enum):
    """
    What a snapshot's directory turns out to hold.
    """

    ACTIVE = auto()
    VIEW = auto()
    COMMITTED = auto()
    QUARANTINED = auto()  # its subvolume is gone; it stays until it is removed
    REMOVED = auto()  # to be destroyed
    UNKNOWN = auto()  # without a record that can be read: reported, never deleted


class Recovered(NamedTuple):
    """
    One entry of ``snapshots/``.

    Attributes:
        id: 0 where *name* is none.
        record: What the record should say, unless there is none.
        written: What it says.
        problem: What is wrong with an unknown one.
    """

    name: str
    verdict: Verdict
    id: int = 0
    record: Record | None = None
    written: Record | None = None
    found: Found = Found(False, False, False)
    problem: str = ""


def judge(state: State | None, found: Found, *, refused: bool = False) -> Verdict:
    """
    The verdict on a record's *state*, None for no record, beside what was *found*.

    What a verdict leaves over goes: a ``layer`` beside an active's ``fs``, a ``fs`` beside a committed ``layer``.
    *refused* says that the devices have refused writes since the active was prepared: then a commit that may not have
    been verified is not believed.
    """
    match state:
        case State.PREPARING:
            return Verdict.ACTIVE if found.fs else Verdict.REMOVED
        case State.ACTIVE:
            return Verdict.ACTIVE if found.fs else Verdict.QUARANTINED
        case State.VIEW:
            return Verdict.VIEW
        case State.COMMITTING if found.layer and not (refused and found.fs):
            return Verdict.COMMITTED
        case State.COMMITTING:
            return Verdict.ACTIVE if found.fs else Verdict.QUARANTINED
        case State.COMMITTED:
            return Verdict.COMMITTED if found.layer else Verdict.QUARANTINED
        case State.REMOVED:
            return Verdict.REMOVED
        case None:
            return Verdict.UNKNOWN if found.anything else Verdict.REMOVED


def survey(store: Store, volumes: Volumes, write_errors: int) -> Iterator[Recovered]:
    """
    Judge every entry of ``snapshots/``, parents before their children; *write_errors* are the devices' by now.
    """
    names = store.names()
    ids = sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))
    for name in sorted(set(names) - set(map(str, ids))):
        yield Recovered(name, Verdict.UNKNOWN, problem="it is not the directory of a snapshot")
    for snapshot_id in ids:
        try:
            yield _recovered(store, volumes, snapshot_id, write_errors)
        except FileNotFoundError:
            continue  # removed by the store's owner while we read
        except NotADirectoryError:
            yield Recovered(str(snapshot_id), Verdict.UNKNOWN, snapshot_id, problem="it is not a directory")


def _recovered(store: Store, volumes: Volumes, snapshot_id: int, write_errors: int) -> Recovered:
    name = str(snapshot_id)
    with store.directory(snapshot_id) as directory:
        data = records.read(directory.fd)
        found = volumes.found(directory)
    if data is None:
        return Recovered(name, judge(None, found), snapshot_id, found=found, problem="it has no record")
    try:
        written = records.decode(data, snapshot_id)
    except records.DamagedError as error:
        return Recovered(name, Verdict.UNKNOWN, snapshot_id, found=found, problem=f"its record is damaged: {error}")
    verdict = judge(written.state, found, refused=write_errors > written.errors)
    record = written
    if verdict is Verdict.ACTIVE:
        # A commit that is not believed was of data that the disk may have refused.
        record = replace(written.active(), suspect=written.suspect or (found.layer and written.commitment is not None))
    elif verdict is Verdict.COMMITTED and written.commitment:
        record = written.committed()
    return Recovered(name, verdict, snapshot_id, record, written, found)
