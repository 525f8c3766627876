"""
The display of progress.
"""

import io
import sys
from collections.abc import Iterator

import pytest

from snapshotter.cli import progress as module
from snapshotter.cli.progress import progress, with_progress
from tests.snapshotter.cli.commands import Shown, Terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """
    The time, which passes by the test's hand.
    """
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_line(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """
    Without rich a terminal has one line, with what is done and the time that is left, which is gone at the end.
    """
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("export", 1 << 20) as told:
        told(1)  # too early to be shown
        for clock[0], done in ((10.0, 1 << 18), (70.0, 1 << 19)):
            told(done)
    shown = sys.stderr.getvalue().split("\r")
    assert shown[1:3] == ["export 256.0 KiB of 1.0 MiB, 0:30 left", "export 512.0 KiB of 1.0 MiB, 1:10 left"]
    assert [text.strip() for text in shown[3:]] == ["", ""]
    assert len(shown[3]) == len(shown[2])


def test_unknown_total(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """
    Where the whole is not known, there is no time that is left.
    """
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("waiting for", 0, str) as told:
        clock[0] = 1.0
        told(5)
    assert sys.stderr.getvalue().split("\r")[1] == "waiting for 5"


def test_tracked(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """
    Items that pass are counted, with their total where it is known.
    """
    monkeypatch.setitem(sys.modules, "rich.console", None)
    for things, shown in (
        (range(1500), "looking at 1,400 of 1,500, 0:01 left"),
        ((number for number in range(1500)), "looking at 1,400"),
    ):
        monkeypatch.setattr(sys, "stderr", Terminal())
        for done, thing in enumerate(with_progress(things)):
            assert done == thing
            clock[0] += 0.01
        assert sys.stderr.getvalue().split("\r")[-3].strip() == shown


def test_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With rich there is a bar, plain where NO_COLOR says so.
    """
    monkeypatch.setenv("TERM", "xterm")
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "stderr", Terminal())
        with progress("import", 4 << 20) as told:
            told(1 << 20)
        shown = sys.stderr.getvalue()
        assert "import" in shown
        assert "━" in shown
        assert "1.0 MiB of 4.0 MiB" in shown
        assert ("\x1b[3" in shown) != no_color


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_nobody_looks(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    """
    Nothing is shown where no terminal is, or one that cannot go back in its line.
    """
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", Terminal() if term == "dumb" else io.StringIO())
    with progress("import", 4) as told:
        told(1)
    assert sys.stderr.getvalue() == ""


@pytest.mark.btrfs
@pytest.mark.parametrize("argv", [["du", "web"], ["frees", "web"], ["rm", "web", "--dry-run"]], ids=" ".join)
def test_commands(argv: list[str], shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Commands that may take long show their progress on a terminal.
    """
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown(*argv)
    assert "looking at" in sys.stderr.getvalue()
