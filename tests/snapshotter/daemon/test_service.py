"""
The service, called as containerd does and as nobody should.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter import Info, Kind, Snapshotter, Usage, errors
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.client import Client
from snapshotter.daemon import rpc, service
from snapshotter.daemon.service import LIMITS, Limits
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.daemon.wire import Wire, framed
from tests.snapshotter.serving import serving

CHECK = "/grpc.health.v1.Health/Check"
METHODS = {
    "Prepare": pb.PrepareSnapshotRequest,
    "View": pb.ViewSnapshotRequest,
    "Mounts": pb.MountsRequest,
    "Commit": pb.CommitSnapshotRequest,
    "Remove": pb.RemoveSnapshotRequest,
    "Stat": pb.StatSnapshotRequest,
    "Update": pb.UpdateSnapshotRequest,
    "List": pb.ListSnapshotsRequest,
    "Usage": pb.UsageRequest,
    "Cleanup": pb.CleanupRequest,
}


class Fake:
    """
    A store whose methods all do *act*.
    """

    failure = ""

    def __init__(self, act: Callable[..., Any]) -> None:
        self.stat = self.walk = self.usage = self.known_usage = self.mounts = act
        self.prepare = self.view = self.fork = self.commit = self.update = self.remove = self.cleanup = act
        self.opened = self

    def bound_to(self, client: str) -> "Fake":
        return self


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: object) -> None:
        raise error

    return act


class Hanging(DirectoryVolumes):
    """
    Volumes where the snapshot ioctl hangs until it is let go.
    """

    go = threading.Event()
    hanging = threading.Semaphore(0)  # is released once for each that hangs

    def snapshot(self, *arguments: Any) -> None:
        self.hanging.release()
        self.go.wait()
        super().snapshot(*arguments)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Snapshotter]:
    """
    A store with a committed "base" and an active "top", where Prepare on a parent hangs until the test lets it go.
    """
    Hanging.go, Hanging.hanging = threading.Event(), threading.Semaphore(0)
    with Snapshotter.create(tmp_path / "root", volumes=Hanging, client="c") as store:
        store.prepare("key")
        store.commit("base", "key")
        store.prepare("top")
        try:
            yield store
        finally:
            Hanging.go.set()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Snapshotter]:
    """
    An empty store on directories.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes, client="c") as store:
        yield store


@contextlib.contextmanager
def wired(store: Any, observer: Any = None, *, limits: Limits = LIMITS) -> Iterator[Wire]:
    """
    Serve *store*, and connect to it.
    """
    with serving(store, observer, limits=limits) as server, Wire(server.address) as wire:
        yield wire


# Opening


def test_calls_wait_for_the_store(plain: Snapshotter) -> None:
    """
    Before the store is open a connection is greeted, health answers that it is not serving, and calls wait for it.
    """
    with serving() as server, Wire(server.address) as wire:
        wire.until_greeted()
        assert HealthCheckResponse.FromString(wire.call(CHECK, HealthCheckRequest()).messages[0]).status == 2
        calls = {name: wire.begin(name) for name in METHODS}
        for name, number in calls.items():
            wire.body(number, framed(METHODS[name](snapshotter="c")))
        wire.call(CHECK, HealthCheckRequest())
        assert not wire.ended.intersection(calls.values())
        server.open(plain)
        replies = {name: wire.end(number).status for name, number in calls.items()}
        assert replies == dict.fromkeys(METHODS, Status.NOT_FOUND.value) | {
            "Prepare": Status.INVALID_ARGUMENT.value,  # the key is empty
            "View": Status.INVALID_ARGUMENT.value,
            "Commit": Status.INVALID_ARGUMENT.value,
            "List": Status.OK.value,
            "Cleanup": Status.OK.value,
        }
        assert HealthCheckResponse.FromString(wire.call(CHECK, HealthCheckRequest()).messages[0]).status == 1


