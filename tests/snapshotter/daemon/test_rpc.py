"""
The gRPC server, with clients that break the protocol.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter import Snapshotter
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.daemon import rpc
from snapshotter.transport.status import Status
from tests.snapshotter.daemon.stores import STATUSES
from tests.snapshotter.daemon.wire import METHODS, Wire, framed, wired
from tests.snapshotter.serving import serving


def test_too_many_headers(plain: Snapshotter) -> None:
    """
    A client that sends excessive headers loses its connection; other clients keep theirs.
    """
    with serving(plain) as server, Wire(server.address) as wire, Wire(server.address) as greedy:
        with pytest.raises(ConnectionError):
            greedy.end(greedy.begin("Stat", {f"header-{number}": "x" * 1_000 for number in range(1_000)}))
        assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


def test_too_large_a_request_is_refused_unread(plain: Snapshotter) -> None:
    """
    A request is refused by the size that it announces; the connection stays open.
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
    A request that is not exactly one complete message is refused, and the next call answered.
    """
    with wired(plain) as wire:
        number = wire.begin("Stat")
        wire.body(number, body)
        assert wire.end(number).status == status.value
        assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


def test_headers_are_not_needed(plain: Snapshotter) -> None:
    """
    containerd's collection sends no namespace, other clients send one and more headers; the answers are equal.
    """
    with wired(plain) as wire:
        for headers in ({}, {"containerd-namespace": "k8s.io", "traceparent": "00-1-2-01", "grpc-timeout": "60S"}):
            for name in ("List", "Remove", "Cleanup"):
                number = wire.begin(name, headers)
                wire.body(number, framed(METHODS[name](snapshotter="c")))
                assert wire.end(number).status == (Status.NOT_FOUND.value if name == "Remove" else Status.OK.value)


def test_what_is_not_ours(plain: Snapshotter) -> None:
    """
    An unknown method is Unimplemented, and a request that is not gRPC gets an HTTP error.
    """
    with wired(plain) as wire:
        assert wire.call("Fork", b"").status == Status.UNIMPLEMENTED.value
        assert wire.call("/other.Service/Stat", b"").status == Status.UNIMPLEMENTED.value
        number = wire.begin("Stat", {"content-type": "text/plain"})
        wire.body(number, b"text")
        assert wire.end(number).headers == {":status": "415"}
        number = wire.begin("Stat", {"grpc-timeout": "soon"})
        assert wire.end(number).status == Status.INTERNAL.value
        assert wire.call("Stat", b"").status == Status.NOT_FOUND.value


def test_given_up_at_once(plain: Snapshotter) -> None:
    """
    A client that cancels a call in the same write gets no answer to it, and answers to its other calls.
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
    A client that breaks HTTP/2 loses its connection; other clients keep theirs.
    """
    with serving(plain) as server, Wire(server.address) as wire, Wire(server.address) as broken:
        broken._socket.sendall(bytes(9))  # a DATA frame without a stream
        with pytest.raises(ConnectionError):
            broken.until_closed()
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


DOCUMENTED = {0, *(status.value for status in STATUSES.values())} - {Status.UNKNOWN.value}


@pytest.fixture
def garbage(plain: Snapshotter) -> Iterator[Wire]:
    """
    Return a connection to a service with a store, shared by all examples.
    """
    plain.prepare("k")
    plain.commit("base", "k")
    with wired(plain) as wire:
        yield wire


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(METHODS)), parts=st.lists(DATA, min_size=1, max_size=3))
def test_garbage(garbage: Wire, name: str, parts: list[bytes]) -> None:
    """
    Missing, repeated, foreign and meaningless fields get documented answers, and the service keeps serving.
    """
    reply = garbage.call(name, b"".join(parts))
    assert reply.status in DOCUMENTED, reply
    if name == "Remove":
        assert reply.status in (0, Status.NOT_FOUND.value, Status.FAILED_PRECONDITION.value)
    assert garbage.call("Stat", pb.StatSnapshotRequest(key="base")).status == 0


def test_done_at_once(plain: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An answer that is there before anybody waits for it disturbs no other call in the same bytes.
    """

    def submit(_: ThreadPoolExecutor, function: Callable[..., None], *arguments: Any) -> None:
        function(*arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    keys = [f"key {number}" for number in range(20)]
    with wired(plain) as wire:
        for key in keys:
            assert wire.call("Prepare", pb.PrepareSnapshotRequest(key=key, snapshotter="c")).status == 0
        wire.send, send = lambda: None, wire.send  # type: ignore[method-assign]
        calls = {}
        for key in keys:
            calls[key] = wire.begin("Mounts")
            wire.body(calls[key], framed(pb.MountsRequest(key=key, snapshotter="c")))
        wire.send = send  # type: ignore[method-assign]
        wire.send()
        replies = {key: wire.end(number) for key, number in calls.items()}
    sources = {key: pb.MountsResponse.FromString(reply.messages[0]).mounts[0].source for key, reply in replies.items()}
    assert sources == {key: plain.subvolume(key) for key in keys}
