"""
A gRPC server on asyncio.

grpclib's server spends a task and a dozen awaits on every call, and limits neither the size of messages nor the number
of streams. This server answers a call as soon as its last byte has arrived, if the answer is known at once.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message
from grpclib.const import Status
from grpclib.metadata import decode_timeout, encode_grpc_message

from snapshotter.daemon.http2 import (
    Connection,
    DataReceived,
    ProtocolError,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
    encode_headers,
)
from snapshotter.events import Event

__all__ = ["MAX_REQUEST_SIZE", "Method", "Observer", "RefusedError", "Server"]

MAX_REQUEST_SIZE = 4 << 20  # bytes: gRPC's own default, and more than any valid request needs
RECEIVE_WINDOW = 4 * MAX_REQUEST_SIZE  # bytes of incomplete requests, of one connection
MAX_CALLS = 10_000  # of one connection; so many that hanging calls do not block others
MAX_TEXT_SIZE = 4_096  # characters of an error, because clients limit the size of headers

_PREFIX_SIZE = 5  # bytes before a message: a flag for compression, and the size

Answer = Message | asyncio.Future[Message] | Callable[[], Awaitable[Message]] | AsyncGenerator[Message, None]

_HEADERS = encode_headers(((":status", "200"), ("content-type", "application/grpc")))
_NOT_GRPC = encode_headers(((":status", "415"),))
_OK = encode_headers((("grpc-status", "0"),))


class Method(NamedTuple):
    """
    A method of a service.

    Args:
        name: The name for the observer.
        answer: Returns the reply, its future, a function for a task that awaits it, or the generator of a stream.
    """

    name: str
    request: type[Message]
    answer: Callable[[Any], Answer]


class RefusedError(Exception):
    """
    A call ends with the given status.
    """

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


_UNKNOWN_METHOD = RefusedError(Status.UNIMPLEMENTED, "unknown method")
_STOPPING = RefusedError(Status.UNAVAILABLE, "the snapshotter is stopping")
_LATE = RefusedError(Status.DEADLINE_EXCEEDED, "the client's deadline is over")


class Observer(Protocol):
    """
    Observes all calls, on the event loop.
    """

    def started(self, method: str) -> None: ...

    def ended(self, method: str, code: str, seconds: float) -> None:
        """
        Args:
            code: The name of the status, such as ``"NOT_FOUND"``; ``"CANCELLED"`` if the client cancelled the call.
            seconds: The time from the first header to the answer.
        """


class _Unobserved:
    def started(self, method: str) -> None:
        pass

    def ended(self, method: str, code: str, seconds: float) -> None:
        pass


class Server:
    """
    Serves methods on listening sockets.

    Args:
        methods: The methods, by path.
        refusal: Returns the status for an error of a method, by name: an exception that it raised, or a RefusedError of
            the server.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        refusal: Callable[[str, Exception], RefusedError],
        observer: Observer | None,
    ) -> None:
        self.methods = {path.encode(): method for path, method in methods.items()}
        self.refusal = refusal
        self.observer = observer or _Unobserved()
        self.stopping = False
        self.connections: set[_Connection] = set()
        self._servers: list[asyncio.Server] = []

    async def start(self, sock: socket.socket) -> None:
        """
        Serve on *sock*, a bound unix socket.
        """
        loop = asyncio.get_running_loop()
        # create_unix_server() removes the socket at the end since Python 3.13, but the socket may be systemd's.
        self._servers.append(await loop.create_server(lambda: _Connection(self), sock=sock))

    async def stop(self, seconds: float) -> None:
        """
        Refuse new calls, wait up to *seconds* for the calls in flight, then end them and all connections.
        """
        self.stopping = True
        for server in self._servers:
            server.close()
        tasks = [call.task for connection in self.connections for call in connection.calls.values() if call.task]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for connection in list(self.connections):
            connection.end()
        while self.connections:
            await asyncio.sleep(0)