def test_a_store_that_does_not_open() -> None:
    """
    Calls say why there is no store, in a kind that says nothing about snapshots; it is not serving.
    """
    with serving() as server, Wire(server.address) as wire:
        server.fail(NotFoundError("no such directory"))
        for name, request in METHODS.items():
            reply = wire.call(name, request(snapshotter="c"))
            expected = Status.FAILED_PRECONDITION if name == "Remove" else Status.UNAVAILABLE
            assert (reply.status, reply.text) == (expected.value, "the store is not open: no such directory")
        assert HealthCheckResponse.FromString(wire.call(CHECK, HealthCheckRequest()).messages[0]).status == 2


def test_calls_do_not_wait_for_ever() -> None:
    """
    A call fails if the store does not open within the call's time limit.
    """
    with wired(None, limits=Limits(0, 0, 0, 0)) as wire:
        for name, request in METHODS.items():
            reply = wire.call(name, request(snapshotter="c"))
            assert reply.status == (Status.FAILED_PRECONDITION if name == "Remove" else Status.UNAVAILABLE).value


# Health


def test_health(plain: Snapshotter) -> None:
    """
    The service as a whole and by name are serving, another one is unknown; after the disk failed they are not.
    """
    with wired(plain) as wire:
        for name in ("", "containerd.services.snapshots.v1.Snapshots"):
            reply = wire.call(CHECK, HealthCheckRequest(service=name))
            assert HealthCheckResponse.FromString(reply.messages[0]).status == HealthCheckResponse.SERVING
        assert wire.call(CHECK, HealthCheckRequest(service="other")).status == Status.NOT_FOUND.value
    failed = Fake(raising(UnavailableError("the disk failed")))
    failed.failure = "the disk failed"
    with wired(failed) as wire:
        reply = wire.call(CHECK, HealthCheckRequest())
        assert HealthCheckResponse.FromString(reply.messages[0]).status == HealthCheckResponse.NOT_SERVING


# Errors


KINDS = {
    errors.NotFoundError: Status.NOT_FOUND,
    errors.AlreadyExistsError: Status.ALREADY_EXISTS,
    errors.InvalidArgumentError: Status.INVALID_ARGUMENT,
    errors.FailedPreconditionError: Status.FAILED_PRECONDITION,
    errors.ResourceExhaustedError: Status.RESOURCE_EXHAUSTED,
    errors.UnavailableError: Status.UNAVAILABLE,
    errors.StoreHeldError: Status.UNAVAILABLE,
    errors.DataLossError: Status.DATA_LOSS,
    errors.NotSupportedError: Status.UNIMPLEMENTED,
    errors.Error: Status.UNKNOWN,
}


def test_every_kind_is_tried() -> None:
    """
    The table above has all there are.
    """
    assert set(KINDS) == {kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)}


@pytest.mark.parametrize("kind", KINDS)
def test_error_kinds(kind: type[errors.Error]) -> None:
    """
    Each kind of error has containerd's code and the whole text; but a removal says NotFound or FailedPrecondition, for
    anything else would end containerd's collection.
    """
    text = "why: é % \n\x7f 'k' \udcff"
    with wired(Fake(raising(kind(text)))) as wire:
        for name, request in METHODS.items():
            reply = wire.call(name, request(snapshotter="c"))
            expected = KINDS[kind]
            if name == "Remove" and kind is not NotFoundError:
                expected = Status.FAILED_PRECONDITION
            assert (name, reply.status, reply.text) == (name, expected.value, text.replace("\udcff", r"\udcff"))


