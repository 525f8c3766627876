"""
A gRPC server on an event loop and on the threads that answer its calls.

libnghttp2 has the protocol; `snapshotter.transport` has its sessions. This module has the sockets and the calls: their
deadlines, their statuses, and the limits of everything that a client can make the server hold.

Each connection has one lock. The event loop reads and answers the calls whose answer is known at once. A thread that
has an answer sends it itself, because handing it to the loop would take longer than many calls.
"""

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from snapshotter.daemon.sockets import BACKLOG
from snapshotter.events import Event, tracing
from snapshotter.transport.library import ffi, lib, load
from snapshotter.transport.status import Status, encode_text

if TYPE_CHECKING:
    from snapshotter.transport.library import Buffer, CData

__all__ = ["MAX_REQUEST_SIZE", "Answer", "Method", "Observer", "Pending", "RefusedError", "Server"]

MAX_REQUEST_SIZE = 4 << 20  # bytes: gRPC's own default, and more than any valid request needs
RECEIVE_WINDOW = 4 * MAX_REQUEST_SIZE  # bytes of incomplete requests, of one connection
MAX_UNREAD_SIZE = 32 << 20  # bytes of answers that the client of one connection does not read
MAX_UNSENT_SIZE = 1 << 20  # bytes that wait for the socket of one connection
MAX_CALLS = 10_000  # of one connection; so many that hanging calls do not block others
MAX_CONNECTIONS = 4_096
ACCEPTS = 100  # connections accepted in one iteration of the loop
RECEIVE_SIZE = 16_384  # bytes read in one iteration of the loop, so that no client holds up the others
SWEEP_SECONDS = 0.1  # between two looks for late calls
ACCEPT_PAUSE_SECONDS = 1.0  # without descriptors or memory for a new connection

_NEVER = float("inf")

_OPENED, _ENDED, _REFUSED, _CLOSED = lib.HTTP2_OPENED, lib.HTTP2_ENDED, lib.HTTP2_REFUSED, lib.HTTP2_CLOSED
_ROOM = lib.HTTP2_ROOM

# accept(2) has taken no connection, or one that has ended already.
_NOTHING = (errno.EAGAIN, errno.EINTR, errno.ECONNABORTED)


class Pending(Future["Message | bytes"]):
    """
    An answer that comes later, from any thread.

    Attributes:
        expires: The time at which the server calls `expire`, on the clock of `time.monotonic`.
    """

    expires = _NEVER

    def expire(self) -> None:
        """
        Set an error, because the answer has not come in time.
        """


Answer = Message | bytes | Pending | AsyncGenerator[Message | bytes, None]


class Method(NamedTuple):
    """
    A method of a service.

    Args:
        name: The name for the observer.
        answer: Returns the reply, as a message or encoded, or its future; or the generator of all replies of a stream.
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


_UNKNOWN_METHOD = encode_text("unknown method")
_STOPPING = RefusedError(Status.UNAVAILABLE, "the snapshotter is stopping")
_LATE = RefusedError(Status.DEADLINE_EXCEEDED, "the client's deadline is over")


def _refused(event: "CData") -> RefusedError:
    """
    Return the error of a request that the session refused.
    """
    text = f"{ffi.string(event.text).decode(errors='backslashreplace')!r} is not a timeout"
    size = f"a request of {event.size} bytes exceeds the limit of {MAX_REQUEST_SIZE}"
    status, why = {
        lib.HTTP2_COMPRESSED: (Status.UNIMPLEMENTED, "compressed messages are not supported"),
        lib.HTTP2_TOO_LARGE: (Status.RESOURCE_EXHAUSTED, size),
        lib.HTTP2_SEVERAL: (Status.INTERNAL, "the call has more than one request"),
        lib.HTTP2_INCOMPLETE: (Status.INTERNAL, "the request is incomplete"),
        lib.HTTP2_BAD_TIMEOUT: (Status.INTERNAL, text),
    }[event.why]
    return RefusedError(status, why)


class Observer(Protocol):
    """
    Observes all calls, from any thread.
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
            the server. Called from any thread.

    Raises:
        UnavailableError: libnghttp2 is missing.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        refusal: Callable[[str, Exception], RefusedError],
        observer: Observer | None,
    ) -> None:
        load()
        self.methods = {path.encode(): method for path, method in methods.items()}
        self.refusal = refusal
        self.observer = observer or _Unobserved()
        self.stopping = False
        self.connections: set[_Connection] = set()
        self._loop: asyncio.AbstractEventLoop
        self._listeners: list[socket.socket] = []
        self._accepting = False
        self._sweeping = False
        self._exhausted = ""
        self._call_ended = asyncio.Event()

    async def start(self, sock: socket.socket) -> None:
        """
        Serve on *sock*, a bound unix socket, which `stop` closes.
        """
        self._loop = asyncio.get_running_loop()
        sock.settimeout(0)
        sock.listen(BACKLOG)
        self._listeners.append(sock)
        self._accept_again()

    async def stop(self, seconds: float) -> None:
        """
        Refuse new calls, wait up to *seconds* for the calls in flight, then end them and all connections.
        """
        self.stopping = True
        self._pause()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(call.answer for each in self.connections for call in list(each.calls.values())):
                    self._call_ended.clear()
                    await self._call_ended.wait()
        for connection in list(self.connections):
            connection.end()

    # -- connections

    def _accept_again(self) -> None:
        if not self._accepting:
            self._accepting = True
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if len(self.connections) >= MAX_CONNECTIONS:
                self._pause()  # until a connection ends; further clients wait in the backlog
                self._complain(f"{MAX_CONNECTIONS} connections are open")
                return
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if error.errno not in _NOTHING:
                    self._pause()
                    self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._accept_again)
                    self._complain(f"no connection can be accepted: {error.strerror}")
                return
            self._exhausted = ""
            self.connections.add(_Connection(self, sock, self._loop))

    def _complain(self, error: str) -> None:
        """
        Log *error*, once until a connection is accepted.
        """
        if self._exhausted != error:
            self._exhausted = error
            Event.CROWDED.emit(error=error)

    def closed(self, connection: "_Connection") -> None:
        self.connections.discard(connection)
        self._accept_again()

    # -- calls

    def ended(self, call: "_Call", code: str) -> None:
        self.observer.ended(call.method.name, code, time.monotonic() - call.begun)
        if self.stopping:
            _call_soon(self._loop, self._call_ended.set)

    def watch(self) -> None:
        """
        Look for late calls until no call is open. A timer for each call would take longer than the looks.
        """
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        for connection in list(self.connections):
            if connection.calls:
                connection.expire(time.monotonic())
                self.watch()


