"""
A gRPC client for the service at a unix socket, without threads of its own.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar, overload
from urllib.parse import unquote

from google.protobuf.message import Message

from snapshotter.transport.library import ffi, lib, load
from snapshotter.transport.status import Status

if TYPE_CHECKING:
    from snapshotter.transport.library import CData

__all__ = ["CallError", "Channel"]

WINDOW = 16 << 20  # bytes that the service may send before they are read
RECEIVE_SIZE = 65_536
_PREFIX_SIZE = 5  # bytes before a message: a flag for compression, and the size

Reply = TypeVar("Reply", bound=Message)


class CallError(Exception):
    """
    A call was answered with a status other than OK.
    """

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text or status.name)
        self.status = status


class Channel:
    """
    Calls to the service at *address*, from any thread.

    Calls at the same time have a connection each. A connection is kept for later calls.

    Raises:
        UnavailableError: libnghttp2 is missing.
    """

    def __init__(self, address: str) -> None:
        load()
        self.address = address
        self.closed = False
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """
        Close the idle connections; a call in progress closes its own at its end.
        """
        with self._lock:
            self.closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def call(
        self,
        path: str,
        request: Message,
        reply: type[Reply],
        *,
        deadline: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> list[Reply]:
        """
        Call the method at *path*, and return all its replies.

        Args:
            deadline: The time at which the call ends, on the clock of `time.monotonic`.
            metadata: Further headers, at most nine.

        Raises:
            CallError: The service answered with an error.
            TimeoutError: The service did not answer until the deadline.
            OSError: The service cannot be reached, or the connection broke.
        """
        headers = dict(metadata or {})
        if deadline is not None:
            headers["grpc-timeout"] = f"{min(round(_left(deadline) * 1e3), 99_999_999)}m"
        connection = self._take() or _Connection(self.address, deadline)
        try:
            answer = connection.call(path, headers, request.SerializeToString(), deadline)
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        if answer.status:
            raise CallError(Status(answer.status), answer.text)
        return [reply.FromString(message) for message in answer.messages()]

    def _take(self) -> "_Connection | None":
        """
        Return an idle connection, or None if there is none that the service has not ended.
        """
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.works():
                return connection
            connection.close()

    def _keep(self, connection: "_Connection") -> None:
        with self._lock:
            if self.closed:
                connection.close()
            else:
                self._idle.append(connection)


class _Answer(NamedTuple):
    """
    Args:
        body: The messages with their prefixes.
    """

    status: int
    text: str
    body: bytes

    def messages(self) -> Iterator[bytes]:
        rest = memoryview(self.body)
        while rest:
            size = int.from_bytes(rest[1:_PREFIX_SIZE])
            if rest[0] or len(rest) < _PREFIX_SIZE + size:
                raise ConnectionError("the service sent a message that is compressed or cut short")
            yield bytes(rest[_PREFIX_SIZE : _PREFIX_SIZE + size])
            rest = rest[_PREFIX_SIZE + size :]


class _Connection:
    def __init__(self, address: str, deadline: float | None) -> None:
        session = lib.http2_client(WINDOW)
        if not session:
            raise MemoryError
        self._session = ffi.gc(session, lib.http2_free)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def works(self) -> bool:
        """
        Return whether the service has not ended the idle connection.
        """
        self._socket.settimeout(0)
        try:
            while data := self._socket.recv(RECEIVE_SIZE):
                lib.http2_receive(self._session, data, len(data))
        except BlockingIOError:
            return not self._session.over
        except OSError:
            pass
        return False

    def call(self, path: str, headers: Mapping[str, str], message: bytes, deadline: float | None) -> _Answer:
        session = self._session
        encoded = "".join(f"{name}\0{value}\0" for name, value in headers.items()).encode()
        stream = lib.http2_request(session, path.encode(), encoded, len(headers), message, len(message))
        if stream < 0:
            raise ConnectionError("the connection takes no further call")
        while True:
            while size := lib.http2_take(session):
                self._socket.settimeout(_left(deadline))
                with contextlib.suppress(BrokenPipeError):  # the answer may have come before the end
                    self._socket.sendall(ffi.buffer(session.output, size))
            self._socket.settimeout(_left(deadline))
            data = self._socket.recv(RECEIVE_SIZE)
            for index in range(lib.http2_receive(session, data, len(data)) if data else 0):
                event = session.events[index]
                if event.stream == stream and event.kind & lib.HTTP2_ENDED:
                    return _answer(event)
            if session.over or not data:
                raise ConnectionError(ffi.string(session.error).decode() or "the service closed the connection")


def _answer(event: "CData") -> _Answer:
    if event.status < 0:
        raise ConnectionError("the service does not speak gRPC")
    body = ffi.buffer(event.body, event.size)[:] if event.size else b""
    return _Answer(event.status, unquote(ffi.string(event.text).decode()), body)


@overload
def _left(deadline: float) -> float: ...
@overload
def _left(deadline: float | None) -> float | None: ...
def _left(deadline: float | None) -> float | None:
    """
    Return the seconds until *deadline*, for `socket.settimeout`.
    """
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