def test_a_removal_is_refused_by_one_code(hanging: Snapshotter) -> None:
    """
    Remove fails with FailedPrecondition also where the server itself refuses the call: a broken or a large request,
    a deadline, a stop.
    """
    too_large = b"\0" + (rpc.MAX_REQUEST_SIZE + 1).to_bytes(4, "big")
    remove = framed(pb.RemoveSnapshotRequest(snapshotter="c", key="new"))
    with serving(hanging) as server, Wire(server.address) as wire:
        for body in (b"", remove[:-1], remove * 2, b"\1\0\0\0\0", framed(b"\xff"), too_large):
            number = wire.begin("Remove")
            wire.body(number, body)
            assert wire.end(number).status == Status.FAILED_PRECONDITION.value, body
        number = wire.begin("Remove", {"grpc-timeout": "soon"})
        assert wire.end(number).status == Status.FAILED_PRECONDITION.value
        prepare = wire.begin("Prepare")
        wire.body(prepare, framed(pb.PrepareSnapshotRequest(snapshotter="c", key="new", parent="base")))
        Hanging.hanging.acquire()
        number = wire.begin("Remove", {"grpc-timeout": "1m"})
        wire.body(number, remove)
        reply = wire.end(number)
        assert (reply.status, reply.text) == (Status.FAILED_PRECONDITION.value, "the client's deadline is over")
        stopped = asyncio.run_coroutine_threadsafe(server.service.stop(60), server.loop)
        while (reply := wire.call("Remove", pb.RemoveSnapshotRequest(snapshotter="c", key="none"))).status == 5:
            pass  # before the loop ran the stop
        assert (reply.status, reply.text) == (Status.FAILED_PRECONDITION.value, "the snapshotter is stopping")
        Hanging.go.set()
        stopped.result(10)


def test_an_exception_is_one_failed_call(caplog: pytest.LogCaptureFixture) -> None:
    """
    What a method never should raise is told to the client and logged, and the service lives on.
    """
    with wired(Fake(raising(ZeroDivisionError("oops")))) as wire:
        for name, request in METHODS.items():
            caplog.clear()
            reply = wire.call(name, request(snapshotter="c"))
            expected = Status.FAILED_PRECONDITION if name == "Remove" else Status.INTERNAL
            assert (reply.status, reply.text) == (expected.value, f"{name} failed: ZeroDivisionError('oops')")
            (record,) = caplog.records
            assert record.levelno == logging.ERROR
            assert "oops" in str(record.exc_info)


def test_a_huge_key_is_not_repeated_whole(plain: Snapshotter) -> None:
    """
    Errors quote no more than a part of huge keys, labels, paths and filters: their text travels in a header.
    """
    huge = "x" * 1_000_000
    info = pb.Info(name=huge)
    requests = {
        "Prepare": pb.PrepareSnapshotRequest(snapshotter="c", key=huge),
        "View": pb.ViewSnapshotRequest(snapshotter="c", key="k", parent=huge),
        "Commit": pb.CommitSnapshotRequest(snapshotter="c", name="n", key=huge),
        "Update": pb.UpdateSnapshotRequest(snapshotter="c", info=info),
        "List": pb.ListSnapshotsRequest(filters=[f'"{huge}"=x']),
    } | {name: METHODS[name](snapshotter="c", key=huge) for name in ("Mounts", "Remove", "Stat", "Usage")}
    plain.prepare("k2", labels={})
    with wired(plain) as wire:
        for name, request in requests.items():
            reply = wire.call(name, request)
            assert reply.status in (Status.NOT_FOUND.value, Status.INVALID_ARGUMENT.value), name
            assert len(reply.headers["grpc-message"]) < 16_384, name
        bad = pb.PrepareSnapshotRequest(snapshotter="c", key="k3", labels={huge: "v"})
        assert len(wire.call("Prepare", bad).text) < 1_000
        paths = pb.UpdateSnapshotRequest(snapshotter="c", info=pb.Info(name="k2"), update_mask={"paths": [huge]})
        assert len(wire.call("Update", paths).text) < 1_000


# Messages


def test_list_in_batches() -> None:
    """
    A hundred descriptions a message, the rest last, and nothing for nothing.
    """
    infos = [Info(Kind.ACTIVE, f"k{number}") for number in range(250)]
    with wired(Fake(lambda *_: iter(infos))) as wire:
        replies = [pb.ListSnapshotsResponse.FromString(data) for data in wire.call("List", b"").messages]
        assert [len(reply.info) for reply in replies] == [100, 100, 50]
        assert [info.name for reply in replies for info in reply.info] == [info.name for info in infos]
    with wired(Fake(lambda *_: iter(()))) as wire:
        assert wire.call("List", b"").messages == []


