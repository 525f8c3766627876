"""
The daemon's log: `snapshotter.events` written as text or JSON, and parsed again, also behind a journal's prefix.
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

POLL_SECONDS = 0.2  # between reads at the end of a log that is followed

_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s"]\S*)'
_TEXT = re.compile(rf"(\d{{4}}-\d\d-\d\dT[\d:.]+Z) (debug|info|warning|error) ([\w-]+)((?: \w+={_VALUE})*)$")
_FIELD = re.compile(rf" (\w+)=({_VALUE})")


def write(stream: TextIO, log_format: LogFormat = "text", level: LogLevel = "info") -> None:
    """
    Write every event of *level* and above to *stream*, and the warnings of all other libraries.

    Replaces the whole setup of `logging`, so only a program may call it, once.
    """
    # Half the cost of a log line is thread and process fields that our format never prints.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("snapshotter").setLevel(level.upper())


class _Formatter(logging.Formatter):
    def described(self, record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
        """
        Return the event and the fields of *record*; a record of another library is a ``log`` with a ``message``.
        """
        event = getattr(record, "event", "log")
        fields = dict(record.fields) if hasattr(record, "fields") else {"message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return event, fields


class TextFormatter(_Formatter):
    """
    Formats an event as ``TIME LEVEL EVENT FIELD=VALUE ...``; see `snapshotter.events.format_event`.
    """

    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname.lower()} {format_event(*self.described(record))}"


class JSONFormatter(_Formatter):
    """
    Formats an event as one JSON object of time, level, event and the fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        event, fields = self.described(record)
        if "seconds" in fields:
            fields["seconds"] = round(fields["seconds"], 6)
        return json.dumps({"time": _time(record), "level": record.levelname.lower(), "event": event, **fields})


def _time(record: logging.LogRecord) -> str:
    """
    Return the time in RFC 3339, in UTC with microseconds.
    """
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Line:
    """
    A parsed line of the log.

    Args:
        time: The time as written: RFC 3339, in UTC.
        fields: Fields of `snapshotter.events.Fields`; in the text format, all values are strings.
    """

    time: str
    level: str
    event: str
    fields: dict[str, Any]


def parse(text: str) -> Line | None:
    """
    Return the event of a line, or None if the line has no event.
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
    Yield the lines about snapshots that have *key* or had it.

    A snapshot is followed by its id, because a commit changes its key, and ``destroyed`` has no key.
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
    Yield the lines of a log. With *follow*, wait for more lines forever, also of the next file after a rotation.
    """
    while True:
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from _lines(file, path, follow=follow)
        if not follow:
            return


def _lines(file: TextIO, path: str, *, follow: bool) -> Iterator[str]:
    begun = ""  # a line without its end
    while True:
        for piece in file:
            begun += piece
            if begun.endswith("\n"):
                yield begun
                begun = ""  # a line without its end
        if not follow or _is_over(file, path):
            if begun:
                yield begun
            return
        time.sleep(POLL_SECONDS)


def _is_over(file: TextIO, path: str) -> bool:
    """
    Return whether *path* now leads to another file, or *file* was truncated.
    """
    own = os.fstat(file.fileno())
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False  # in the middle of a rotation
    return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino) or own.st_size < file.tell()
