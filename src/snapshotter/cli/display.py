"""
Tables and fields for people: as wide as the terminal, and coloured if rich is installed; else plain text.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from snapshotter.model import Kind
from snapshotter.text import printable

if TYPE_CHECKING:
    from rich.console import Console

SHORTENED = "…"  # the middle of a cell
_GAP = "  "  # between two columns

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


# Columns of keys, names and paths, whose cells are shortened in the middle, because digests differ at both ends.
_LONG = {"KEY", "PARENT", "LABELS", "PATH", "PROBLEM", "USED BY"}
_LEAST = 16  # characters of a shortened cell
# Columns that a narrow terminal has no room for, the first to go first.
_DROPPED = ["UPDATED", "CREATED", "LABELS", "PARENT", "INODES", "SUBVOLID", "CHILDREN", "BEFORE", "TYPE", "TOTAL"]
_DROPPED += ["KIND", "USED BY", "PROBLEM", "MOUNTED", "STATE"]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, whole: bool = False) -> None:
    """
    Print *rows* below *headings*; columns of numbers are aligned to the right.

    On a terminal that is too narrow, long cells are shortened in the middle, and columns of less interest left out.
    The first column always stays.

    Args:
        whole: Print everything, whatever the width of the terminal.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not whole and sys.stdout and sys.stdout.isatty():
        import shutil  # here, because it is slow to import

        headings, cells = _fitted(headings, cells, shutil.get_terminal_size().columns)
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


def _fitted(headings: Sequence[str], cells: list[list[str]], width: int) -> tuple[Sequence[str], list[list[str]]]:
    """
    Return the table with lines of at most *width* characters, if that is possible.
    """
    columns = [[heading, *column] for heading, *column in zip(headings, *cells, strict=True)]
    dropped = iter(_DROPPED)
    while True:
        widths = [max(map(len, column)) for column in columns]
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        long = [place for place, column in enumerate(columns) if column[0] in _LONG and widths[place] > _LEAST]
        if excess <= sum(widths[place] - _LEAST for place in long):
            break
        name = next(dropped, None)
        if name is None:
            break
        columns = [column for place, column in enumerate(columns) if not place or column[0] != name]
    while excess > 0 and long:  # the widest is shortened first
        widest = max(long, key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
        excess -= 1
    for place in long:
        columns[place] = [_shortened(cell, widths[place]) for cell in columns[place]]
    lines = [list(line) for line in zip(*columns, strict=True)]
    return lines[0], lines[1:]


def _shortened(text: str, width: int) -> str:
    """
    Return *text* with at most *width* characters, its middle replaced by `SHORTENED`.
    """
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}{SHORTENED}{text[-tail:]}"


def _print_plain(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    line = _GAP.join(
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
    # A table wider than the terminal is printed as it is, for the terminal to wrap.
    console.width = max(console.width, console.measure(grid, options=console.options.update(max_width=1 << 20)).maximum)
    console.print(grid)


def _console() -> "Console | None":
    if not (sys.stdout and sys.stdout.isatty()) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()
