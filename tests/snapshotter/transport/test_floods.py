"""
Clients that flood the daemon, or take nothing that it sends: a second client is answered throughout, memory is bounded,
and each such connection is at most one line in the log.
"""

import contextlib
import itertools
import resource
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hpack import Encoder

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.client import Client
from snapshotter.errors import NotFoundError, UnavailableError
from tests.snapshotter.daemon.wire import SNAPSHOTS
from tests.snapshotter.transport.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    HELLO,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    number,
)
from tests.snapshotter.transport.served import Served, served

CALLS = 30  # of the second client, during a flood
FLOOD = 30_000_000  # bytes that a flood sends at most
MEMORY = 200 << 20  # bytes that the daemon may take more during a flood; without limits it takes gigabytes

HEADERS_OF = {
    name: [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", SNAPSHOTS + name),
        (":authority", "x"),
        ("content-type", "application/grpc"),
    ]
    for name in ("Stat", "List", "Prepare")
}
CLOSED_WINDOW = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))


def blocks(name: str) -> Iterator[bytes]:
    """
    Yield the header blocks of calls.
    """
    encoder = Encoder()
    while True:
        yield encoder.encode(HEADERS_OF[name])


def opened(name: str = "Stat", count: int = 1 << 29) -> Iterator[bytes]:
    """
    Yield calls without their requests.
    """
    for stream, block in zip(range(1, 2 * count, 2), blocks(name), strict=False):
        yield frame(HEADERS, END_HEADERS, stream, block)


def called(name: str, message: bytes = b"") -> Iterator[bytes]:
    """
    Yield calls.
    """
    body = b"\0" + number(len(message)) + message
    for stream, block in zip(range(1, 1 << 30, 2), blocks(name), strict=False):
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def endless(data: bytes) -> Iterator[bytes]:
    while True:
        yield data


def pings() -> Iterator[bytes]:
    return endless(frame(PING, 0, 0, bytes(8)))


def settings() -> Iterator[bytes]:
    return endless(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 70_000)))


def settings_beside_streams() -> Iterator[bytes]:
    """
    Yield SETTINGS that each visit 9,000 streams.
    """
    yield from opened(count=9_000)
    yield from settings()


def updates_beside_streams() -> Iterator[bytes]:
    yield from opened(count=9_000)
    yield from endless(frame(WINDOW_UPDATE, 0, 0, number(1)))


def resets() -> Iterator[bytes]:
    for stream, block in zip(range(1, 1 << 30, 2), blocks("Prepare"), strict=False):
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, number(8))


def resets_of_requests() -> Iterator[bytes]:
    """
    Yield calls that are cancelled in the next write.
    """
    for stream, call in zip(range(1, 1 << 30, 2), called("Stat", b"\x12\1k"), strict=False):
        yield call
        yield frame(RST_STREAM, 0, stream, number(8))


def continuations() -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, next(blocks("Stat")))
    yield from endless(frame(CONTINUATION, 0, 1))


def large_continuations() -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, next(blocks("Stat")))
    yield from endless(frame(CONTINUATION, 0, 1, Encoder().encode([("x", "y" * 10_000)])))


def header_bombs() -> Iterator[bytes]:
    """
    Yield calls of which each has 16,000 headers of 3,000 bytes, in a byte each.
    """
    encoder = Encoder()
    large = [("x", "y" * 3_000)]
    yield frame(HEADERS, END_HEADERS, 1, encoder.encode([*HEADERS_OF["Stat"], *large]))
    indexed = encoder.encode(large)
    for stream in range(3, 1 << 30, 2):
        block = encoder.encode(HEADERS_OF["Stat"]) + indexed * (15_000 // len(indexed))
        yield frame(HEADERS, END_HEADERS, stream, block)


def empty_data() -> Iterator[bytes]:
    yield from opened(count=1)
    yield from endless(frame(DATA, 0, 1))


def priorities() -> Iterator[bytes]:
    for stream in range(1, 1 << 30, 2):
        yield frame(PRIORITY, 0, stream, number(0) + b"\1")


def large_requests() -> Iterator[bytes]:
    """
    Yield requests of 4 MiB that never end.
    """
    for stream, block in zip(range(1, 1 << 30, 2), blocks("Prepare"), strict=False):
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, 0, stream, b"\0" + number(4 << 20))
        for _ in range(200):
            yield frame(DATA, 0, stream, bytes(16_000))


def lists_without_window() -> Iterator[bytes]:
    yield CLOSED_WINDOW
    yield from called("List")


def calls_without_window() -> Iterator[bytes]:
    yield CLOSED_WINDOW
    yield from called("Stat", b"\x12\2k1")


def unknown_frames() -> Iterator[bytes]:
    return endless(frame(99, 0, 0, bytes(1_000)))