def test_large_labels_make_small_batches() -> None:
    """
    With labels of megabytes a message is as small as one description lets.
    """
    labels = {str(number): "v" * 4000 for number in range(100)}
    infos = [Info(Kind.ACTIVE, f"k{number}", labels=labels) for number in range(50)]
    with wired(Fake(lambda *_: iter(infos))) as wire:
        messages = wire.call("List", b"").messages
    assert sum(len(pb.ListSnapshotsResponse.FromString(data).info) for data in messages) == 50
    assert max(map(len, messages)) <= service.LIST_BATCH_SIZE + 10_000


def test_who_reads_slowly_holds_up_nobody() -> None:
    """
    A client that takes no more of a list is waited for, without keeping the list in memory or others waiting.
    """
    labels = {"l": "v" * 4000}
    made = 0

    def walk(*_: object) -> Iterator[Info]:
        nonlocal made
        for number in range(5_000):
            made = number
            yield Info(Kind.ACTIVE, f"k{number}", labels=labels)

    with serving(Fake(walk)) as server, Wire(server.address) as slow, Wire(server.address) as other:
        slow.reading = False
        number = slow.begin("List")
        slow.body(number, framed(b""))
        while slow.h2.remote_flow_control_window(number):
            slow.receive()
        for _ in range(3):
            assert other.call(CHECK, b"").status == 0
        assert made < 1_000
        slow.reading = True
        slow.h2.increment_flow_control_window(2**30)
        slow.h2.increment_flow_control_window(2**30, number)
        slow.send()
        assert sum(len(pb.ListSnapshotsResponse.FromString(data).info) for data in slow.end(number).messages) == 5_000


def test_a_long_list_holds_up_nobody() -> None:
    """
    While descriptions are gathered, other calls are answered.
    """
    begun, go = threading.Event(), threading.Event()

    def walk(*_: object) -> Iterator[Info]:
        begun.set()
        go.wait()
        yield Info(Kind.ACTIVE, "k")

    with wired(Fake(walk)) as wire:
        number = wire.begin("List")
        wire.body(number, framed(b""))
        begun.wait()
        try:
            assert wire.call(CHECK, b"").status == 0
            assert number not in wire.ended
        finally:
            go.set()
        assert len(wire.end(number).messages) == 1


def test_too_many_filters(plain: Snapshotter) -> None:
    """
    Filters have room for the largest key and label; beyond that they are refused, unread.
    """
    with wired(plain) as wire:
        for filters, status in (
            ([f'name=="{"x" * 32_768}",labels.a=="{"y" * 4_096}"'], Status.OK),
            (["name==x"] * 9_363, Status.INVALID_ARGUMENT),
        ):
            assert wire.call("List", pb.ListSnapshotsRequest(filters=filters)).status == status.value


def test_too_many_headers(plain: Snapshotter) -> None:
    """
    A client with more headers than anybody needs loses its connection, and nobody else theirs.
    """
    with serving(plain) as server, Wire(server.address) as wire, Wire(server.address) as greedy:
        with pytest.raises(ConnectionError):
            greedy.end(greedy.begin("Stat", {f"header-{number}": "x" * 1_000 for number in range(1_000)}))
        assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


