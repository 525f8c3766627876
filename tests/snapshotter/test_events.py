"""
The events of a store, and the lines of the log.
"""

import ast
import errno
import functools
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter import Snapshotter, cli, events
from snapshotter.cli import codes
from snapshotter.daemon import log
from snapshotter.daemon.service import refusal
from snapshotter.errors import DataLossError, Error, NotFoundError, UnavailableError
from snapshotter.events import Event, Fields, LogFormat
from snapshotter.store import records
from snapshotter.store.layout import FS
from snapshotter.store.record_storage import Files
from snapshotter.store.records import State
from snapshotter.testing import DirectoryVolumes

REPOSITORY = Path(__file__).parent.parent.parent
DOCS = (REPOSITORY / "docs/containerd.md").read_text()
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """
    Return a function that begins to write the log, and returns its file.
    """
    path = tmp_path / "log"
    with path.open("w") as file, ExitStack() as stack:

        def listen(*args: Any, **options: Any) -> Path:
            stack.enter_context(log.writing(file.fileno(), *args, **options))
            return path

        yield listen


def told(log: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """
    Return the events so far, with their fields except the duration.
    """
    found = []
    for record in log.records:
        fields = dict(record.fields)  # type: ignore[attr-defined]
        if "seconds" in fields:
            assert 0 <= fields.pop("seconds") < 60
        found.append((str(record.event), fields))  # type: ignore[attr-defined]
    log.clear()
    return found


def rows(heading: str) -> list[list[str]]:
    """
    Return the cells of the docs' table with *heading*.
    """
    table = DOCS.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_documented() -> None:
    """
    The tables of the docs and of the code are equal.
    """
    table = [[f"`{event}`", logging.getLevelName(event.level).lower(), event.meaning] for event in Event]
    assert rows("event | level | says")[:-1] == table
    assert [row[0] for row in rows("field | is")] == [f"`{name}`" for name in (*get_type_hints(Fields), "traceback")]


def test_emitted() -> None:
    """
    Each event is emitted somewhere, and nothing is logged in another way.
    """
    emitted, loggers = set(), set()
    for path in (REPOSITORY / "src/snapshotter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Event":
                emitted.add(node.attr)
            elif isinstance(node, ast.Import) and node.names[0].name == "logging":
                loggers.add(path.name)
    assert emitted == set(Event.__members__)
    assert loggers == {"events.py", "log.py"}


def test_life_of_a_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    Each change of state is one event; reads have none.
    """
    caplog.set_level(logging.INFO, "snapshotter")
    root = str(tmp_path / "store")
    with Snapshotter.create(root, volumes=DirectoryVolumes) as store:
        assert told(caplog) == [("opened", {"root": root, "snapshots": 0})]
        store.prepare("build", labels={"secret": "hunter2"})
        store.commit("base", "build", {"secret": "hunter2"})
        store.prepare("web", "base")
        store.fork("web", "web-2")
        store.view("look", "base")
        store.update(store.stat("web"), "labels")
        assert told(caplog) == [
            ("prepared", {"key": "build", "id": 1}),
            ("committed", {"key": "base", "id": 1, "source": "build"}),
            ("prepared", {"key": "web", "id": 3, "parent": "base"}),
            ("forked", {"key": "web-2", "id": 4, "source": "web"}),
            ("viewed", {"key": "look", "id": 5, "parent": "base"}),
            ("updated", {"key": "web", "id": 3}),
        ]
        list(store.walk())
        store.mounts("web")
        store.usage("web")
        assert told(caplog) == []
        store.remove("look")
        store.cleanup()
        assert sorted(told(caplog), key=repr) == [
            ("destroyed", {"id": 1, "subvolume": FS}),
            ("destroyed", {"id": 5}),
            ("removed", {"key": "look", "id": 5}),
        ]
        store.close()
        assert told(caplog) == [("closed", {"root": root})]
    assert told(caplog) == []
    with Snapshotter(root, read_only=True, volumes=DirectoryVolumes):
        fields = {"root": root, "snapshots": 3, "error": "it was opened read-only"}
        assert told(caplog) == [("opened", fields)]


def test_failures_change_nothing(store: Snapshotter, caplog: pytest.LogCaptureFixture) -> None:
    """
    A failed call has no event.
    """
    caplog.set_level(logging.INFO, "snapshotter")
    for call in (
        lambda: store.prepare("a", "missing"),
        lambda: store.commit("a", "missing"),
        lambda: store.fork("missing", "a"),
        lambda: store.remove("missing"),
    ):
        with pytest.raises(Error):
            call()
    assert told(caplog) == []


def test_recovery(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    Opening a store reports recovered, undone, quarantined and unknown snapshots; opening read-only changes nothing.
    """
    root = tmp_path / "store"
    with Snapshotter.create(root, volumes=DirectoryVolumes) as store:
        for key in ("whole", "half", "lost", "back"):
            store.prepare(key)
        ids = {key: store.opened.index.get(key).id for key in ("whole", "half", "lost", "back")}
    snapshots = root / "snapshots"
    for key, state in (("whole", State.PREPARING), ("half", State.PREPARING), ("back", State.COMMITTING)):
        commitment = records.Commitment("base", {}, 1) if state is State.COMMITTING else None
        record = records.Record(ids[key], state, key, commitment=commitment)
        fd = os.open(snapshots / str(ids[key]), os.O_RDONLY)
        Files().write(fd, records.encode(record))
        os.close(fd)
    (snapshots / str(ids["half"]) / FS).rmdir()
    (snapshots / str(ids["lost"]) / FS).rmdir()
    (snapshots / "stranger").mkdir()
    caplog.set_level(logging.INFO, "snapshotter")
    settled = {Event.RECOVERED, Event.UNDONE, Event.QUARANTINED, Event.UNKNOWN}
    why = "its subvolume is missing"
    lost = ("quarantined", {"key": "lost", "id": ids["lost"], "error": why})
    unknown = ("unknown", {"path": str(snapshots / "stranger"), "error": "it is not the directory of a snapshot"})
    with Snapshotter(root, read_only=True, volumes=DirectoryVolumes):
        assert [entry for entry in told(caplog) if entry[0] in settled] == [unknown, lost]
    with Snapshotter(root, volumes=DirectoryVolumes):
        assert [entry for entry in told(caplog) if entry[0] in settled] == [
            unknown,
            ("recovered", {"key": "whole", "id": ids["whole"]}),
            ("undone", {"key": "half", "id": ids["half"]}),
            lost,
            ("undone", {"key": "back", "id": ids["back"]}),
        ]


def test_troubles(
    open_store: Callable[..., Snapshotter], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A held destroy, data that the disk refused, and a dead filesystem are reported with the kernel's error.
    """
    caplog.set_level(logging.WARNING, "snapshotter")
    store = open_store()
    store.prepare("a")

    def fail(*args: Any, number: int = errno.EIO) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(store.opened.volumes, "verify", fail)
        with pytest.raises(DataLossError):
            store.commit("b", "a")
    assert told(caplog) == [("data-refused", {"root": store.root, "error": "[Errno 5] Input/output error"})]
    with monkeypatch.context() as patch:
        patch.setattr(store.opened.volumes, "destroy", functools.partial(fail, number=errno.EBUSY))
        caplog.set_level(logging.INFO, "snapshotter")
        store.remove("a")
        store.cleanup()
        held = {"id": 1, "error": "[Errno 16] Device or resource busy"}
        assert told(caplog) == [("removed", {"key": "a", "id": 1}), ("held", held)]
        monkeypatch.setattr(store.opened.volumes, "barrier", fail)
        with pytest.raises(UnavailableError):
            store.view("c")
    assert ("filesystem-failed", {"root": store.root, "error": "[Errno 5] Input/output error"}) in told(caplog)


def test_removed_before_it_was_settled(
    open_store: Callable[..., Snapshotter], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A snapshot that is removed while its usage is measured is no event.
    """
    store = open_store()
    store.prepare("a")
    store.commit("b", "a")
    snapshot = store.opened.index.get("b")
    caplog.set_level(logging.INFO, "snapshotter")

    def removed(*args: Any) -> None:
        store.remove("b")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with monkeypatch.context() as patch:
        patch.setattr(store.opened.operations, "measure", removed)
        store.opened.operations.settle(snapshot)
    assert "unsettled" not in [name for name, _ in told(caplog)]


NASTY = 'a b\n\x1b[31m\u2028"=\\ \udcff\x00é'


def test_text(listening: Callable[..., Path]) -> None:
    """
    A line of text has time, level, event and the fields in order; a value that is not one plain word is quoted.
    """
    path = listening()
    Event.PREPARED.emit(key="k8s.io/7/sha256:6f", id=17, parent=NASTY, seconds=0.00091249, error="")
    [line] = path.read_text().splitlines()
    time, level, event, key, snapshot_id, parent, seconds = re.findall(r'(?:[^ "]|"(?:\\.|[^"\\])*")+', line)
    assert TIME.fullmatch(time)
    assert (level, event, key, snapshot_id) == ("info", "prepared", "key=k8s.io/7/sha256:6f", "id=17")
    assert json.loads(parent.removeprefix("parent=")) == NASTY
    assert seconds == "seconds=0.000912"


def test_json(listening: Callable[..., Path]) -> None:
    """
    A line of JSON is one object with the same values.
    """
    path = listening("json")
    Event.QUARANTINED.emit(key=NASTY, id=17, seconds=0.00091249, error="gone")
    [line] = path.read_text().splitlines()
    values = json.loads(line)
    assert TIME.fullmatch(values.pop("time"))
    fields = {"key": NASTY, "id": 17, "seconds": 0.000912, "error": "gone"}
    assert values == {"level": "warning", "event": "quarantined", **fields}


@pytest.mark.parametrize("log_format", get_args(LogFormat))
@given(text=st.text(st.characters(exclude_categories=())))
def test_one_line(log_format: LogFormat, text: str) -> None:
    """
    Whatever its key, an event is one line of printable ASCII.
    """
    formatter = log.JSONFormatter() if log_format == "json" else log.TextFormatter()
    extra = {"event": Event.REMOVED, "fields": {"key": text, "error": text}}
    record = logging.getLogger("snapshotter").makeRecord(
        "snapshotter", logging.INFO, "", 0, text, (), None, extra=extra
    )
    line = formatter.format(record)
    assert line.isascii()
    assert line.isprintable()
    if log_format == "json":
        assert json.loads(line).get("key", "") == text


@pytest.mark.parametrize("log_format", get_args(LogFormat))
def test_others(log_format: LogFormat, listening: Callable[..., Path]) -> None:
    """
    A message of another library, from warnings on, is one line, and so is a traceback.
    """
    path = listening(log_format)
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("asyncio").warning("slow\n%s", "callback")
    try:
        1 // 0  # noqa: B018  # it is the traceback that is wanted
    except ZeroDivisionError as error:
        Event.DEFECT.emit(traceback=error, error=repr(error))
    other, defect = path.read_text().splitlines()
    if log_format == "json":
        assert (json.loads(other)["event"], json.loads(other)["message"]) == ("log", "slow\ncallback")
        assert json.loads(defect)["traceback"].startswith("Traceback")
    else:
        assert other.endswith('warning log message="slow\\ncallback"')
        assert 'traceback="Traceback' in defect


def test_other_formatters(caplog: pytest.LogCaptureFixture) -> None:
    """
    With another formatter, the message has the event and all fields.
    """
    caplog.set_level(logging.INFO, "snapshotter")
    Event.REMOVED.emit(key="a b", id=1)
    assert caplog.messages == ['removed key="a b" id=1']


@pytest.mark.parametrize("imports", ["", "import logging; "])
def test_silent(imports: str) -> None:
    """
    A program that does not set up logging prints nothing, not even errors.
    """
    program = f"{imports}from snapshotter.events import Event; Event.FILESYSTEM_FAILED.emit(root='/')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_calls(caplog: pytest.LogCaptureFixture) -> None:
    """
    A call that fails because of its caller is logged at level debug, because of the service as an error.
    """
    caplog.set_level(logging.DEBUG, "snapshotter")
    caplog.clear()
    for error, level, code in (
        (NotFoundError("gone"), logging.DEBUG, "NOT_FOUND"),
        (DataLossError("lost"), logging.ERROR, "DATA_LOSS"),
        (ZeroDivisionError("zero"), logging.ERROR, "INTERNAL"),
    ):
        refusal("Stat", error)
        [record] = caplog.records
        assert record.levelno == level
        assert bool(record.exc_info) is isinstance(error, ZeroDivisionError)
        [(event, fields)] = told(caplog)
        assert event == (Event.REFUSED if level == logging.DEBUG else Event.FAILED)
        assert (fields["op"], fields["code"]) == ("Stat", code)
        assert str(error) in fields["error"]


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("traceparent", [f"00-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-00-later"])
def test_traced(traceparent: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    Events within a trace have its ids, and no others have.
    """
    caplog.set_level("INFO", "snapshotter")
    with events.tracing(traceparent):
        Event.PREPARED.emit(key="traced")
    Event.PREPARED.emit(key="later")
    assert told(caplog) == [
        ("prepared", {"key": "traced", "trace": TRACE, "span": SPAN}),
        ("prepared", {"key": "later"}),
    ]


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01x",
    ],
)
def test_malformed_traceparent(traceparent: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    A malformed header is ignored.
    """
    caplog.set_level("INFO", "snapshotter")
    with events.tracing(traceparent):
        Event.PREPARED.emit(key="k")
    assert told(caplog) == [("prepared", {"key": "k"})]


@pytest.mark.parametrize("log_format", get_args(LogFormat))
def test_selected_by_trace(
    log_format: LogFormat, listening: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The ids are in the lines of both formats, and either selects them.
    """
    path = listening(log_format)
    with events.tracing(f"00-{TRACE}-{SPAN}-01"):
        Event.PREPARED.emit(key="traced", id=1)
    Event.PREPARED.emit(key="other", id=2)
    for wanted in (TRACE, SPAN):
        assert cli.main(["events", "--log", str(path), "--trace", wanted]) == codes.DONE
        [line] = capsys.readouterr().out.splitlines()
        assert line.endswith(f"key=traced id=1 trace={TRACE} span={SPAN}")
    assert cli.main(["events", "traced", "--log", str(path), "--trace", "another"]) == codes.DONE
    assert capsys.readouterr().out == ""
