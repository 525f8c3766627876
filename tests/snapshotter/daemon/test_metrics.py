"""
The metrics for Prometheus: all of them, at any time, without delaying a call.
"""

import http.client
import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pybtrfs import device, space
from snapshotter import Snapshotter
from snapshotter.daemon import metrics
from snapshotter.daemon.metrics import Metrics, serving
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from snapshotter.daemon.service import Observer

DOCS = (Path(__file__).parents[3] / "docs/containerd.md").read_text()
PATIENCE = 10


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._address = address

    def connect(self) -> None:
        if self._address.startswith("/"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(PATIENCE)
            self.sock.connect(self._address)
        else:
            host, _, port = self._address.rpartition(":")
            self.sock = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)


def scrape(address: str) -> str:
    connection = _Connection(address)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """
    Return the values, by name and by the labels' values in the order of the labels' names.
    """
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "metrics.sock")


@pytest.fixture
def measured(address: str) -> Iterator[Metrics]:
    """
    Return metrics that are served at the address.
    """
    measured = Metrics()
    with serving(measured, address):
        yield measured


def test_calls(measured: Metrics, address: str) -> None:
    """
    Calls are counted by operation and code, timed, and visible while they are in flight.
    """
    observer: Observer = measured
    observer.started("Prepare")
    observer.started("Prepare")
    observer.started("Stat")
    observer.ended("Prepare", "OK", 0.003)
    observer.ended("Stat", "NOT_FOUND", 0.0001)
    found = samples(scrape(address))
    assert found["snapshotter_operations_total", "OK", "Prepare"] == 1
    assert found["snapshotter_operations_total", "NOT_FOUND", "Stat"] == 1
    assert found["snapshotter_inflight_operations", "Prepare"] == 1
    assert found["snapshotter_inflight_operations", "Stat"] == 0
    assert found["snapshotter_operation_duration_seconds_sum", "Prepare"] == 0.003
    assert found["snapshotter_operation_duration_seconds_bucket", "0.0025", "Prepare"] == 0
    assert found["snapshotter_operation_duration_seconds_bucket", "0.005", "Prepare"] == 1


def test_store(measured: Metrics, address: str, store: Snapshotter, backend: str) -> None:
    """
    Snapshots are counted by kind, with pending deletions and problems and, on btrfs, the filesystem's space.
    """
    assert not any(name.startswith("snapshotter_snapshots") for name, *_ in samples(scrape(address)))
    measured.opened(store, 0.25)
    store.prepare("a")
    store.commit("base", "a")
    store.prepare("b", "base")
    store.prepare("c", "base")
    store.view("d", "base")
    store.cleanup()
    found = samples(scrape(address))
    assert found["snapshotter_store_open_seconds",] == 0.25
    assert [found["snapshotter_snapshots", kind] for kind in ("active", "committed", "view")] == [2, 1, 1]
    assert found["snapshotter_pending_deletions",] == 0
    assert found["snapshotter_inconsistencies",] == 0
    if backend == "btrfs":
        data = next(group for group in space.get(store.root) if group.type == "data")
        shown = [found["snapshotter_filesystem_bytes", "data", state] for state in ("used", "free")]
        assert shown == [data.used_bytes, data.total_bytes - data.used_bytes]
        [only] = device.iterate(store.root)
        allocated = sum(value for (name, *_), value in found.items() if name == "snapshotter_filesystem_bytes")
        assert 0 < allocated <= only.bytes_used
        assert found["snapshotter_filesystem_unallocated_bytes",] == only.total_bytes - only.bytes_used