def test_too_large_a_request_is_refused_unread(plain: Snapshotter) -> None:
    """
    The size that a message announces is enough to refuse it; the connection goes on.
    """
    with wired(plain) as wire:
        number = wire.begin("Stat")
        wire.body(number, b"\0" + (rpc.MAX_REQUEST_SIZE + 1).to_bytes(4, "big"), end=False)
        reply = wire.end(number)
        assert reply.status == Status.RESOURCE_EXHAUSTED.value
        for _ in range(2 * rpc.RECEIVE_WINDOW // rpc.MAX_REQUEST_SIZE):
            number = wire.begin("Stat")
            wire.body(number, b"\0" + b"\xff" * 4 + bytes(rpc.MAX_REQUEST_SIZE), end=False)
            assert wire.end(number).status == Status.RESOURCE_EXHAUSTED.value
        largest = pb.StatSnapshotRequest(key="x" * (rpc.MAX_REQUEST_SIZE - 5))
        assert len(largest.SerializeToString()) == rpc.MAX_REQUEST_SIZE
        for _ in range(2 * rpc.RECEIVE_WINDOW // rpc.MAX_REQUEST_SIZE):
            assert wire.call("Stat", largest).status == Status.NOT_FOUND.value


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", Status.INTERNAL),
        (b"\0\0\0\0", Status.INTERNAL),
        (b"\0\0\0\0\5abc", Status.INTERNAL),
        (framed(b"") + framed(b""), Status.INTERNAL),
        (b"\1\0\0\0\0", Status.UNIMPLEMENTED),
        (framed(b"\xff"), Status.INVALID_ARGUMENT),
        (framed(b"\x12\2\xff\xff"), Status.INVALID_ARGUMENT),  # a key that is not UTF-8
    ],
)
def test_broken_requests(plain: Snapshotter, body: bytes, status: Status) -> None:
    """
    What is no single whole message is refused, and the next call answered.
    """
    with wired(plain) as wire:
        number = wire.begin("Stat")
        wire.body(number, body)
        assert wire.end(number).status == status.value
        assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


def test_headers_are_not_needed(plain: Snapshotter) -> None:
    """
    containerd's collection sends no namespace, everybody else one and more; all are answered alike.
    """
    with wired(plain) as wire:
        for headers in ({}, {"containerd-namespace": "k8s.io", "traceparent": "00-1-2-01", "grpc-timeout": "60S"}):
            for name in ("List", "Remove", "Cleanup"):
                number = wire.begin(name, headers)
                wire.body(number, framed(METHODS[name](snapshotter="c")))
                assert wire.end(number).status == (Status.NOT_FOUND.value if name == "Remove" else Status.OK.value)


def test_what_is_not_ours(plain: Snapshotter) -> None:
    """
    An unknown method is unimplemented, and what is not gRPC gets HTTP's answer.
    """
    with wired(plain) as wire:
        assert wire.call("Fork", b"").status == Status.UNIMPLEMENTED.value
        assert wire.call("/other.Service/Stat", b"").status == Status.UNIMPLEMENTED.value
        number = wire.begin("Stat", {"content-type": "text/plain"})
        assert wire.end(number).headers == {":status": "415"}
        number = wire.begin("Stat", {"grpc-timeout": "soon"})
        assert wire.end(number).status == Status.INTERNAL.value
        assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


def test_given_up_at_once(plain: Snapshotter) -> None:
    """
    A client that gives up in the same breath as it asks gets no answer, and its other calls theirs.
    """
    with wired(plain) as wire:
        for name in ("Stat", "Prepare", "List"):
            number = wire.h2.get_next_available_stream_id()
            wire.send, send = lambda: None, wire.send  # type: ignore[method-assign]
            wire.begin(name)
            wire.body(number, framed(b""))
            wire.h2.reset_stream(number)
            wire.send = send  # type: ignore[method-assign]
            wire.send()
            assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


def test_what_is_not_http(plain: Snapshotter) -> None:
    """
    A client that breaks HTTP/2 loses its connection, and nobody else theirs.
    """
    with serving(plain) as server, Wire(server.address) as wire, Wire(server.address) as broken:
        broken._socket.sendall(bytes(9))  # a frame of data of no stream
        with pytest.raises(ConnectionError):
            while True:
                broken.receive()
        assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


