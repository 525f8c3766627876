"""
Sessions of libnghttp2 without I/O, for tests.
"""

from typing import Any, NamedTuple

from snapshotter.transport import library
from snapshotter.transport.library import ffi, lib
from tests.snapshotter.transport.frames import HELLO, Frame, split

MAX_STREAMS, MAX_REQUEST, WINDOW, MAX_UNREAD = 10, 1_000, 100_000, 200_000

OPENED, ENDED, REFUSED, CLOSED = lib.HTTP2_OPENED, lib.HTTP2_ENDED, lib.HTTP2_REFUSED, lib.HTTP2_CLOSED
ROOM = lib.HTTP2_ROOM


class Seen(NamedTuple):
    """
    An event.
    """

    stream: int
    kind: int
    why: int = 0
    timeout: float = -1
    path: str = "/a/b"
    body: bytes | None = None
    text: str = ""


class Session:
    """
    A session of the server or, with *client*, of a client.
    """

    def __init__(self, *, client: bool = False, max_streams: int = MAX_STREAMS, greeted: bool = False) -> None:
        library.load()
        made = lib.http2_client(WINDOW) if client else lib.http2_server(max_streams, MAX_REQUEST, WINDOW, MAX_UNREAD)
        self.c: Any = ffi.gc(made, lib.http2_free)
        if greeted:
            assert self.receive(HELLO) == []
            self.take()

    def receive(self, data: bytes) -> list[Seen]:
        assert lib.http2_receive(self.c, data, len(data)) == self.c.count
        return self.events()

    def events(self) -> list[Seen]:
        return [
            Seen(
                event.stream,
                event.kind,
                event.why,
                event.timeout,
                ffi.string(event.path).decode(),
                (ffi.buffer(event.body, event.size)[:] if event.size else b"") if event.kind & ENDED else None,
                ffi.string(event.text).decode(),
            )
            for event in (self.c.events[index] for index in range(self.c.count))
        ]

    def take(self) -> bytes:
        """
        Return all pending output.
        """
        output = b""
        while size := lib.http2_take(self.c):
            output += ffi.buffer(self.c.output, size)[:]
        return output

    def frames(self) -> list[Frame]:
        return split(self.take())

    def reply(self, stream: int, message: bytes) -> None:
        lib.http2_reply(self.c, stream, message, len(message))

    def send(self, stream: int, message: bytes) -> None:
        lib.http2_send(self.c, stream, message, len(message))

    def finish(self, stream: int, status: int, text: bytes = b"") -> None:
        lib.http2_finish(self.c, stream, status, text)

    def request(self, message: bytes, headers: bytes = b"", count: int = 0, path: bytes = b"/a/b") -> int:
        return lib.http2_request(self.c, path, headers, count, message, len(message))

    @property
    def over(self) -> bool:
        return bool(self.c.over)

    @property
    def error(self) -> str:
        return ffi.string(self.c.error).decode()
