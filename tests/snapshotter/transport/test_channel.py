"""
The client of a gRPC service, with services that break the protocol.
"""

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hpack import Encoder

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.transport.channel import CallError, Channel
from snapshotter.transport.status import Status
from tests.snapshotter.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    frame,
    number,
)
from tests.snapshotter.transport.sessions import ENDED, Session


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket, Session], object], connections: int = 1) -> Iterator[str]:
    """
    Accept *connections* one after the other, and call *answer* with each.
    """

    def run() -> None:
        with contextlib.suppress(OSError):
            for _ in range(connections):
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    answer(sock, Session())

    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        address = os.path.join(directory, "socket")
        listener.bind(address)
        listener.listen()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield address
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer_calls(sock: socket.socket, session: Session, count: int = 1 << 30, message: bytes = b"") -> None:
    """
    Answer *count* calls, or all until the client goes.
    """
    sock.sendall(session.take())
    while count and (data := sock.recv(1 << 20)):
        for event in session.receive(data):
            if event.kind & ENDED:
                session.reply(event.stream, message)
                count -= 1
        sock.sendall(session.take())


def stat(channel: Channel, **options: float) -> list[pb.StatSnapshotResponse]:
    return channel.call("/s/Stat", pb.StatSnapshotRequest(key="k"), pb.StatSnapshotResponse, **options)


def test_a_connection_is_kept() -> None:
    """
    Calls after one another use one connection, and a closed channel closes it.
    """
    with answering(answer_calls) as address, Channel(address) as channel:
        for _ in range(5):
            assert stat(channel) == [pb.StatSnapshotResponse()]


def test_a_connection_that_the_service_ended() -> None:
    """
    A kept connection that the service has closed is replaced before the next call.
    """

    def one(sock: socket.socket, session: Session) -> None:
        answer_calls(sock, session, 1)

    with answering(one, connections=3) as address, Channel(address) as channel:
        for _ in range(3):
            assert stat(channel) == [pb.StatSnapshotResponse()]
            with contextlib.suppress(IndexError):
                while channel._idle[0].works():
                    time.sleep(0.01)


def test_threads() -> None:
    """
    Calls at the same time have connections of their own.
    """
    barrier = threading.Barrier(4)

    def slow(sock: socket.socket, session: Session) -> None:
        answer_calls(sock, session, 1)

    with answering(slow, connections=4) as address, Channel(address) as channel:

        def call() -> None:
            barrier.wait()
            assert stat(channel)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        channel.close()


BLOCKS = {
    "http": Encoder().encode([(":status", "503")]),
    "grpc": Encoder().encode([(":status", "200"), ("content-type", "application/grpc")]),
    "status": Encoder().encode([(":status", "200"), ("grpc-status", "9"), ("grpc-message", "why%20%C3%A9")]),
    "odd": Encoder().encode([(":status", "200"), ("grpc-status", "99x")]),
    "end": Encoder().encode([("grpc-status", "0")]),
}
END = END_HEADERS | END_STREAM


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (frame(HEADERS, END, 1, BLOCKS["http"]), ConnectionError, "does not speak gRPC"),
        (frame(HEADERS, END, 1, BLOCKS["status"]), CallError, "^why é$"),
        (frame(HEADERS, END, 1, BLOCKS["odd"]), CallError, "^UNKNOWN$"),
        (frame(RST_STREAM, 0, 1, number(7)), ConnectionError, "closed|reset"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(20), ConnectionError, "the peer broke HTTP"),
        (b"", ConnectionError, "closed the connection"),
        *(
            (
                frame(HEADERS, END_HEADERS, 1, BLOCKS["grpc"]) + frame(DATA, 0, 1, data)
                + frame(HEADERS, END, 1, BLOCKS["end"]),
                ConnectionError,
                "compressed or cut short",
            )
            for data in (b"\0\0\0\0\5abc", b"\1\0\0\0\0", b"\0\0\0")
        ),
    ],
)  # fmt: skip
def test_broken_services(answer: bytes, error: type[Exception], text: str) -> None:
    """
    An answer that is not gRPC's is a ConnectionError, and an error of the call has its status and text.
    """

    def broken(sock: socket.socket, session: Session) -> None:
        sock.recv(1 << 20)
        sock.sendall((frame(SETTINGS, 0, 0) if answer[:4] != b"HTTP" else b"") + answer)
        if answer[3:4] != bytes((RST_STREAM,)):
            sock.shutdown(socket.SHUT_WR)
        sock.recv(1 << 20)

    with answering(broken) as address, Channel(address) as channel:
        with pytest.raises(error, match=text) as raised:
            stat(channel, deadline=time.monotonic() + 20)
        channel.close()
    if isinstance(raised.value, CallError):
        assert raised.value.status in (Status.FAILED_PRECONDITION, Status.UNKNOWN)


def test_deadlines() -> None:
    """
    A call ends at its deadline, whether the service accepts, reads or answers nothing.
    """
    go = threading.Event()

    def silent(sock: socket.socket, session: Session) -> None:
        go.wait()

    with answering(silent) as address, Channel(address) as channel:
        for seconds in (-1, 0.05):
            with pytest.raises(TimeoutError):
                stat(channel, deadline=time.monotonic() + seconds)
        go.set()


def test_no_service() -> None:
    """
    Without a socket the error says so.
    """
    with Channel("/nonexistent/socket") as channel, pytest.raises(FileNotFoundError):
        stat(channel)
