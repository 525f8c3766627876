"""
The log of a daemon: `snapshotter.events` as text or JSON, and read back, whatever a journal put in front.
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from snapshotter.events import LogFormat, LogLevel, format_event

POLL_SECONDS = 0.2  # between looks at a log that has ended so far

_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s"]\S*)'
_TEXT = re.compile(rf"(\d{{4}}-\d\d-\d\dT[\d:.]+Z) (debug|info|warning|error) ([\w-]+)((?: \w+={_VALUE})*)$")
_FIELD = re.compile(rf" (\w+)=({_VALUE})")


def write(stream: TextIO, log_format: LogFormat = "text", level: LogLevel = "info") -> None:
    """
    Write every event of *level* and above to *stream*, and the warnings of all other libraries.

    For a program, once: it takes the place of whatever `logging` was set up to do before.
    """
    # Half of what a line costs is what no line of ours says.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("snapshotter").setLevel(level.upper())


class _Formatter(logging.Formatter):
    def described(self, record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
        """
        The event and the fields of *record*; what is none of ours is a ``log`` with a ``message``.
        """
        event = getattr(record, "event", "log")
        fields = dict(record.fields) if hasattr(record, "fields") else {"message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return event, fields


class TextFormatter(_Formatter):
    """
    ``TIME LEVEL EVENT FIELD=VALUE ...``, as `snapshotter.events.format_event` has it.
    """

    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname.lower()} {format_event(*self.described(record))}"


class JSONFormatter(_Formatter):
    """
    One JSON object: time, level, event and the fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        event, fields = self.described(record)
        if "seconds" in fields:
            fields["seconds"] = round(fields["seconds"], 6)
        return json.dumps({"time": _time(record), "level": record.levelname.lower(), "event": event, **fields})


def _time(record: logging.LogRecord) -> str:
    """
    RFC 3339, in UTC with microseconds.
    """
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Line:
    """
    One event.

    Args:
        time: As it was written: RFC 3339, in UTC.
        fields: Those of `snapshotter.events.Fields` that it has; of a text, all of them are strings.
    """

    time: str
    level: str
    event: str
    fields: dict[str, Any]


def parse(text: str) -> Line | None:
    """
    The event that a line tells; None for another line.
    """
    if match := _TEXT.search(text):
        fields = {name: json.loads(value) if value[0] == '"' else value for name, value in _FIELD.findall(match[4])}
        return Line(match[1], match[2], match[3], fields)
    try:
        fields = json.loads(text[text.index("{") :])
        return Line(fields.pop("time"), fields.pop("level"), fields.pop("event"), fields)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def of_key(lines: Iterable[Line], key: str) -> Iterator[Line]:
    """
    Those about snapshots that have *key*, or had it: a commit renames one, and its end is told by its id alone.
    """
    ids = set()
    for line in lines:
        snapshot_id = str(line.fields.get("id", ""))
        if key in (line.fields.get("key"), line.fields.get("source")):
            ids.add(snapshot_id)
            yield line
        elif snapshot_id and snapshot_id in ids:
            yield line


def read(path: str, *, follow: bool = False) -> Iterator[str]:
    """
    The lines of a log; with *follow* also those to come, for ever, and after it was rotated those of its successor.
    """
    while True:
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from _lines(file, path, follow)
        if not follow:
            return


def _lines(file: TextIO, path: str, follow: bool) -> Iterator[str]:
    begun = ""
    while True:
        for piece in file:
            begun += piece
            if begun.endswith("\n"):
                yield begun
                begun = ""
        if not follow or _is_over(file, path):
            if begun:
                yield begun
            return
        time.sleep(POLL_SECONDS)


def _is_over(file: TextIO, path: str) -> bool:
    """
    Whether another file is at *path* by now, or this one was emptied.
    """
    own = os.fstat(file.fileno())
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False  # between the two
    return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino) or own.st_size < file.tell()
