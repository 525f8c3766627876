"""
Exit codes of the command, and its messages on standard error.
"""

import contextlib
import sys

from snapshotter.errors import DataLossError, Error, InvalidArgumentError, NotFoundError, StoreHeldError
from snapshotter.text import printable

DONE, FAILED, USAGE, HELD, NOT_FOUND, INCONSISTENT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

_CODES = (
    (InvalidArgumentError, USAGE),
    (StoreHeldError, HELD),
    (NotFoundError, NOT_FOUND),
    (DataLossError, INCONSISTENT),
    (Error, FAILED),
)


def report(error: Error) -> int:
    """
    Print *error* to standard error, and return its exit code.
    """
    return complain(str(error), next(code for kind, code in _CODES if isinstance(error, kind)))


def complain(text: str, code: int) -> int:
    """
    Print *text* to standard error, and return *code*.
    """
    with contextlib.suppress(OSError):
        print("snapshotter:", printable(text), file=sys.stderr)
    return code
