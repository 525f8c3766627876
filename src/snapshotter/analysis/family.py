"""
Families: snapshots with their descendants.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from snapshotter.model import Info


def totals(rows: Sequence[tuple[int, str, Info]], sizes: Mapping[str, int]) -> dict[str, int]:
    """
    Return the size of each snapshot together with all of its descendants, by key.

    Args:
        rows: The snapshots as `walk` yields them.
        sizes: The size of each snapshot alone, by key.
    """
    found = dict(sizes)
    for _, _, info in reversed(rows):
        if info.parent in found:
            found[info.parent] += found[info.name]
    return found


def walk(infos: Iterable[Info]) -> Iterator[tuple[int, str, Info]]:
    """
    Yield each snapshot after its parent, siblings sorted by name: its depth, its branch, and the snapshot.

    The branch is the text to print in front of the name, as tree(1) does; in ASCII if standard output is not UTF-8. A
    snapshot whose parent is not in *infos* is a root, at depth 0.
    """
    by_parent: dict[str, list[Info]] = {}
    every = sorted(infos, key=lambda info: info.name)
    names = {info.name for info in every}
    for info in every:
        by_parent.setdefault(info.parent if info.parent in names else "", []).append(info)
    encoding = (sys.stdout and sys.stdout.encoding) or "ascii"
    tee, corner, bar = ("├─ ", "└─ ", "│  ") if encoding.lower().startswith("utf") else ("|- ", "`- ", "|  ")
    # A stack, because a chain of layers may be longer than Python's recursion limit.
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
