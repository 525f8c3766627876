"""
How far something long is: a bar where rich is installed, a line elsewhere; for terminals alone.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

from snapshotter.text import format_size

_SECONDS = 0.2  # between two looks of the line
_STEP = 100  # things; telling of each would take longer than most

T = TypeVar("T")

Report = Callable[[int], None]
"""
Is told how much is done.
"""


@contextlib.contextmanager
def progress(what: str, total: int, amount: Callable[[int], str] = format_size) -> Iterator[Report]:
    """
    Show on standard error how far *what* is, for the time of a ``with``; gives the function to tell.

    Args:
        total: 0 where it is not known.
        amount: Says a number of the units that are counted.
    """
    if not visible():
        yield lambda done: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        line = _Line(what, total, amount)
        try:
            yield line.tell
        finally:
            line.clear()
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total or None, amount="")
        yield lambda done: bar.update(task, completed=done, amount=_amounts(done, total, amount))


def with_progress(things: Iterable[T]) -> Iterator[T]:
    """
    Pass *things* on, and show how many of them are done.
    """
    with progress("looking at", length_hint(things), "{:,}".format) as report:
        for done, thing in enumerate(things):
            yield thing
            if not done % _STEP:
                report(done)


def visible() -> bool:
    """
    Whether anybody sees it: finding out a total may cost something.
    """
    return bool(sys.stderr and sys.stderr.isatty()) and os.environ.get("TERM") != "dumb"


class _Line:
    def __init__(self, what: str, total: int, amount: Callable[[int], str]) -> None:
        self._what, self._total, self._amount = what, total, amount
        self._begun = self._shown = time.monotonic()
        self._width = 0

    def tell(self, done: int) -> None:
        now = time.monotonic()
        if now - self._shown < _SECONDS:
            return
        self._shown = now
        text = f"{self._what} {_amounts(done, self._total, self._amount)}"
        if self._total and done:
            seconds = (now - self._begun) * max(0, self._total - done) / done
            text += f", {seconds // 60:.0f}:{seconds % 60:02.0f} left"
        self._print(text)

    def clear(self) -> None:
        if self._width:
            self._print("")
            self._print("")

    def _print(self, text: str) -> None:
        print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(text)


def _amounts(done: int, total: int, amount: Callable[[int], str]) -> str:
    return f"{amount(done)} of {amount(total)}" if total else amount(done)
