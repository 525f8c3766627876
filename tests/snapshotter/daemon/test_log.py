import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.daemon import log
from snapshotter.daemon.log import JSONFormatter, TextFormatter
from snapshotter.events import Event

FORMATTERS = [TextFormatter, JSONFormatter]


def written(formatter: type[logging.Formatter], emit: Callable[[], None]) -> str:
    """
    Return the daemon's log of the events that *emit* emits.
    """
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter())
    logger = logging.getLogger("snapshotter")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        emit()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return stream.getvalue()


@pytest.mark.parametrize("formatter", FORMATTERS)
@given(key=st.text(), source=st.text(), prefix=st.sampled_from(["", "Nov 26 02:03:04 host snapshotter[7]: "]))
def test_parse(formatter: type[logging.Formatter], key: str, source: str, prefix: str) -> None:
    """
    Every event is parsed as it was emitted, whatever its keys, also behind a journal's prefix.
    """
    text = written(formatter, lambda: Event.COMMITTED.emit(key=key, id=7, source=source, seconds=0.25))
    line = log.parse(prefix + text.removesuffix("\n"))
    assert line
    assert (line.level, line.event) == ("info", "committed")
    assert line.time.endswith("Z")
    assert (line.fields.get("key", ""), line.fields.get("source", "")) == (key, source)
    assert (str(line.fields["id"]), float(line.fields["seconds"])) == ("7", 0.25)


@given(st.text())
def test_noise(text: str) -> None:
    """
    A line without an event is ignored.
    """
    assert log.parse(text) is None


@pytest.mark.parametrize("text", ['{"time": 1}', "{}", "[]{", '{"level": []}', "{1}", "x {"])
def test_other_json(text: str) -> None:
    """
    Other JSON is ignored.
    """
    assert log.parse(text) is None


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_of_key(formatter: type[logging.Formatter]) -> None:
    """
    A snapshot is followed from its first key over its commit to its destruction, and no other snapshot is.
    """

    def emit() -> None:
        Event.PREPARED.emit(key="build", id=1)
        Event.PREPARED.emit(key="other", id=2)
        Event.COMMITTED.emit(key="base", id=1, source="build")
        Event.PREPARED.emit(key="build 2", id=3, parent="base")
        Event.REMOVED.emit(key="base", id=1)
        Event.DESTROYED.emit(id=1)
        Event.DESTROYED.emit(id=2)
        Event.CLOSED.emit(root="/")

    lines = [line for text in written(formatter, emit).splitlines() if (line := log.parse(text))]
    assert len(lines) == 8
    for key in "build", "base":
        found = [line.event for line in log.of_key(lines, key)]
        assert found == ["prepared", "committed", "removed", "destroyed"][key == "base" :]
    assert [line.event for line in log.of_key(lines, "other")] == ["prepared", "destroyed"]
    assert list(log.of_key(lines, "none")) == []


def test_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A log is followed while it grows, in whole lines, also after a rotation and a truncation.
    """
    path = tmp_path / "log"
    path.write_text("one\ntw")
    assert list(log.read(str(path))) == ["one\n", "tw"]

    def append() -> None:
        with path.open("a") as file:
            file.write("three\n")

    def replaced() -> None:
        path.rename(tmp_path / "log.1")
        path.write_text("four\n")

    steps = iter(
        [
            lambda: path.write_text("one\ntwo\n"),
            append,
            replaced,
            lambda: os.truncate(path, 0),
            lambda: path.write_text("5\n"),
        ]
    )
    monkeypatch.setattr(log.time, "sleep", lambda seconds: next(steps)())
    lines = log.read(str(path), follow=True)
    assert [next(lines) for _ in range(5)] == ["one\n", "two\n", "three\n", "four\n", "5\n"]
    with pytest.raises(RuntimeError):
        next(lines)


def test_command(tmp_path: Path) -> None:
    """
    events shows a log as text and as JSON, of one snapshot on request.
    """
    text = written(JSONFormatter, lambda: [Event.PREPARED.emit(key=f"web\n{number}", id=number) for number in (1, 2)])
    (tmp_path / "log").write_text(f"noise\n{text}")

    def run(*argv: str, **options: Any) -> str:
        command = [sys.executable, "-m", "snapshotter", "events", *argv]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options).stdout

    shown = run("--log", str(tmp_path / "log")).splitlines()
    assert [line.partition("Z ")[2] for line in shown] == [
        "info    prepared     key=web\\n1 id=1",
        "info    prepared     key=web\\n2 id=2",
    ]
    assert run("web\n2", "--json", input=text) == text.splitlines(keepends=True)[1]
