"""
Snapshots below their parents.
"""

import io
import sys

import pytest

from snapshotter import Info, Kind
from snapshotter.analysis import family
from snapshotter.cli import display


def info(name: str, parent: str = "") -> Info:
    return Info(Kind.COMMITTED, name, parent)


def test_family(capsys: pytest.CaptureFixture[str]) -> None:
    """
    Children stand below their parents, by name; one whose parent is not there is a root.
    """
    infos = [info("b"), info("a2", "a"), info("a"), info("a11", "a1"), info("a1", "a"), info("x", "gone")]
    display.table(("KEY", "SIZE"), [(lines + each.name, "1 B") for _, lines, each in family.walk(infos)])
    assert capsys.readouterr().out.splitlines() == [
        "KEY        SIZE",
        "a           1 B",
        "├─ a1       1 B",
        "│  └─ a11   1 B",
        "└─ a2       1 B",
        "b           1 B",
        "x           1 B",
    ]


def test_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where there are no box characters, others draw the tree.
    """
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    rows = family.walk([info("a"), info("b", "a"), info("c", "a"), info("d", "b")])
    assert [lines for _, lines, _ in rows] == ["", "|- ", "|  `- ", "`- "]


def test_long_chain() -> None:
    """
    A chain of layers may be longer than Python recurses.
    """
    chain = [info("0")] + [info(str(number), str(number - 1)) for number in range(1, 3000)]
    assert [depth for depth, _, _ in family.walk(chain)] == list(range(3000))
