"""
The daemon's log: its lines, whatever becomes of their reader, and their parsing.
"""

import contextlib
import errno
import fcntl
import io
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybtrfs.path import owned
from snapshotter import events
from snapshotter.daemon import log
from snapshotter.daemon.log import JSONFormatter, TextFormatter
from snapshotter.events import Event, LogFormat

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


LONG = "x" * 10_000  # more than a pipe takes at once


def emit(*keys: str) -> None:
    for key in keys:
        Event.REMOVED.emit(key=key)


def keys(text: str) -> list[str]:
    """
    Return the keys of the events in *text*, and the messages between them; every line must be whole.
    """
    lines = [log.parse(line) for line in text.splitlines()]
    assert None not in lines
    return [line.fields.get("key") or line.fields["message"] for line in lines if line]


def drain(fd: int) -> str:
    """
    Return everything that is in a pipe.
    """
    os.set_blocking(fd, False)
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """
    A pipe with room for 8,192 bytes, which the writer's end waits for.
    """
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)
    with owned(reader), owned(writer):
        yield reader, writer


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_one_write(log_format: LogFormat) -> None:
    """
    A line is one write.
    """
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps writes apart
    with reader, writer:
        with log.writing(writer.fileno(), log_format):
            emit("a", "b")
            logging.getLogger("asyncio").warning("slow")
        assert [keys(reader.recv(1000).decode()) for _ in range(3)] == [["a"], ["b"], ["slow"]]


def test_levels(tmp_path: Path) -> None:
    """
    Events below the level are left out; another library's warnings are not.
    """
    with (tmp_path / "log").open("w") as file, log.writing(file.fileno(), level="error"):
        emit("a")
        Event.DEFECT.emit(key="b")
        logging.getLogger("asyncio").warning("slow")
        logging.getLogger("asyncio").info("chatter")
    assert keys((tmp_path / "log").read_text()) == ["b", "slow"]


def test_after_writing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    After the ``with``, events go through `logging` again.
    """
    caplog.set_level(logging.INFO, "snapshotter")
    with (tmp_path / "log").open("w") as file, log.writing(file.fileno()):
        emit("a")
    emit("b")
    assert caplog.messages == ["removed key=b"]


def test_full_pipe(pipe: tuple[int, int]) -> None:
    """
    Nothing waits for a reader that does not read. Lines are lost then, whole ones, and their number is known.
    """
    reader, writer = pipe
    sent = [str(number) for number in range(1000)]
    with log.writing(writer):
        emit(*sent)
        first = keys(drain(reader))
        assert first == sent[: len(first)]
        emit("later")
        lost = f"lines that could not be written: {len(sent) - len(first)}"
        assert keys(drain(reader)) == [lost, "later"]
        emit("then")
        assert keys(drain(reader)) == ["then"]
    assert os.get_blocking(writer)


def test_long_line(pipe: tuple[int, int]) -> None:
    """
    A line that fits in part is continued before the next line, and lines between are lost.
    """
    reader, writer = pipe
    with log.writing(writer):
        emit(LONG, "a", "b")
        text = drain(reader)
        emit("c")
        text += drain(reader)
        assert keys(text) == [LONG, "lines that could not be written: 2", "c"]


def test_long_lines_of_threads(pipe: tuple[int, int]) -> None:
    """
    Lines of threads do not mix, however slowly they are read.
    """
    reader, writer = pipe
    with ThreadPoolExecutor(4) as pool, log.writing(writer):
        writers = [pool.submit(emit, *[letter * 10_000] * 50) for letter in "abcd"]
        text = ""
        while not all(each.done() for each in writers):
            text += drain(reader)
        for _ in range(3):  # a line in part takes up to two reads
            text += drain(reader)
            emit("end")
        text += drain(reader)
    assert keys(text)[-1] == "end"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_reader_is_gone(kind: str) -> None:
    """
    Without a reader, lines are lost, and nothing fails.
    """
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    with owned(writer), log.writing(writer):
        os.close(reader)
        emit("a", "b")
        logging.getLogger("asyncio").warning("slow")


def test_full_socket() -> None:
    """
    Nothing waits for a journal that does not read, and other processes' use of the socket does not change.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        with log.writing(writer.fileno()):
            emit(*[LONG] * 1000)
            lines = keys(drain(reader.fileno()))
        assert 0 < len(lines) < 1000
        assert os.get_blocking(writer.fileno())


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Lines that do not fit on the disk are lost until there is room again.
    """
    path = tmp_path / "log"
    with path.open("w") as file, log.writing(file.fileno()):
        with monkeypatch.context() as patch:

            def refuse(data: bytes) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(events.sink, "_send", refuse)
            emit("a", "b")
        emit("c")
    assert keys(path.read_text()) == ["lines that could not be written: 2", "c"]


def test_line_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    A line that is written while the same thread writes another one, as by the garbage collector, blocks nothing.
    """
    path = tmp_path / "log"
    with path.open("w") as file, log.writing(file.fileno()):
        send = events.sink._send  # type: ignore[attr-defined]

        def collecting(data: bytes) -> int:
            monkeypatch.setattr(events.sink, "_send", send)
            logging.getLogger("asyncio").warning("pending")
            return int(send(data))

        monkeypatch.setattr(events.sink, "_send", collecting)
        emit("a")
    assert keys(path.read_text()) == ["pending", "a"]


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