TEXT = st.text(max_size=20)
LABELS = st.dictionaries(TEXT, TEXT, max_size=3)
INFO = st.builds(
    pb.Info,
    name=TEXT,
    parent=TEXT,
    kind=st.integers(-5, 99),
    labels=LABELS,
    created_at=st.builds(dict, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)),
)
REQUESTS = {
    "Prepare": st.builds(pb.PrepareSnapshotRequest, snapshotter=TEXT, key=TEXT, parent=TEXT, labels=LABELS),
    "View": st.builds(pb.ViewSnapshotRequest, snapshotter=TEXT, key=TEXT, parent=TEXT, labels=LABELS),
    "Mounts": st.builds(pb.MountsRequest, key=TEXT),
    "Commit": st.builds(pb.CommitSnapshotRequest, snapshotter=TEXT, name=TEXT, key=TEXT, labels=LABELS, parent=TEXT),
    "Remove": st.builds(pb.RemoveSnapshotRequest, snapshotter=TEXT, key=TEXT),
    "Stat": st.builds(pb.StatSnapshotRequest, key=TEXT),
    "Update": st.builds(
        pb.UpdateSnapshotRequest,
        snapshotter=TEXT,
        info=INFO,
        update_mask=st.builds(dict, paths=st.lists(TEXT, max_size=3)),
    ),
    "List": st.builds(pb.ListSnapshotsRequest, filters=st.lists(TEXT, max_size=3)),
    "Usage": st.builds(pb.UsageRequest, key=TEXT),
    "Cleanup": st.builds(pb.CleanupRequest, snapshotter=TEXT),
}
DATA = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(sorted(REQUESTS)).flatmap(lambda name: REQUESTS[name]).map(lambda m: m.SerializeToString()),
)
DOCUMENTED = {0, *(status.value for status in KINDS.values())} - {Status.UNKNOWN.value}


@pytest.fixture
def garbage(plain: Snapshotter) -> Iterator[Wire]:
    """
    A connection to a service with a store, for all examples.
    """
    plain.prepare("k")
    plain.commit("base", "k")
    with wired(plain) as wire:
        yield wire


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(METHODS)), parts=st.lists(DATA, min_size=1, max_size=3))
def test_garbage(garbage: Wire, name: str, parts: list[bytes]) -> None:
    """
    Missing, repeated, foreign and meaningless fields give documented answers, and the service is there afterwards.
    """
    reply = garbage.call(name, b"".join(parts))
    assert reply.status in DOCUMENTED, reply
    if name == "Remove":
        assert reply.status in (0, Status.NOT_FOUND.value, Status.FAILED_PRECONDITION.value)
    assert garbage.call("Stat", pb.StatSnapshotRequest(key="base")).status == 0


# Clients


def test_one_client(plain: Snapshotter) -> None:
    """
    Changes under no name, and under a second name while there are snapshots, are refused with the cure; what reads is
    not, and the snapshots stay. Once they are gone the second may begin.
    """
    with serving(plain) as server, Client(server.address, snapshotter="first") as first:
        first.prepare("k")
        first.commit("base", "k", {"a": "1"})
        first.prepare("active", "base")
        with Client(server.address, snapshotter="second") as second, Client(server.address, snapshotter="") as nobody:
            before = {info.name: info for info in second.walk()}
            for client, kind, text in (
                (second, FailedPreconditionError, "make a second store beside it"),
                (nobody, InvalidArgumentError, "client is empty"),
            ):
                changes: dict[str, Callable[[], Any]] = {
                    "prepare": lambda client=client: client.prepare("new", "base"),
                    "view": lambda client=client: client.view("new"),
                    "commit": lambda client=client: client.commit("new", "active"),
                    "update": lambda client=client: client.update(Info(Kind.COMMITTED, "base", labels={"a": "2"})),
                    "cleanup": client.cleanup,
                }
                for change in changes.values():
                    with pytest.raises(kind, match=text):
                        change()
                for info in client.walk():
                    with pytest.raises(FailedPreconditionError, match=text):
                        client.remove(info.name)
                assert client.mounts("active")
                assert client.usage("active")
            assert {info.name: info for info in first.walk()} == before
            for name in ("active", "base"):
                first.remove(name)
            second.prepare("k")
            with pytest.raises(FailedPreconditionError, match="client 'second'"):
                first.prepare("k2")


# Hanging, giving up, taking too long


def prepares(wire: Wire, count: int) -> list[int]:
    """
    Begin to prepare *count* snapshots on "base".
    """
    numbers = []
    for index in range(count):
        numbers.append(wire.begin("Prepare"))
        request = pb.PrepareSnapshotRequest(snapshotter="c", key=f"new {index}", parent="base")
        wire.body(numbers[-1], framed(request))
    return numbers