class _Call:
    """
    A call, with the received part of its request and the unsent part of its replies.
    """

    __slots__ = (
        "answered",
        "begun",
        "body",
        "deadline",
        "ended",
        "method",
        "pending",
        "room",
        "stream_id",
        "task",
        "trailers",
    )

    def __init__(self, stream_id: int, method: Method) -> None:
        self.stream_id = stream_id
        self.method = method
        self.begun = time.monotonic()
        self.deadline: float | None = None
        self.body = bytearray()
        self.task: asyncio.Future[Any] | None = None
        self.answered = False
        self.pending = bytearray()
        self.room: asyncio.Future[None] | None = None
        self.trailers = b""
        self.ended = False


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self.calls: dict[int, _Call] = {}
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._writable = asyncio.Event()
        self._writable.set()
        self._http2 = Connection(MAX_CALLS, MAX_REQUEST_SIZE + _PREFIX_SIZE, RECEIVE_WINDOW)
        self._handlers: dict[type, Callable[[Any], None]] = {
            RequestReceived: self._on_request,
            DataReceived: self._on_data,
            StreamEnded: self._on_end,
            StreamReset: self._on_reset,
            WindowUpdated: self._on_window,
        }

    # -- callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._http2.receive(data):
                self._handlers[type(event)](event)
            self._flush()
        except ProtocolError as error:
            Event.HUNG_UP.emit(error=str(error))
            self._close()

    def end(self) -> None:
        """
        End all calls and the connection.
        """
        for call in list(self.calls.values()):
            if call.task:
                call.task.cancel()
            self._fail(call, _STOPPING)
        self._http2.close()
        self._flush()
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # because the client does not read
        else:
            self._transport.close()

    def _close(self) -> None:
        """
        Close a connection that has ended or is broken.
        """
        for call in list(self.calls.values()):
            self._drop(call)
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if data := self._http2.data_to_send():
            self._transport.write(data)

    # -- events of the client

    def _on_request(self, event: RequestReceived) -> None:
        headers = event.headers
        if not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self._http2.send_headers(event.stream_id, _NOT_GRPC, end_stream=True)
            return
        method = self._server.methods.get(headers.get(b":path", b""))
        if method is None:
            self._http2.send_headers(event.stream_id, _HEADERS + _trailers(_UNKNOWN_METHOD), end_stream=True)
            return
        call = self.calls[event.stream_id] = _Call(event.stream_id, method)
        self._server.observer.started(method.name)
        if self._server.stopping:
            self._fail(call, _STOPPING)
        elif timeout := headers.get(b"grpc-timeout"):
            try:
                call.deadline = self._loop.time() + decode_timeout(timeout.decode())
            except ValueError:
                self._fail(call, RefusedError(Status.INTERNAL, f"{timeout!r:.64} is not a timeout"))

    def _on_data(self, event: DataReceived) -> None:
        call = self.calls.get(event.stream_id)
        if not call or call.ended:
            self._http2.acknowledge(len(event.data))
            return
        body = call.body
        body += event.data
        if len(body) < _PREFIX_SIZE:
            return
        size = int.from_bytes(body[1:_PREFIX_SIZE])
        if body[0]:
            self._fail(call, RefusedError(Status.UNIMPLEMENTED, "compressed messages are not supported"))
        elif size > MAX_REQUEST_SIZE:
            text = f"a request of {size} bytes exceeds the limit of {MAX_REQUEST_SIZE}"
            self._fail(call, RefusedError(Status.RESOURCE_EXHAUSTED, text))
        elif len(body) > _PREFIX_SIZE + size:
            self._fail(call, RefusedError(Status.INTERNAL, "the call has more than one request"))

    def _on_end(self, event: StreamEnded) -> None:
        call = self.calls.get(event.stream_id)
        if not call or call.ended:
            return
        body = bytes(call.body)
        self._release(call)
        if len(body) < _PREFIX_SIZE or len(body) < _PREFIX_SIZE + int.from_bytes(body[1:_PREFIX_SIZE]):
            self._fail(call, RefusedError(Status.INTERNAL, "the request is incomplete"))
            return
        try:
            answer = call.method.answer(call.method.request.FromString(body[_PREFIX_SIZE:]))
        except DecodeError as error:
            self._fail(call, RefusedError(Status.INVALID_ARGUMENT, f"the request cannot be parsed: {error}"))
        except Exception as error:
            self._fail(call, error)
        else:
            if isinstance(answer, Message):
                self._reply(call, answer)
                self._finish(call)
            elif isinstance(answer, asyncio.Future):
                self._follow(call, answer)
            else:
                call.task = self._loop.create_task(self._await(call, answer))

    def _on_reset(self, event: StreamReset) -> None:
        if call := self.calls.get(event.stream_id):
            self._drop(call)

    def _on_window(self, event: WindowUpdated) -> None:
        if event.stream_id:
            if call := self.calls.get(event.stream_id):
                self._send(call)
        else:
            for call in list(self.calls.values()):
                self._send(call)

    # -- answers

    def _follow(self, call: _Call, answer: asyncio.Future[Message]) -> None:
        """
        Reply when *answer* is done. Hot path: a callback costs less than a task.
        """
        call.task = answer
        if call.deadline is not None:
            timer = self._loop.call_at(call.deadline, self._on_deadline, call, answer)
            answer.add_done_callback(lambda _: timer.cancel())
        answer.add_done_callback(partial(self._on_answer, call))

    def _on_deadline(self, call: _Call, answer: asyncio.Future[Message]) -> None:
        self._fail(call, _LATE)
        self._flush()
        answer.cancel()

    def _on_answer(self, call: _Call, answer: asyncio.Future[Message]) -> None:
        if call.ended:
            return
        try:
            self._reply(call, answer.result())
            self._finish(call)
        except asyncio.CancelledError:
            self._fail(call, _STOPPING)
        except Exception as error:
            self._fail(call, error)
        self._flush()

    async def _await(
        self, call: _Call, answer: Callable[[], Awaitable[Message]] | AsyncGenerator[Message, None]
    ) -> None:
        try:
            async with asyncio.timeout_at(call.deadline) as timeout:
                if isinstance(answer, AsyncGenerator):
                    async with contextlib.aclosing(answer):
                        async for message in answer:
                            self._reply(call, message)
                            await self._room(call)
                else:
                    self._reply(call, await answer())
            self._finish(call)
        except Exception as error:
            self._fail(call, _LATE if timeout.expired() else error)
        self._flush()

    async def _room(self, call: _Call) -> None:
        """
        Wait until the client has taken the pending replies, and yield to other calls.
        """
        self._flush()
        if call.pending:
            call.room = self._loop.create_future()
            await call.room
        await self._writable.wait()
        await asyncio.sleep(0)

    def _reply(self, call: _Call, message: Message) -> None:
        if call.ended:
            return
        data = message.SerializeToString()
        call.pending += b"\0" + len(data).to_bytes(_PREFIX_SIZE - 1) + data
        self._send(call)

    def _fail(self, call: _Call, error: Exception) -> None:
        self._finish(call, self._server.refusal(call.method.name, error))

    def _finish(self, call: _Call, refused: RefusedError | None = None) -> None:
        if call.ended:
            return
        call.ended = True
        call.trailers = _trailers(refused) if refused else _OK
        self._release(call)
        self._server.observer.ended(
            call.method.name, refused.status.name if refused else "OK", time.monotonic() - call.begun
        )
        self._send(call)

    def _send(self, call: _Call) -> None:
        """
        Send as much of the pending replies as the windows allow.
        """
        stream_id, pending = call.stream_id, call.pending
        if pending and not call.answered:
            call.answered = True
            self._http2.send_headers(stream_id, _HEADERS)
        while pending:
            size = min(self._http2.send_window(stream_id), self._http2.max_frame_size)
            if size <= 0:
                return
            self._http2.send_data(stream_id, bytes(pending[:size]))
            del pending[:size]
        if call.ended:
            trailers = call.trailers if call.answered else _HEADERS + call.trailers
            self._http2.send_headers(stream_id, trailers, end_stream=True)
            del self.calls[stream_id]
        elif call.room and not call.room.done():
            call.room.set_result(None)

    def _drop(self, call: _Call) -> None:
        """
        Drop a call that its client cancelled, or whose connection is lost.
        """
        del self.calls[call.stream_id]
        self._release(call)
        if not call.ended:
            call.ended = True
            self._server.observer.ended(call.method.name, "CANCELLED", time.monotonic() - call.begun)
        if call.task:
            call.task.cancel()

    def _release(self, call: _Call) -> None:
        """
        Return the window that the request used. Doing so only at its end bounds the size of incomplete requests.
        """
        if call.body:
            self._http2.acknowledge(len(call.body))
            call.body = bytearray()


def _trailers(refused: RefusedError) -> bytes:
    text = str(refused)
    if len(text) > MAX_TEXT_SIZE:
        text = f"{text[:MAX_TEXT_SIZE]}..."
    encodable = text.encode(errors="backslashreplace").decode()
    status = str(refused.status.value)
    return encode_headers((("grpc-status", status), ("grpc-message", encode_grpc_message(encodable))))