class _Call:
    """
    A call that has no answer yet.
    """

    __slots__ = ("answer", "begun", "deadline", "ended", "method", "room", "stream", "trace")

    def __init__(self, stream: int, method: Method, begun: float, deadline: float, trace: str) -> None:
        self.stream = stream
        self.method = method
        self.begun = begun
        self.deadline = deadline  # the client's
        self.answer: Pending | asyncio.Task[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self.ended = False
        self.trace = trace

    def tracing(self) -> contextlib.AbstractContextManager[None]:
        """
        Give the events of the ``with`` the ids of the client's trace.
        """
        return tracing(self.trace) if self.trace else contextlib.nullcontext()


class _Connection:
    """
    A connection. Its lock guards the session, the calls and the order of the bytes on the socket.
    """

    def __init__(self, server: Server, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.calls: dict[int, _Call] = {}
        self._server = server
        self._loop = loop
        self._thread = threading.get_ident()  # of the loop
        self._socket = sock
        self._lock = threading.RLock()
        self._closed = False
        self._handling = False
        self._unsent = bytearray()
        session = lib.http2_server(MAX_CALLS, MAX_REQUEST_SIZE, RECEIVE_WINDOW, MAX_UNREAD_SIZE)
        if not session:
            raise MemoryError
        self._session = ffi.gc(session, lib.http2_free)
        sock.settimeout(0)
        loop.add_reader(sock, self._on_readable)
        with self._lock:
            self._flush()

    # -- the socket

    def _on_readable(self) -> None:
        if len(self._unsent) >= MAX_UNSENT_SIZE:
            self._loop.remove_reader(self._socket)  # until the client reads, so that answers do not pile up
            return
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        with self._lock:
            if data:
                self.receive(data)
                self._flush()
            else:
                self._close()

    def receive(self, data: bytes) -> None:
        """
        Handle bytes of the client.
        """
        lib.http2_receive(self._session, data, len(data))
        self._handle()

    def _flush(self) -> None:
        """
        Send all that the client can take, from any thread.
        """
        if self._handling:
            return  # the caller of `_handle` flushes, and the events are valid until http2_take
        session = self._session
        while len(self._unsent) < MAX_UNSENT_SIZE and not self._closed:
            size = lib.http2_take(session)
            if not size and not session.count:
                break
            output = ffi.buffer(session.output, size)
            if self._unsent:
                self._unsent += output
            elif (sent := self._send(output)) < size:
                self._unsent += output[sent:]
                self._on_loop(self._wait_until_writable)
            self._handle()
        if session.over:
            self._on_loop(self._close)

    def _send(self, data: "Buffer | bytearray") -> int:
        """
        Return the number of bytes that the socket took.
        """
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._on_loop(self._close)
            return 0

    def _on_loop(self, function: Callable[[], None]) -> None:
        _call_soon(self._loop, function)

    def _wait_until_writable(self) -> None:
        with self._lock:
            if not self._closed:
                self._loop.add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        with self._lock:
            del self._unsent[: self._send(self._unsent)]
            if not self._unsent:
                self._loop.remove_writer(self._socket)
                self._loop.add_reader(self._socket, self._on_readable)
                self._flush()

    def end(self) -> None:
        """
        End all calls and the connection.
        """
        with self._lock:
            for call in list(self.calls.values()):
                self._fail(call, _STOPPING)
                _cancel(call)
            self._flush()
            # A GOAWAY before the ends of the calls breaks them for clients on the h2 library.
            lib.http2_terminate(self._session)
            self._flush()
            self._close()

    def _close(self) -> None:
        """
        Close a connection that has ended or is broken.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for call in list(self.calls.values()):
                self._drop(call)
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            if error := ffi.string(self._session.error):
                Event.HUNG_UP.emit(error=error.decode())
            self._server.closed(self)

    # -- events of the client

    def _handle(self) -> None:
        session = self._session
        self._handling = True
        try:
            for index in range(session.count):
                self._on_event(session.events[index])
        finally:
            self._handling = False

    def _on_event(self, event: "CData") -> None:
        kind = event.kind
        if kind & _OPENED:
            self._on_opened(event)
        call = self.calls.get(event.stream)
        if not call:
            return
        if kind & _REFUSED:
            self._fail(call, _refused(event))
        elif kind & _ENDED:
            self._on_request(call, ffi.buffer(event.body, event.size)[:] if event.size else b"")
        if kind & _CLOSED:
            self._drop(call)
        elif kind & _ROOM and call.room:
            if threading.get_ident() == self._thread:
                _set(call.room)  # at once, because the answer goes on in the same iteration of the loop
            else:
                self._on_loop(partial(_set, call.room))

    def _on_opened(self, event: "CData") -> None:
        method = self._server.methods.get(ffi.string(event.path))
        stream = event.stream
        if method is None:
            lib.http2_finish(self._session, stream, Status.UNIMPLEMENTED, _UNKNOWN_METHOD)
            return
        begun, timeout = time.monotonic(), event.timeout
        trace = ffi.string(event.trace).decode(errors="replace")
        call = _Call(stream, method, begun, begun + timeout if timeout >= 0 else _NEVER, trace)
        self.calls[stream] = call
        self._server.observer.started(method.name)
        if self._server.stopping:
            self._fail(call, _STOPPING)
        elif not event.kind & _ENDED:
            self._server.watch()

    def _on_request(self, call: _Call, body: bytes) -> None:
        method = call.method
        if call.deadline != _NEVER and call.deadline <= time.monotonic():
            self._fail(call, _LATE)
            return
        try:
            request = method.request.FromString(body)
        except (DecodeError, ValueError) as error:  # protobuf without its C part raises a ValueError for bad UTF-8
            self._fail(call, RefusedError(Status.INVALID_ARGUMENT, f"the request cannot be parsed: {error}"))
            return
        try:
            with call.tracing():
                answer = method.answer(request)
        except Exception as error:
            self._fail(call, error)
        else:
            self._on_answer(call, answer)

    def expire(self, now: float) -> None:
        """
        End the calls whose time is over.
        """
        with self._lock:
            for call in list(self.calls.values()):
                if call.deadline <= now:
                    self._fail(call, _LATE)
                    _cancel(call)
                elif isinstance(call.answer, Pending) and call.answer.expires <= now:
                    call.answer.expire()
            self._flush()

    # -- answers

    def _on_answer(self, call: _Call, answer: Answer) -> None:
        if isinstance(answer, Pending):
            call.answer = answer
            answer.add_done_callback(partial(self._on_done, call))
            self._server.watch()
        elif isinstance(answer, AsyncGenerator):
            call.answer = self._loop.create_task(self._stream(call, answer))
            self._server.watch()
        else:
            self._reply(call, answer)

    def _on_done(self, call: _Call, answer: Future[Message | bytes]) -> None:
        with self._lock:
            if call.ended:
                return
            try:
                self._reply(call, answer.result())
            except CancelledError:
                self._fail(call, _STOPPING)
            except Exception as error:
                self._fail(call, error)
            self._flush()

    async def _stream(self, call: _Call, answers: AsyncGenerator[Message | bytes, None]) -> None:
        try:
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    data = _encoded(answer)
                    with self._lock:
                        call.room = self._loop.create_future()
                        lib.http2_send(self._session, call.stream, data, len(data))
                        self._flush()
                    del answer, data  # the session has a copy, and the client may never read it
                    await call.room
            with self._lock:
                self._finish(call, Status.OK)
        except Exception as error:
            with self._lock:
                self._fail(call, error)
        with self._lock:
            self._flush()

    def _reply(self, call: _Call, answer: Message | bytes) -> None:
        data = _encoded(answer)
        self._end(call, "OK")
        lib.http2_reply(self._session, call.stream, data, len(data))

    def _fail(self, call: _Call, error: Exception) -> None:
        if not call.ended:
            with call.tracing():
                refused = self._server.refusal(call.method.name, error)
            self._finish(call, refused.status, encode_text(str(refused)))

    def _finish(self, call: _Call, status: Status, text: bytes = b"") -> None:
        if not call.ended:
            self._end(call, status.name)
            lib.http2_finish(self._session, call.stream, status, text)

    def _drop(self, call: _Call) -> None:
        """
        Drop a call that its client cancelled, or whose connection is lost.
        """
        self._end(call, "CANCELLED")
        _cancel(call)

    def _end(self, call: _Call, code: str) -> None:
        call.ended = True
        del self.calls[call.stream]
        self._server.ended(call, code)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed before the thread ended
        loop.call_soon_threadsafe(function)


def _cancel(call: _Call) -> None:
    if call.answer:
        call.answer.cancel()


def _encoded(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
