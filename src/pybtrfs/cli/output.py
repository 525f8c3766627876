"""
Output of the command: text, JSON and times.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime


DONE, FAILED, INTERRUPTED = 0, 1, 130

_NO_UUID = "-".ljust(36)


def _complain(error: Exception) -> int:
    text = str(error)
    if isinstance(error, OSError):
        place = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        text = f"{error.strerror}{place}{notes}"
    print("ERROR:", text, file=sys.stderr)
    return FAILED


def _print(text: str) -> None:
    # Names are bytes, and are written as they are.
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2))


def _moment(moment: datetime, nanoseconds: int) -> str | None:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %z}" if nanoseconds else None


def _plain(value: Any) -> Any:
    """
    What JSON can say of a value.
    """
    if value is None or isinstance(value, int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _text(value: Any) -> str:
    """
    A value in a listing, where what is missing is a uuid.
    """
    if value is None:
        return _NO_UUID
    return f"{value:%Y-%m-%d %H:%M:%S}" if hasattr(value, "isoformat") else str(value)