def test_changes_that_hang_leave_the_rest_alone(hanging: Snapshotter) -> None:
    """
    With hundreds of changes hanging in the kernel, on the same connection, reads, usage and health are answered, and
    removals and cleanups end in their time. Afterwards all is done.
    """
    with wired(hanging) as wire:
        numbers = prepares(wire, 300)
        for _ in range(service.CHANGING_THREADS):
            Hanging.hanging.acquire()
        for _ in range(20):
            for name in ("Stat", "Usage", "Mounts"):
                assert wire.call(name, METHODS[name](key="top")).status == 0
            assert wire.call("List", b"").status == 0
            assert wire.call(CHECK, b"").status == 0
        assert wire.call("Cleanup", pb.CleanupRequest(snapshotter="c")).status == 0
        assert not wire.ended.intersection(numbers)
        Hanging.go.set()
        assert {wire.end(number).status for number in numbers} == {0}


def test_late_changes(hanging: Snapshotter) -> None:
    """
    A change that does not end in its time is unavailable, and a removal, which waits for it, refused. What hung is
    done afterwards, and nothing is held.
    """
    with wired(hanging, limits=Limits(change=0, collection=0, stuck_collection=0)) as wire:
        request = pb.PrepareSnapshotRequest(snapshotter="c", key="new", parent="base")
        reply = wire.call("Prepare", request)
        assert (reply.status, reply.text) == (
            Status.UNAVAILABLE.value,
            "Prepare takes more than 0 s: is the disk hanging?",
        )
        Hanging.hanging.acquire()
        reply = wire.call("Remove", pb.RemoveSnapshotRequest(snapshotter="c", key="new"))
        assert reply.status == Status.FAILED_PRECONDITION.value
        Hanging.go.set()
        # Judged on what the late ones left, in whichever order they came.
        with contextlib.suppress(NotFoundError):
            hanging.remove("new")
        hanging.remove("base")
        assert [info.name for info in hanging.walk()] == ["top"]


def test_collections_are_short_while_something_is_late(hanging: Snapshotter) -> None:
    """
    While a change is late, each removal of a collection has one second, not ten: it makes many.
    """
    with wired(hanging, limits=Limits(change=0, stuck_collection=0)) as wire:
        (number,) = prepares(wire, 1)
        assert wire.end(number).status == Status.UNAVAILABLE.value
        Hanging.hanging.acquire()
        reply = wire.call("Remove", pb.RemoveSnapshotRequest(snapshotter="c", key="new 0"))
        assert (reply.status, reply.text) == (
            Status.FAILED_PRECONDITION.value,
            "Remove takes more than 0 s: is the disk hanging?",
        )


