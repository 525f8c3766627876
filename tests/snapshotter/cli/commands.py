"""
The command, called in this process.
"""

import io
from collections.abc import Callable
from typing import NamedTuple


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


class Terminal(io.StringIO):
    """
    What is written to a terminal.
    """

    def isatty(self) -> bool:
        return True
