"""
The log of a daemon, read back: what `snapshotter.events` wrote, as text or JSON, whatever a journal put in front.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

POLL_SECONDS = 0.2  # between looks at a log that has ended so far

_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s"]\S*)'
_TEXT = re.compile(rf"(\d{{4}}-\d\d-\d\dT[\d:.]+Z) (debug|info|warning|error) ([\w-]+)((?: \w+={_VALUE})*)$")
_FIELD = re.compile(rf" (\w+)=({_VALUE})")


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
