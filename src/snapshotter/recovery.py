"""
What a snapshot is, judged from its record and from what stands in its directory: the table of DESIGN, as a function.
"""

from enum import Enum

from snapshotter.records import State
from snapshotter.volumes import Found


class Verdict(Enum):
    """
    What a snapshot's directory turns out to hold.
    """

    ACTIVE = State.ACTIVE
    VIEW = State.VIEW
    COMMITTED = State.COMMITTED
    QUARANTINED = "quarantined"  # its subvolume is gone; it stays until it is removed
    REMOVED = State.REMOVED  # to be destroyed
    UNKNOWN = "unknown"  # without a record: reported, never deleted


def judge(state: State | None, found: Found, *, refused: bool = False) -> Verdict:
    """
    The verdict on a record's *state*, None for no record, beside what was *found*.

    *refused* says that the devices have refused writes since the active was prepared: then a commit that may not have
    been verified is not believed.

    What a verdict leaves over goes: a ``layer`` beside an active's ``fs``, a ``fs`` beside a committed ``layer``.
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
