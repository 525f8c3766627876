"""
What happens to a store and its daemon, told through `logging`: one table of events, and one line for each.

A program that uses the library hears nothing unless it listens: `logging.getLogger("snapshotter")` has the events, with
the attributes ``event`` and ``fields`` on each record. No label is ever told: what is in one is its owner's.
"""

import enum
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

if TYPE_CHECKING:
    import logging

__all__ = ["Event", "Fields", "LogFormat", "LogLevel", "format_event"]

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40  # those of `logging`
_PLAIN = re.compile(r"[\w./:@+,-]+", re.ASCII)


class Fields(TypedDict, total=False):
    """
    What an event may say beside its name.
    """

    op: str  # the method called
    code: str  # of gRPC, that answered it
    key: str  # of the snapshot, as it is known from now on
    id: int  # of the snapshot: the name of its directory
    source: str  # the key it had, or that it is a copy of
    parent: str
    subvolume: str  # the one concerned, when it is not all of the snapshot's
    root: str  # of the store
    path: str
    address: str  # of a socket
    snapshots: int
    seconds: float  # that it took
    error: str


class Event(enum.StrEnum):
    """
    Everything that is told: its name, its level, and its meaning.
    """

    level: int
    meaning: str

    OPENED = "opened", _INFO, "the store is open, and settled after a crash; `error` says why only for reading"
    CLOSED = "closed", _INFO, "the store is released"
    PREPARED = "prepared", _INFO, "an active snapshot was made"
    VIEWED = "viewed", _INFO, "a view was made"
    FORKED = "forked", _INFO, "the active snapshot `source` was copied as `key`"
    COMMITTED = "committed", _INFO, "the active snapshot `source` became the committed `key`"
    UPDATED = "updated", _INFO, "labels were changed"
    REMOVED = "removed", _INFO, "a snapshot was removed; its subvolumes are destroyed in the background"
    DESTROYED = "destroyed", _INFO, "the subvolumes of a removed snapshot, or the former one of a committed, are gone"
    HELD = "held", _INFO, "destroying is tried again later; `error` says `busy` while it is mounted somewhere"
    RECOVERED = "recovered", _INFO, "at opening: a call that a crash interrupted had happened, and was finished"
    UNDONE = "undone", _INFO, "at opening: a call that a crash interrupted had not happened, and was undone"
    QUARANTINED = "quarantined", _WARNING, "at opening: a snapshot lost its subvolume, and can only be removed"
    UNKNOWN = "unknown", _WARNING, "at opening: something in the store that no record accounts for, and is left alone"
    UNSETTLED = "unsettled", _INFO, "a record was not brought up to date in the background; the next opening does it"
    DATA_REFUSED = "data-refused", _ERROR, "the disk lost data: no snapshot active by then can be committed any more"
    FILESYSTEM_FAILED = "filesystem-failed", _ERROR, "the filesystem is dead: mount it again, then reopen the store"
    NO_THREAD = "no-thread", _WARNING, "no thread could be started: destroying waits until one can"
    DEFECT = "defect", _ERROR, "a mistake of ours in the background; what was in hand is tried at the next opening"
    READY = "ready", _INFO, "the daemon answers calls at `address`"
    STOPPING = "stopping", _INFO, "the daemon takes no new calls, and ends when those under way have"
    CUT_OFF = "cut-off", _ERROR, "the daemon ended before calls under way had: `seconds` were not enough for them"
    TIGHTENED = "tightened", _WARNING, "others could enter the root, or its mode was odd: it is 0700 now"
    UNANSWERED = "unanswered", _ERROR, "the daemon does not answer itself, so the watchdog hears nothing"
    REFUSED = "refused", _DEBUG, "a call was answered by an error that its caller has to expect, such as NotFound"
    FAILED = "failed", _ERROR, "a call could not be done: a defect, or the machine's fault"
    HUNG_UP = "hung-up", _INFO, "a client does not speak HTTP/2 as it has to, and was hung up on"
    BAD_PATTERN = "bad-pattern", _WARNING, "a filter's regular expression does not compile, and matches nothing"

    def __new__(cls, value: str, level: int, meaning: str) -> "Event":
        member = str.__new__(cls, value)
        member._value_ = value
        member.level = level
        member.meaning = meaning
        return member

    def emit(self, *, traceback: Exception | None = None, **fields: Unpack[Fields]) -> None:
        """
        Tell whoever listens, but for fields that are empty; with the traceback of *traceback*.
        """
        # Who listens has imported it, and others are spared the time.
        if "logging" in sys.modules and (log := _logger()).isEnabledFor(self.level):
            said = {name: value for name, value in fields.items() if value != ""}
            extra = {"event": self, "fields": said}
            log.log(self.level, _Message(self, said), exc_info=traceback, extra=extra)


@cache
def _logger() -> "logging.Logger":
    import logging

    logger = logging.getLogger("snapshotter")
    logger.addHandler(logging.NullHandler())
    return logger


class _Message:
    """
    What is `format_event` of an event, made when somebody reads it.
    """

    __slots__ = ("_event", "_fields")

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self._event = event
        self._fields = fields

    def __str__(self) -> str:
        return format_event(self._event, self._fields)


def format_event(event: str, fields: Mapping[str, Any]) -> str:
    """
    ``EVENT FIELD=VALUE ...``: a value that is not one plain word is a JSON string.
    """
    return " ".join([event, *(f"{name}={_text(value)}" for name, value in fields.items())])


def _text(value: object) -> str:
    """
    *value* as one word, whatever is in it: keys come from anywhere.
    """
    if isinstance(value, float):
        return f"{value:.6f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
