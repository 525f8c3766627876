"""
What people read: sizes, tables and trees. Plain text, or rich's where it is installed and a terminal reads.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from snapshotter.model import Info, Kind
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
    Print *rows* below *headings*.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if console := _console():
        _print_rich(console, headings, cells)
    else:
        _print_plain(headings, cells)


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """
    Print names and values, a line each; a name that comes again is left out.
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


def totals(rows: Sequence[tuple[int, str, Info]], sizes: Mapping[str, int]) -> dict[str, int]:
    """
    The size of each snapshot that `family` arranged, with those of all that rest on it.
    """
    found = dict(sizes)
    for _, _, info in reversed(rows):
        if info.parent in found:
            found[info.parent] += found[info.name]
    return found


def family(infos: Iterable[Info]) -> Iterator[tuple[int, str, Info]]:
    """
    Each snapshot below its parent, by name: depth, the lines of the tree in front of its name, and itself.
    """
    by_parent: dict[str, list[Info]] = {}
    every = sorted(infos, key=lambda info: info.name)
    names = {info.name for info in every}
    for info in every:
        by_parent.setdefault(info.parent if info.parent in names else "", []).append(info)
    encoding = (sys.stdout and sys.stdout.encoding) or "ascii"
    tee, corner, bar = ("├─ ", "└─ ", "│  ") if encoding.lower().startswith("utf") else ("|- ", "`- ", "|  ")
    # A stack: a chain of layers may be longer than Python recurses.
    pending = [(0, "", "", info) for info in reversed(by_parent.get("", []))]
    while pending:
        depth, lines, indent, info = pending.pop()
        yield depth, lines, info
        children = by_parent.get(info.name, [])
        last = len(children) - 1
        pending.extend(
            (depth + 1, indent + (corner if at == last else tee), indent + ("   " if at == last else bar), child)
            for at, child in reversed(list(enumerate(children)))
        )
