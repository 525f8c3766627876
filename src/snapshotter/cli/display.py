"""
Tables and fields for people: coloured on a terminal if rich is installed, else plain text.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from snapshotter.model import Kind
from snapshotter.text import printable

if TYPE_CHECKING:
    from rich.console import Console

_NUMBERS = {"SIZE", "BEFORE", "TOTAL", "EXCLUSIVE", "SHARED", "RECLAIMABLE", "USED", "FULL"}
_NUMBERS |= {"COUNT", "INODES", "CHILDREN", "SUBVOLID"}
_COLOURS = {
    ("KIND", str(Kind.ACTIVE)): "green",
    ("KIND", str(Kind.COMMITTED)): "cyan",
    ("KIND", str(Kind.VIEW)): "yellow",
    ("STATE", "mounted"): "green",
    ("STATE", "broken"): "red",
    ("CHANGE", "added"): "green",
    ("CHANGE", "deleted"): "red",
}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """
    Print *rows* below *headings*; columns of numbers are aligned to the right.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if console := _console():
        _print_rich(console, headings, cells)
    else:
        _print_plain(headings, cells)


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """
    Print one line for each name and value; a name equal to the line before is left blank.
    """
    last = ""
    for name, value in pairs:
        print(f"{'' if name == last else name:10}", printable(value))
        last = name


def _print_plain(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    line = "  ".join(
        f"{{:{'>' if heading in _NUMBERS else '<'}{width}}}" for heading, width in zip(headings, widths, strict=True)
    )
    for row in (headings, *cells):
        print(line.format(*row).rstrip())


def _print_rich(console: "Console", headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        grid.add_column(heading, justify="right" if heading in _NUMBERS else "left", overflow="fold")
    for row in cells:
        texts = (Text(cell, _COLOURS.get((heading, cell), "")) for heading, cell in zip(headings, row, strict=True))
        grid.add_row(*texts)
    console.print(grid)


def _console() -> "Console | None":
    if not (sys.stdout and sys.stdout.isatty()) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()
