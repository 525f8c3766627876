"""
Output and exit codes of the command.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

DONE, FAILED, INTERRUPTED = 0, 1, 130

_NO_UUID = "-".ljust(36)


def write(text: str) -> None:
    """
    Write a line to standard output; names that are not UTF-8 are written as their bytes.
    """
    write_lines([text])


def write_lines(lines: Iterable[str]) -> None:
    """
    Write lines to standard output at once, as `write` does.
    """
    sys.stdout.buffer.write(os.fsencode("\n".join([*lines, ""])))
    sys.stdout.buffer.flush()


def write_json(value: Any) -> None:
    """
    Write a value as indented JSON.

    JSON has no bytes. If a name is not UTF-8, its text has U+FFFD in place of the wrong bytes. A further key, with
    ``_b64`` appended, has the name in base64. For a list of names, the further key has the list.
    """
    import json

    write(json.dumps(_unicode(value), indent=2))


def _unicode(value: Any) -> Any:
    """
    Return *value* with valid text only, and further keys for the names that are not UTF-8.
    """
    if isinstance(value, list):
        return [_unicode(each) for each in value]
    if isinstance(value, str):
        return os.fsencode(value).decode(errors="replace") if _is_bytes(value) else value
    if not isinstance(value, dict):
        return value
    found = {}
    for key, each in value.items():
        found[key] = _unicode(each)
        if _is_bytes(each):
            found[f"{key}_b64"] = _base64(each)
        elif isinstance(each, list) and any(map(_is_bytes, each)):
            found[f"{key}_b64"] = [_base64(name) for name in each]
    return found


def _is_bytes(value: Any) -> bool:
    """
    Return whether *value* is the name of a file that is not UTF-8.
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _base64(name: str) -> str:
    from base64 import b64encode

    return b64encode(os.fsencode(name)).decode()


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
