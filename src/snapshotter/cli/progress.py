"""
Progress on a terminal: a bar if rich is installed, else one line.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

from snapshotter.text import format_size

_SECONDS = 0.2  # between two updates of the line
_STEP = 100  # items between two reports: a report takes longer than processing most items

T = TypeVar("T")

Report = Callable[[int], None]
"""
Receives the amount done so far.
"""


@contextlib.contextmanager
def progress(title: str, total: int, amount: Callable[[int], str] = format_size) -> Iterator[Report]:
    """
    Show progress on standard error during a ``with``, and yield the function to report it to.

    Args:
        total: 0 if unknown.
        amount: Formats a number of the counted units.
    """
    if not visible():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        line = _Line(title, total, amount)
        try:
            yield line.report
        finally:
            line.clear()
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total or None, amount="")
        yield lambda done: bar.update(task, completed=done, amount=_amounts(done, total, amount))


def with_progress(items: Iterable[T]) -> Iterator[T]:
    """
    Yield *items*, and show how many are done.
    """
    with progress("looking at", length_hint(items), "{:,}".format) as report:
        for done, item in enumerate(items):
            yield item
            if not done % _STEP:
                report(done)


def visible() -> bool:
    """
    Return whether progress is shown, for callers that compute a total only then.
    """
    return bool(sys.stderr and sys.stderr.isatty()) and os.environ.get("TERM") != "dumb"


class _Line:
    def __init__(self, title: str, total: int, amount: Callable[[int], str]) -> None:
        self._title, self._total, self._amount = title, total, amount
        self._begun = self._shown = time.monotonic()
        self._width = 0

    def report(self, done: int) -> None:
        now = time.monotonic()
        if now - self._shown < _SECONDS:
            return
        self._shown = now
        text = f"{self._title} {_amounts(done, self._total, self._amount)}"
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
