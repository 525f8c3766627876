"""
Output and exit codes of the command.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

DONE, FAILED, INTERRUPTED = 0, 1, 130

_NO_UUID = "-".ljust(36)


def write(text: str) -> None:
    """
    Write a line to standard output; names that are not UTF-8 are written as their bytes.
    """
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


def write_json(value: Any) -> None:
    """
    Write a value as indented JSON.
    """
    import json

    write(json.dumps(value, indent=2))


def complain(error: Exception) -> int:
    """
    Write an error to standard error, and return the exit code.
    """
    text = str(error)
    if isinstance(error, OSError):
        files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        place = f": {' -> '.join(files)}" if files else ""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        text = f"{error.strerror}{place}{notes}"
    print("ERROR:", text, file=sys.stderr)
    return FAILED


def local_time(moment: datetime, nanoseconds: int) -> str | None:
    """
    Return a time in the local zone, or None if it is not set: if *nanoseconds*, its raw value, is 0.
    """
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %z}" if nanoseconds else None


def json_value(value: Any) -> Any:
    """
    Return *value* as JSON can represent it.
    """
    if value is None or isinstance(value, int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def column(value: Any) -> str:
    """
    Return *value* as text for a column of a list; None stands for a missing uuid.
    """
    if value is None:
        return _NO_UUID
    return f"{value:%Y-%m-%d %H:%M:%S}" if hasattr(value, "isoformat") else str(value)
