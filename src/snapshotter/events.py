"""
The events of a store and its daemon, logged through `logging`: a table of all events, and one line for each.

The logger ``snapshotter`` is silent unless the program sets up `logging`. Each log record has the attributes
``event`` and ``fields``. Labels are never logged, because they may hold secrets. A program that only writes events can
replace `sink`, as `snapshotter.daemon.log` does. Events within `tracing` have the ids of a distributed trace.
"""

import contextlib
import enum
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypedDict, Unpack

if TYPE_CHECKING:
    import logging

__all__ = ["Event", "Fields", "LogFormat", "LogLevel", "Sink", "format_event", "tracing"]

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40  # the levels of `logging`
_NEVER = 100  # above the level of every event

# W3C Trace Context: version, trace id, span id and flags. Later versions may have more at the end.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")

_is_plain = re.compile(r"[\w./:@+,-]+", re.ASCII).fullmatch


class Fields(TypedDict, total=False):
    """
    The fields that an event may have.
    """

    op: str  # the method called
    code: str  # the gRPC code of the answer
    key: str  # the snapshot's key from now on
    id: int  # the snapshot's id: the name of its directory
    source: str  # the snapshot's former key, or the key of the snapshot that was copied
    parent: str
    subvolume: str  # the name of the subvolume, if not all of the snapshot's are concerned
    root: str  # the path of the store
    path: str
    address: str  # the path of a socket
    snapshots: int  # the number of snapshots
    seconds: float  # the duration
    error: str
    trace: str  # the id of the distributed trace that the call belongs to
    span: str  # the id of the caller's span in the trace


_trace: ContextVar[Fields | None] = ContextVar("trace", default=None)


@contextlib.contextmanager
def tracing(traceparent: str) -> Iterator[None]:
    """
    Give the events of the ``with`` in this thread the ids in *traceparent*, a header of W3C Trace Context.

    A malformed header has no ids, as the recommendation requires.
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    token = _trace.set({"trace": found[1], "span": found[2]} if found else None)
    try:
        yield
    finally:
        _trace.reset(token)


class Event(enum.StrEnum):
    """
    All events, each with its name, level and meaning.
    """

    level: int
    meaning: str

    OPENED = "opened", _INFO, "the store is open and recovered; `error` says why it is read-only"
    CLOSED = "closed", _INFO, "the store is closed and its lock released"
    PREPARED = "prepared", _INFO, "an active snapshot was created"
    VIEWED = "viewed", _INFO, "a view was created"
    FORKED = "forked", _INFO, "the active snapshot `source` was copied as `key`"
    COMMITTED = "committed", _INFO, "the active snapshot `source` was committed as `key`"
    UPDATED = "updated", _INFO, "labels were changed"
    REMOVED = "removed", _INFO, "a snapshot was removed; its subvolumes are destroyed in the background"
    DESTROYED = "destroyed", _INFO, "the subvolumes of a removed snapshot, or one replaced by a commit, are destroyed"
    HELD = "held", _INFO, "a destroy failed and is retried later; `error` names the mounts of the subvolume"
    RECOVERED = "recovered", _INFO, "at open: a call interrupted by a crash had taken effect, and was completed"
    UNDONE = "undone", _INFO, "at open: a call interrupted by a crash had not taken effect, and was rolled back"
    KEPT = "kept", _ERROR, "a subvolume to destroy is unreadable; destroying it would turn the filesystem read-only"
    QUARANTINED = "quarantined", _WARNING, "at open: a snapshot's subvolume is lost or unreadable; it can be removed"
    UNKNOWN = "unknown", _WARNING, "at open: an entry of the store belongs to no snapshot, and is left alone"
    UNSETTLED = "unsettled", _INFO, "a record could not be updated in the background; the next open updates it"
    DATA_REFUSED = "data-refused", _ERROR, "the disk lost data: snapshots active at the time can no longer be committed"
    FILESYSTEM_FAILED = "filesystem-failed", _ERROR, "the filesystem is dead: mount it again, then reopen the store"
    NO_THREAD = "no-thread", _WARNING, "no thread could be started; subvolumes are destroyed once one can"
    DEFECT = "defect", _ERROR, "a bug made background work fail; the next open retries it"
    READY = "ready", _INFO, "the daemon answers calls at `address`"
    STOPPING = "stopping", _INFO, "the daemon refuses new calls, and ends when the calls in flight have ended"
    CUT_OFF = "cut-off", _ERROR, "the daemon ended before the calls in flight: `seconds` were not enough for them"
    TIGHTENED = "tightened", _WARNING, "other users could enter the root, or its mode was unusual; its mode is 0700 now"
    UNANSWERED = "unanswered", _ERROR, "the daemon did not answer its own call, so the watchdog was not fed"
    REFUSED = "refused", _DEBUG, "a call was answered with an error that its caller has to expect, such as NotFound"
    FAILED = "failed", _ERROR, "a call failed because of a bug, the disk or exhausted resources"
    HUNG_UP = "hung-up", _INFO, "a client broke HTTP/2, and its connection was closed"
    CROWDED = "crowded", _WARNING, "no connection is accepted for now; logged once until the next connection"
    BAD_PATTERN = "bad-pattern", _WARNING, "a filter's regular expression does not compile, and matches nothing"

    def __new__(cls, value: str, level: int, meaning: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.level = level
        member.meaning = meaning
        return member

    def emit(self, *, traceback: Exception | None = None, **fields: Unpack[Fields]) -> None:
        """
        Log the event with its non-empty *fields*, and with the traceback of the exception *traceback*.
        """
        # Hot path: read the module's variable once.
        if self.level >= (to := sink).level:
            to.take(self, fields | ids if (ids := _trace.get()) else fields, traceback)


class Sink(Protocol):
    """
    A taker of events.
    """

    @property
    def level(self) -> int:
        """
        The least level of events to take, as a number of `logging`.
        """

    def take(self, event: Event, fields: Mapping[str, Any], traceback: Exception | None, /) -> None:
        """
        Take an event. A field whose value is an empty string does not apply.
        """


class _Logging:
    """
    The sink for programs that listen through `logging`.
    """

    @property
    def level(self) -> int:
        # A program that listens has imported `logging`; other programs are spared the time of the import.
        return _logger().getEffectiveLevel() if "logging" in sys.modules else _NEVER

    def take(self, event: Event, fields: Mapping[str, Any], traceback: Exception | None, /) -> None:
        filled = {name: value for name, value in fields.items() if value != ""}
        extra = {"event": event, "fields": filled}
        _logger().log(event.level, _Message(event, filled), exc_info=traceback, extra=extra)


sink: Sink = _Logging()
"""The taker of all events."""


@cache
def _logger() -> "logging.Logger":
    import logging

    logger = logging.getLogger("snapshotter")
    logger.addHandler(logging.NullHandler())
    return logger


class _Message:
    """
    The text of an event, formatted only if a handler needs it.
    """

    __slots__ = ("_event", "_fields")

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self._event = event
        self._fields = fields

    def __str__(self) -> str:
        return format_event(self._event, self._fields)


def format_event(event: str, fields: Mapping[str, Any]) -> str:
    """
    Return the event as ``EVENT FIELD=VALUE ...``; a value that is not one plain word is a JSON string.

    Empty values are left out.
    """
    # Hot path: a function for each value would take half of the time again.
    line = event
    for name, value in fields.items():
        if isinstance(value, str):
            if value:
                line += f" {name}={value if _is_plain(value) else json.dumps(value)}"
        elif isinstance(value, float):
            line += f" {name}={value:.6f}"
        else:
            line += f" {name}={value}"
    return line