def test_troubles_are_counted(
    measured: Metrics, address: str, open_store: Callable[..., Snapshotter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A held deletion is pending, and an unexpected entry found at open is an inconsistency.
    """
    with open_store() as store:
        store.prepare("a")
        (Path(store.root) / "snapshots/stranger").mkdir()
    store = open_store()
    measured.opened(store, 0)

    def hold(*args: object) -> None:
        raise BlockingIOError

    with monkeypatch.context() as patch:
        patch.setattr(store.opened.volumes, "destroy", hold)
        store.remove("a")
        found = samples(scrape(address))
    assert found["snapshotter_pending_deletions",] == 1
    assert found["snapshotter_inconsistencies",] == 1


def test_closed(measured: Metrics, address: str, store: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With a closed store on a failing filesystem, the metrics of calls are still served.
    """
    measured.opened(store, 0)
    store.close()

    def fail(path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(metrics, "space", SimpleNamespace(get=fail))
    found = samples(scrape(address))
    assert ("snapshotter_store_open_seconds",) in found
    assert not any(re.match("snapshotter_(snapshots|filesystem)", name) for name, *_ in found)


def test_documented(measured: Metrics, address: str, btrfs: Path) -> None:
    """
    The docs list every metric with its type, its labels and a meaning, and no other metric.
    """
    shown: dict[str, tuple[str, set[str]]] = {}
    with Snapshotter.create(btrfs / "store") as store:
        measured.opened(store, 0)
        measured.started("Stat")
        measured.ended("Stat", "OK", 0)
        for family in text_string_to_metric_families(scrape(address)):
            labels = {name for sample in family.samples for name in sample.labels} - {"le"}
            name = family.name + ("_total" if family.type == "counter" else "")
            shown[name] = family.type, labels
    table = DOCS.split("| metric | type |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    told = {}
    for row in table:
        name, kind, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        assert meaning
        [(name, labels)] = re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", name)
        told[name] = kind, set(filter(None, labels.split(",")))
    assert told == shown


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_unix_socket(umask: int, address: str) -> None:
    """
    Only the owner has access to the socket, whatever the umask.
    """
    before = os.umask(umask)
    try:
        with serving(Metrics(), address):
            assert stat.S_IMODE(os.stat(address).st_mode) == 0o600
            assert "snapshotter_build_info" in scrape(address)
    finally:
        os.umask(before)
    assert not os.path.exists(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_tcp(host: str) -> None:
    """
    The server listens at the given host and port, and at no other host.
    """
    with serving(Metrics(), f"{host}:0") as address:
        assert "snapshotter_build_info" in scrape(address)
        port = f":{int(address.rpartition(':')[2]):04X} "
        tables = [Path(f"/proc/net/tcp{suffix}").read_text() for suffix in ("", "6")]
        [bound] = [
            line.split()[1] for table in tables for line in table.splitlines() if port in line and " 0A " in line
        ]
        assert bound.partition(":")[0] in ("0100007F", "00000000000000000000000001000000")


@pytest.mark.parametrize(
    "address", ["", "9110", ":9110", "localhost:", "localhost:http", "localhost:65536", "relative.sock"]
)
def test_bad_address(address: str) -> None:
    """
    An address that is neither a path nor a host with a port is refused, so that no omission opens a port to the world.
    """
    with pytest.raises(InvalidArgumentError, match="HOST:PORT"), serving(Metrics(), address):
        pass


def test_taken_address() -> None:
    """
    An address at which listening fails is named in the error.
    """
    with serving(Metrics(), "127.0.0.1:0") as address:
        for taken in (address, "host.invalid:1"):
            with pytest.raises(FailedPreconditionError, match=taken), serving(Metrics(), taken):
                pass


def test_silent_clients(address: str) -> None:
    """
    A client that sends nothing delays no call, and another client only briefly.
    """
    measured = Metrics()
    with serving(measured, address, client_seconds=0.05), socket.socket(socket.AF_UNIX) as silent:
        silent.connect(address)
        measured.started("Stat")
        assert samples(scrape(address))["snapshotter_inflight_operations", "Stat"] == 1


def test_rude_clients(measured: Metrics, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    """
    Clients that speak another protocol or disconnect change nothing, and print nothing.
    """
    for sent in (
        b"",
        b"\0\xff\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(address)
            rude.sendall(sent)
    assert "snapshotter_build_info" in scrape(address)
    assert capfd.readouterr() == ("", "")


def test_hanging_filesystem(address: str, btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A read of the filesystem that hangs delays neither calls nor the end.
    """
    entered, gate = threading.Event(), threading.Event()

    def hang(path: str) -> tuple[()]:
        entered.set()
        assert gate.wait(PATIENCE)
        return ()

    monkeypatch.setattr(metrics, "space", SimpleNamespace(get=hang))
    measured = Metrics()
    with ExitStack() as stack:
        store = stack.enter_context(Snapshotter.create(btrfs / "store"))
        measured.opened(store, 0)
        asking = socket.socket(socket.AF_UNIX)
        stack.callback(asking.close)
        with serving(measured, address, stop_seconds=0.1):
            asking.connect(address)
            asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert entered.wait(PATIENCE)
            measured.started("Prepare")
            store.prepare("a")
            measured.ended("Prepare", "OK", 0.001)
        assert not gate.is_set()  # serving has ended while the request hangs
        gate.set()
