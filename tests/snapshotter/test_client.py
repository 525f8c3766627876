"""
The client of a service; test_conformance and test_metastore test the contract through it.
"""

import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from snapshotter import Info, Kind, Mount, Snapshotter, Usage
from snapshotter.client import Client
from snapshotter.errors import Error, InvalidArgumentError, NotFoundError, StoreHeldError, UnavailableError
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.daemon.stores import STATUSES, Fake, raising
from tests.snapshotter.serving import Serving, serving

CALLS: dict[str, Callable[[Client], Any]] = {
    "stat": lambda client: client.stat("k"),
    "walk": lambda client: client.walk(),
    "usage": lambda client: client.usage("k"),
    "mounts": lambda client: client.mounts("k"),
    "prepare": lambda client: client.prepare("k"),
    "view": lambda client: client.view("k"),
    "fork": lambda client: client.fork("k", "n"),
    "commit": lambda client: client.commit("n", "k"),
    "update": lambda client: client.update(Info(Kind.ACTIVE, "k")),
    "remove": lambda client: client.remove("k"),
    "cleanup": lambda client: client.cleanup(),
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Serving]:
    """
    Return a service with an empty store.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes, client="c") as store, serving(store) as server:
        yield server


@pytest.mark.parametrize("name", CALLS)
def test_signatures(name: str) -> None:
    """
    Names, arguments, defaults and results are the library's.
    """
    assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(Snapshotter, name))


def test_values() -> None:
    """
    All fields of an info, a usage and a mount arrive, times to the microsecond.
    """
    times = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    infos = [
        Info(kind, f"name {kind} é\0", "parent", {"a": "1", "": ""}, time, time) for kind in Kind for time in times
    ]
    mounts = (
        Mount("btrfs", "/dev/x", "sub/path", ("ro", "subvolid=5")),
        Mount("bind", "/somewhere"),
    )
    fake = Fake(lambda *_: None)
    fake.walk = lambda *_: iter(infos)
    fake.prepare = fake.view = fake.mounts = lambda *_: mounts
    fake.known_usage = lambda *_: None
    fake.usage = lambda *_: Usage(2**62, 2**61)
    with serving(fake) as server, Client(server.address) as client:
        assert list(client.walk()) == infos
        for info in infos:
            fake.stat = fake.update = lambda *_, info=info: info
            assert client.stat("k") == client.update(info) == info
        assert client.prepare("k") == client.view("k") == client.mounts("k") == mounts
        assert client.usage("k") == Usage(2**62, 2**61)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_errors(call: Callable[[Client], Any]) -> None:
    """
    Each kind of error is raised as in the service, with its text.
    """
    text = "why: é\n'k'"
    for kind in STATUSES:
        if call is CALLS["remove"] and kind is not NotFoundError:
            continue
        with serving(Fake(raising(kind(text)))) as server, Client(server.address) as client:
            with pytest.raises(Error) as raised:
                call(client)
            assert str(raised.value) == text
            assert type(raised.value) is (kind if kind is not StoreHeldError else UnavailableError)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nobody_answers(call: Callable[[Client], Any], tmp_path: Path) -> None:
    """
    Without a socket or a listener, calls are Unavailable, and the address is named.
    """
    for address in (tmp_path / "none", tmp_path / "dead"):
        if address.name == "dead":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(address))
        with Client(address) as client, pytest.raises(UnavailableError, match=f"no answer from '{address}': "):
            call(client)


def test_the_service_comes_back(tmp_path: Path) -> None:
    """
    A client outlives the service: calls are Unavailable while no service runs, and work with the next service.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes, client="c") as store:
        address = str(tmp_path / "socket")
        first = Serving(address)
        first.open(store)
        with Client(address, snapshotter="c") as client:
            client.prepare("k")
            first.close()
            with pytest.raises(UnavailableError):
                client.stat("k")
            Path(address).unlink()
            second = Serving(address)
            second.open(store)
            try:
                assert client.stat("k").name == "k"
            finally:
                second.close()


def test_the_service_goes_away_in_a_call() -> None:
    """
    A call in flight ends when the service ends.
    """
    began, go = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        began.set()
        go.wait()

    with serving(Fake(hang)) as server, Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(client.prepare, "k")
            began.wait()
            server.run(server.service.stop(0))
            with pytest.raises(UnavailableError):
                waiting.result()
        finally:
            go.set()


def test_timeout() -> None:
    """
    A call ends after the client's time limit.
    """
    with serving() as server, Client(server.address, timeout=0.01) as client:
        for name, call in CALLS.items():
            with pytest.raises(UnavailableError):
                call(client)
            assert name


def test_serving(served: Serving) -> None:
    """
    A client can ask whether the service has its store open.
    """
    with Client(served.address) as client:
        assert client.serving() is True
    with serving() as server, Client(server.address) as client:
        assert client.serving() is False


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.stat("\udcff"),
        lambda client: client.stat(1),
        lambda client: client.prepare("k", labels={"a": "\udcff"}),
        lambda client: client.prepare("k", labels={1: "a"}),
        lambda client: client.commit("n", "k", labels={"a": None}),
        lambda client: client.walk(1),
        lambda client: client.update(Info(Kind.ACTIVE, "\udcff")),
    ],
)
def test_what_no_message_can_hold(served: Serving, call: Callable[[Client], Any]) -> None:
    """
    A value that is not text is an invalid argument, as in the library.
    """
    with Client(served.address, snapshotter="c") as client:
        with pytest.raises(InvalidArgumentError):
            call(client)
        assert list(client.walk()) == []


def test_closed(served: Serving) -> None:
    """
    A client can be closed twice, also without a call; later calls say that it is closed.
    """
    client = Client(served.address)
    client.close()
    client.close()
    with pytest.raises(Error, match="closed"):
        client.stat("k")