FLOODS: list[Callable[[], Iterator[bytes]]] = [
    pings,
    settings,
    settings_beside_streams,
    updates_beside_streams,
    opened,
    resets,
    resets_of_requests,
    continuations,
    large_continuations,
    header_bombs,
    empty_data,
    priorities,
    large_requests,
    lists_without_window,
    calls_without_window,
    lambda: called("List"),
    lambda: called("Stat", b"\x12\2k1"),
    lambda: called("Prepare", b"\x12" + b"\xff" * 200),
    unknown_frames,
    lambda: endless(b"GET / HTTP/1.1\r\n\r\n"),
]
NAMES = [flood.__name__ for flood in FLOODS]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(snapshots=1_000) as server:
        yield server


class Flood:
    """
    A client that sends a flood from a thread, and reads the answers or not.
    """

    def __init__(self, address: str, frames: Iterator[bytes], *, reads: bool) -> None:
        self._frames = frames
        self._reads = reads
        self._stopped = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self.sent = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._socket.settimeout(0)
        pending = HELLO
        with contextlib.suppress(OSError):
            while not self._stopped.is_set() and self.sent < FLOOD:
                while len(pending) < 65_536 and (more := next(self._frames, b"")):
                    pending += more
                if not pending:
                    self._stopped.wait()
                    return
                readable, writable, _ = select.select([self._socket] if self._reads else [], [self._socket], [], 0.05)
                if readable and not self._socket.recv(1 << 20):
                    return
                if writable:
                    sent = self._socket.send(pending)
                    self.sent += sent
                    pending = pending[sent:]

    def stop(self) -> None:
        """
        Return when the server has handled all that was sent, and closed the connection.
        """
        self._stopped.set()
        self._thread.join()
        self._socket.settimeout(20)
        with self._socket, contextlib.suppress(ConnectionError):
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(1 << 20):
                pass


@pytest.mark.parametrize("reads", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("flood", FLOODS, ids=NAMES)
def test_floods(server: Served, flood: Callable[[], Iterator[bytes]], reads: bool) -> None:
    """
    During the flood a second client is answered, and afterwards nothing of it is left.
    """
    memory, lines = server.memory(reset=True), len(server.lines())
    flooding = Flood(server.address, flood(), reads=reads)
    try:
        with Client(server.address, snapshotter="c", timeout=20) as client:
            for _ in range(CALLS):
                assert client.stat("k1").name == "k1"
                with pytest.raises(NotFoundError):
                    client.mounts("none")
    finally:
        flooding.stop()
    assert flooding.sent
    with Client(server.address, snapshotter="c", timeout=20) as client:
        assert client.serving()
    found = server.lines()[lines:]
    assert len(found) <= 1, found[:5]
    assert all(len(line) < 300 for line in found)
    assert server.memory() - memory < MEMORY


def test_slow_readers(server: Served) -> None:
    """
    Fifty clients that read none of their lists delay no other client.
    """
    memory = server.memory(reset=True)
    floods = [Flood(server.address, itertools.islice(called("List"), 5), reads=False) for _ in range(50)]
    try:
        with Client(server.address, timeout=20) as client:
            for _ in range(3):
                assert len(list(client.walk())) == 1_000
    finally:
        for flood in floods:
            flood.stop()
    assert server.memory() - memory < MEMORY


def connect(address: str) -> socket.socket:
    """
    Return a connection, made at once or not at all.
    """
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(0)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """
    Allow *count* descriptors to this process, if it may have as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"the hard limit of descriptors is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_connections_at_once(server: Served) -> None:
    """
    None of 1,500 connections at once is refused.
    """
    with descriptors(2_000), contextlib.ExitStack() as stack:
        for _ in range(1_500):
            stack.enter_context(connect(server.address))
        with Client(server.address, timeout=20) as client:
            assert client.serving()


def test_without_descriptors() -> None:
    """
    Without descriptors for more connections, those that are open are served, one line is logged, and later connections
    are served once there are descriptors.
    """
    with served() as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (60, 60))
        with Client(server.address, timeout=20) as first, contextlib.ExitStack() as stack:
            assert first.serving()
            for _ in range(200):
                stack.enter_context(connect(server.address))
            for _ in range(3):
                with Client(server.address, timeout=1.5) as client, pytest.raises(UnavailableError):
                    client.serving()  # in the backlog, for longer than a pause
                assert first.serving()
            lines = [line for line in server.lines() if " crowded " in line]
            assert len(lines) == 1
            assert "Too many open files" in lines[0]
        with Client(server.address, timeout=20) as client:
            assert client.serving()
        assert not [line for line in server.lines() if " error " in line or "Traceback" in line]


def test_requests_of_the_wrong_size() -> None:
    """
    A call's key may be as large as a request, and the call after it is answered.
    """
    with served() as server, Client(server.address, timeout=20) as client:
        with pytest.raises(NotFoundError):
            client.stat("x" * (3 << 20))
        assert pb.StatSnapshotRequest(key="x").ByteSize()
        assert client.serving()