class Recorder:
    """
    Remembers what an observer is told.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.changed = threading.Condition()

    def started(self, method: str) -> None:
        self._add(method, "")

    def ended(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self._add(method, code)

    def _add(self, method: str, code: str) -> None:
        with self.changed:
            self.calls.append((method, code))
            self.changed.notify_all()

    def wait_for(self, *calls: tuple[str, str]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: set(calls) <= set(self.calls), 10)


@pytest.mark.parametrize("way", ["reset", "disconnect"])
def test_a_call_that_is_given_up(hanging: Snapshotter, way: str) -> None:
    """
    When the client gives up, or goes, what hangs in the kernel is done: at most that one snapshot is left, which the
    next collection removes; what was queued never happens; no key is held and no parent pinned.
    """
    recorder = Recorder()
    with serving(hanging, recorder) as server:
        with Wire(server.address) as wire:
            numbers = prepares(wire, service.CHANGING_THREADS + 10)
            for _ in range(service.CHANGING_THREADS):
                Hanging.hanging.acquire()
            if way == "reset":
                for number in numbers:
                    wire.h2.reset_stream(number)
                wire.send()
                assert wire.call(CHECK, b"").status == 0
        recorder.wait_for(("Prepare", "CANCELLED"))
        with recorder.changed:
            done = recorder.changed.wait_for(lambda: recorder.calls.count(("Prepare", "CANCELLED")) == len(numbers), 10)
        assert done
        for _ in range(5):
            server.on_loop(int)  # the loop goes round, and cancels what was queued
        Hanging.go.set()
        with Client(server.address, snapshotter="c") as client:
            kept = client.walk("kind==committed", "name==top")
            keep = {info.name for info in kept}
            # A change of each key waits for whoever holds it.
            for index in range(len(numbers)):
                with contextlib.suppress(NotFoundError):
                    client.remove(f"new {index}")
            assert {info.name for info in client.walk()} == keep
            client.remove("base")
        assert Hanging.hanging.acquire(blocking=False) is False


def test_a_client_s_deadline(hanging: Snapshotter) -> None:
    """
    A call ends when its client's time is over, with the kind for it.
    """
    with wired(hanging) as wire:
        number = wire.begin("Prepare", {"grpc-timeout": "1m"})
        wire.body(number, framed(pb.PrepareSnapshotRequest(snapshotter="c", key="new", parent="base")))
        assert wire.end(number).status == Status.DEADLINE_EXCEEDED.value


# Observing and stopping


def test_observer(plain: Snapshotter) -> None:
    """
    An observer is told of each call when it comes and when it ends, with its code.
    """
    recorder = Recorder()
    with wired(plain, recorder) as wire:
        wire.call("Stat", b"")
        wire.call("Prepare", pb.PrepareSnapshotRequest(snapshotter="c", key="k"))
        wire.call("List", b"")
        wire.call("Usage", b"\xff")
        wire.call("Unknown", b"")
    assert recorder.calls == [
        ("Stat", ""),
        ("Stat", "NOT_FOUND"),
        ("Prepare", ""),
        ("Prepare", "OK"),
        ("List", ""),
        ("List", "OK"),
        ("Usage", ""),
        ("Usage", "INVALID_ARGUMENT"),
    ]


def test_stop(hanging: Snapshotter) -> None:
    """
    Stopping refuses new calls and new connections, lets what is under way end, and then ends the connections.
    """
    with serving(hanging) as server, Wire(server.address) as wire:
        (number,) = prepares(wire, 1)
        Hanging.hanging.acquire()
        stopped = asyncio.run_coroutine_threadsafe(server.service.stop(60), server.loop)
        while (reply := wire.call(CHECK, b"")).status == 0:
            pass  # before the loop got to it
        assert (reply.status, reply.text) == (Status.UNAVAILABLE.value, "the snapshotter is stopping")
        with pytest.raises(OSError, match="refused"):
            Wire(server.address)
        assert not stopped.done()
        Hanging.go.set()
        with contextlib.suppress(ConnectionError):
            assert wire.end(number).status == 0
        stopped.result(10)
        with pytest.raises(ConnectionError):
            while True:
                wire.receive()
        assert hanging.stat("new 0")


def test_stop_waits_no_longer_than_it_is_told(hanging: Snapshotter) -> None:
    """
    What hangs is told that it stops.
    """
    with serving(hanging) as server, Wire(server.address) as wire:
        (number,) = prepares(wire, 1)
        Hanging.hanging.acquire()
        server.run(server.service.stop(0))
        with contextlib.suppress(ConnectionError):
            assert wire.end(number).status == Status.UNAVAILABLE.value
        with pytest.raises(ConnectionError):
            while True:
                wire.receive()


def test_many_clients(plain: Snapshotter) -> None:
    """
    Threads and connections by the dozen make, read and remove at once, and each gets its own answers.
    """

    def work(number: int) -> None:
        with Client(server.address, snapshotter="c") as client:
            for turn in range(5):
                key = f"{number} {turn}"
                client.prepare(key, "base", {"n": key})
                assert client.stat(key).labels == {"n": key}
                assert client.usage(key) == Usage(0, 0) or client.usage(key).inodes >= 0
                client.remove(key)

    plain.prepare("k")
    plain.commit("base", "k")
    with serving(plain) as server, ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
        assert [info.name for info in plain.walk()] == ["base"]
