"""
Tables on terminals.
"""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.cli import display
from tests.snapshotter.cli.commands import Terminal

KEY = "default/12/sha256:" + "0123456789abcdef" * 4
ROW = (KEY, "Active", "default/11/sha256:" + "fedcba9876543210" * 4, "2026-01-02 03:04:05Z", "")
HEADINGS = ("KEY", "KIND", "PARENT", "CREATED", "USED BY")


@pytest.fixture(params=["rich", "plain", "no colour"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """
    The output of a terminal, with and without rich, or without colours.
    """
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("NO_COLOR", "1" if request.param == "no colour" else "")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def shown(terminal: Terminal) -> list[str]:
    """
    Return the lines on *terminal* without colours.
    """
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()]


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (250, "KEY KIND PARENT CREATED USED BY"),
        (120, "KEY KIND PARENT CREATED USED BY"),
        (60, "KEY KIND PARENT USED BY"),
        (40, "KEY KIND USED BY"),
        (20, "KEY"),
    ],
)
def test_narrow(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: int, headings: str) -> None:
    """
    A line fits the terminal: keys are shortened in the middle, and columns are left out before that breaks words.
    """
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", terminal)
    display.table(HEADINGS, [ROW])
    lines = shown(terminal)
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert lines[0].split() == headings.split()
    key = lines[1].split()[0]
    head, _, tail = key.partition("…")
    assert KEY.startswith(head)
    assert KEY.endswith(tail)
    assert (key == KEY) == (width == 250)


def test_whole(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A table that is to be whole is printed whole on a narrow terminal.
    """
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", terminal)
    display.table(HEADINGS, [ROW], whole=True)
    assert shown(terminal)[1].split() == [KEY, "Active", ROW[2], *ROW[3].split()]


def test_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A table is printed whole to a pipe or a file.
    """
    monkeypatch.setenv("COLUMNS", "40")
    display.table(HEADINGS, [ROW])
    assert KEY in capsys.readouterr().out


@given(st.text(min_size=1), st.integers(16, 40))
def test_shortened(text: str, width: int) -> None:
    """
    A shortened text is as long as asked for, and keeps both ends.
    """
    short = display._shortened(text, width)
    assert len(short) == min(len(text), width)
    assert text.startswith(short[:5])
    assert text.endswith(short[-5:])
