"""
The sessions of libnghttp2, with the h2 library on the other side, and with frames that no library sends.
"""

import struct

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, PingAckReceived, ResponseReceived, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.transport.library import ffi, lib
from tests.snapshotter.transport.frames import (
    ACK,
    BLOCK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HELLO,
    OPEN,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PUSH_PROMISE,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    number,
    split,
)
from tests.snapshotter.transport.sessions import (
    CLOSED,
    ENDED,
    MAX_REQUEST,
    MAX_UNREAD,
    OPENED,
    REFUSED,
    ROOM,
    WINDOW,
    Seen,
    Session,
)


def framed(message: bytes) -> bytes:
    return b"\0" + number(len(message)) + message


class Client:
    """
    h2 on the other side of a server's session.
    """

    def __init__(self) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.server = Session()
        self.exchange()

    def exchange(self, pieces: int | None = None) -> tuple[list[Seen], list[object]]:
        """
        Carry the pending bytes both ways, ours split into pieces of *pieces* bytes; return the events of both sides.
        """
        data = self.h2.data_to_send()
        step = pieces or len(data) or 1
        ours = [event for at in range(0, len(data), step) for event in self.server.receive(data[at : at + step])]
        return ours, list(self.h2.receive_data(self.server.take()))

    def open(self, *headers: tuple[str, str], stream: int = 1, end: bool = False) -> list[Seen]:
        self.h2.send_headers(stream, [*REQUEST, *headers], end_stream=end)
        return self.exchange()[0]


@pytest.mark.parametrize("pieces", [None, 1, 2, 7, 9, 10])
def test_a_call(pieces: int | None) -> None:
    """
    A request arrives complete however its bytes are split, and h2 understands the answer.
    """
    client = Client()
    client.h2.send_headers(1, [*REQUEST, ("grpc-timeout", "20m")])
    client.h2.send_data(1, framed(b"request"), end_stream=True)
    ours, _ = client.exchange(pieces)
    opened = Seen(1, OPENED, timeout=0.02)
    ended = Seen(1, ENDED, timeout=0.02, body=b"request")
    assert ours == ([opened, ended] if pieces else [opened._replace(kind=OPENED | ENDED, body=b"request")])
    client.server.reply(1, b"reply")
    _, theirs = client.exchange()
    response, data, trailers, _ = theirs
    assert isinstance(response, ResponseReceived)
    assert response.headers == [(":status", "200"), ("content-type", "application/grpc")]
    assert isinstance(data, DataReceived)
    assert data.data == framed(b"reply")
    assert isinstance(trailers, TrailersReceived)
    assert trailers.headers == [("grpc-status", "0")]


def test_an_error() -> None:
    """
    An error without a message is one frame of headers, and its text does not enter the table of headers.
    """
    client = Client()
    for stream, text in ((1, b"why%0A"), (3, b"why%0A"), (5, b"")):
        client.open(stream=stream, end=True)
        client.server.finish(stream, 9, text)
        [answer] = client.server.frames()
        assert (answer.kind, answer.flags) == (HEADERS, END_HEADERS | END_STREAM)
        assert (b"\x10" in answer.payload) == bool(text)  # a header that is never indexed
        [response, *_] = client.h2.receive_data(frame(*answer))
        assert isinstance(response, ResponseReceived)
        message = [("grpc-message", text.decode())] if text else []
        assert response.headers == [
            (":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "9"), *message
        ]  # fmt: skip


def test_several_messages() -> None:
    """
    A ROOM event follows each message that the client took, and the end has its trailers.
    """
    server = Session(greeted=True)
    server.receive(OPEN + frame(DATA, END_STREAM, 1, framed(b"")))
    for message in (b"one", b"", b"three"):
        server.send(1, message)
        size = lib.http2_take(server.c)
        assert server.events() == [Seen(1, ROOM)]
        assert split(ffi.buffer(server.c.output, size)[:])[-1] == (DATA, 0, 1, framed(message))
    server.finish(1, 0)
    assert [(each.kind, each.flags) for each in server.frames()] == [(HEADERS, END_HEADERS | END_STREAM)]


def test_a_small_answer_passes_a_large_one() -> None:
    """
    A small reply does not wait behind the message of a stream of several.
    """
    client = Client()
    client.h2.increment_flow_control_window(1 << 20)
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    client.exchange()
    client.open(end=True)
    client.open(stream=3, end=True)
    client.server.send(1, bytes(150_000))
    client.server.reply(3, b"small")
    streams = [each.stream for each in client.server.frames() if each.kind == DATA]
    assert streams.index(3) <= 1
    assert streams.count(1) > 5


def test_what_is_between_calls() -> None:
    """
    A ping is answered, a reset is an event, and h2 understands the end of the connection.
    """
    client = Client()
    client.h2.ping(b"01234567")
    assert client.open() == [Seen(1, OPENED)]
    client.h2.reset_stream(1)
    ours, theirs = client.exchange()
    assert ours == [Seen(1, CLOSED)]
    client.h2.ping(b"01234567")
    _, theirs = client.exchange()
    assert any(isinstance(event, PingAckReceived) and event.ping_data == b"01234567" for event in theirs)
    lib.http2_terminate(client.server.c)
    [goaway] = client.server.frames()
    assert (goaway.kind, goaway.payload[:8]) == (GOAWAY, number(1) + number(0))
    assert (client.server.over, client.server.error) == (True, "")


def test_a_call_that_is_cancelled_at_once() -> None:
    """
    A call that is opened and cancelled in the same bytes makes no event, and answering it does nothing.
    """
    server = Session(greeted=True)
    assert server.receive(OPEN + frame(RST_STREAM, 0, 1, number(8))) == []
    server.reply(1, b"reply")
    server.send(1, b"reply")
    server.finish(1, 0)
    assert server.frames() == []


def test_a_call_that_is_cancelled_after_its_answer() -> None:
    """
    The cancellation of an answered call is no event, and what the client did not take is forgotten.
    """
    server = Session(greeted=True)
    server.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)) + OPEN + frame(DATA, 1, 1, framed(b"x")))
    server.reply(1, bytes(MAX_UNREAD - 5))
    server.take()
    assert server.receive(frame(RST_STREAM, 0, 1, number(8))) == []
    server.receive(frame(HEADERS, END_HEADERS, 3, BLOCK) + frame(DATA, 1, 3, framed(b"x")))
    server.reply(3, bytes(MAX_UNREAD - 5))
    assert not server.over


def test_a_request_that_is_answered_early_is_ended() -> None:
    """
    A client whose incomplete request was answered is told to send no more; its late data is ignored.
    """
    client = Client()
    client.open()
    client.server.finish(1, 8, b"too large")
    _, theirs = client.exchange()
    assert any(isinstance(event, StreamReset) and event.error_code == 0 for event in theirs)
    assert client.server.receive(frame(DATA, END_STREAM, 1, b"late")) == []
    assert client.server.frames() == []


@pytest.mark.parametrize(
    ("body", "why", "size"),
    [
        (b"", lib.HTTP2_INCOMPLETE, 0),
        (b"\0\0\0", lib.HTTP2_INCOMPLETE, 0),
        (b"\0\0\0\0\5abc", lib.HTTP2_INCOMPLETE, 5),
        (framed(b"a") + b"x", lib.HTTP2_SEVERAL, 1),
        (framed(b"") * 2, lib.HTTP2_SEVERAL, 0),
        (b"\1\0\0\0\0", lib.HTTP2_COMPRESSED, 0),
        (b"\0" + number(MAX_REQUEST + 1), lib.HTTP2_TOO_LARGE, MAX_REQUEST + 1),
        (b"\0" + number(0xFFFFFFFF), lib.HTTP2_TOO_LARGE, 0xFFFFFFFF),
    ],
)
def test_refused_requests(body: bytes, why: int, size: int) -> None:
    """
    A request that is not exactly one complete message is refused once, whatever follows.
    """
    server = Session(greeted=True)
    server.receive(OPEN)
    seen = server.receive(frame(DATA, END_STREAM, 1, body))
    assert seen == [Seen(1, REFUSED, why)]
    assert server.c.events[0].size == size
    server = Session(greeted=True)
    server.receive(OPEN)
    seen = [event for byte in body for event in server.receive(frame(DATA, 0, 1, bytes((byte,))))]
    seen += server.receive(frame(DATA, 0, 1, b"")) + server.receive(frame(DATA, END_STREAM, 1))
    assert seen == [Seen(1, REFUSED, why)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("0S", 0), ("1n", 1e-9), ("7u", 7e-6), ("20m", 0.02), ("3S", 3), ("2M", 120), ("1H", 3600)),
        ("99999999H", 99_999_999 * 3600),
    ],
)
def test_timeouts(text: str, seconds: float) -> None:
    """
    A timeout is 1 to 8 digits and a unit.
    """
    [seen] = Client().open(("grpc-timeout", text))
    assert (seen.kind, seen.timeout) == (OPENED, pytest.approx(seconds))


@pytest.mark.parametrize(
    "text", ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "9" * 400 + "S", "1 S", "\uff11S"]
)
def test_bad_timeouts(text: str) -> None:
    """
    Every other timeout refuses the call, and at most 64 bytes of it are told.
    """
    [seen] = Client().open(("grpc-timeout", text))
    refused = Seen(1, OPENED | REFUSED, lib.HTTP2_BAD_TIMEOUT, text=seen.text)
    assert seen == refused
    assert text.encode().startswith(seen.text.encode())
    assert len(seen.text) <= 64


@pytest.mark.parametrize(
    "kind", ["application/grpc", "application/grpc+proto", "application/grpc;x", "application/grpcx"]
)
def test_content_types(kind: str) -> None:
    """
    A request of another content type gets an HTTP error at its end, and makes no event.
    """
    client = Client()
    client.h2.send_headers(1, [*REQUEST[:-1], ("content-type", kind)])
    ours, theirs = client.exchange()
    if kind == "application/grpcx":
        assert ours == theirs == []
        client.h2.send_data(1, bytes(500), end_stream=True)
        ours, [response, *_] = client.exchange()
        assert ours == []
        assert isinstance(response, ResponseReceived)
        assert response.headers == [(":status", "415")]
    else:
        assert ours == [Seen(1, OPENED)]


def test_too_many_streams() -> None:
    """
    A stream beyond the limit is refused, and ends the connection of a client that has acknowledged the limit.
    """
    server = Session(max_streams=1, greeted=True)
    assert server.receive(OPEN) == [Seen(1, OPENED)]
    assert server.receive(frame(HEADERS, END_HEADERS | END_STREAM, 3, BLOCK)) == []
    assert server.frames() == [(RST_STREAM, 0, 3, number(7))]
    assert server.receive(frame(DATA, END_STREAM, 1, framed(b"x"))) == [Seen(1, ENDED, body=b"x")]
    server.receive(frame(SETTINGS, ACK, 0))
    assert server.receive(frame(HEADERS, END_HEADERS | END_STREAM, 5, BLOCK)) == []
    [goaway] = server.frames()
    assert goaway.kind == GOAWAY
    assert server.over


def test_too_many_headers_end_their_stream() -> None:
    """
    A call with headers of more than 64 KiB is reset, and the next call is read correctly.
    """
    server, large = Session(greeted=True), Encoder()
    first = large.encode([*REQUEST, ("x", "y" * 3_000)])
    again = large.encode([*REQUEST, ("x", "y" * 3_000)])
    [seen] = server.receive(frame(HEADERS, END_HEADERS, 1, first))
    assert seen == Seen(1, OPENED)
    many = again + again[-1:] * 30  # an indexed header of 3,000 bytes, in one byte
    assert server.receive(frame(HEADERS, END_HEADERS, 3, many)) == []
    assert [(each.kind, each.stream) for each in server.frames()] == [(RST_STREAM, 3)]
    assert server.receive(frame(HEADERS, END_HEADERS, 5, again)) == [Seen(5, OPENED)]


def test_windows_bound_what_is_sent() -> None:
    """
    A reply waits for the windows of the client.
    """
    server = Session(greeted=True)
    server.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 100)) + OPEN + frame(DATA, 1, 1, framed(b"x")))
    server.reply(1, bytes(295))
    assert [len(each.payload) for each in server.frames() if each.kind == DATA] == [100]
    server.receive(frame(WINDOW_UPDATE, 0, 1, number(150)))
    assert [len(each.payload) for each in server.frames()] == [150]
    server.receive(frame(WINDOW_UPDATE, 0, 1, number(150)))
    assert server.frames()[0][::3] == (DATA, bytes(50))


def test_a_request_holds_its_window_until_it_is_taken() -> None:
    """
    The connection's window is returned when requests are taken, refused or cancelled; that of a stream never is.
    """

    def updates(server: Session) -> list[tuple[int, int]]:
        frames = server.frames()
        return [(each.stream, int.from_bytes(each.payload, "big")) for each in frames if each.kind == WINDOW_UPDATE]

    for way in ("ended", "refused", "cancelled", "finished"):
        server, stream, returned = Session(greeted=True), 1, 0
        while returned < WINDOW // 4:
            body = framed(bytes(MAX_REQUEST))
            server.receive(frame(HEADERS, END_HEADERS, stream, BLOCK) + frame(DATA, 0, stream, body[:-1]))
            assert updates(server) == []
            if way == "ended":
                assert server.receive(frame(DATA, END_STREAM, stream, body[-1:]))[0].kind == ENDED
            elif way == "refused":
                server.receive(frame(DATA, 0, stream, b"xx"))
            elif way == "cancelled":
                server.receive(frame(RST_STREAM, 0, stream, number(8)))
            server.finish(stream, 0)
            found = updates(server)
            assert all(of == 0 for of, _ in found)
            returned += sum(size for _, size in found)
            stream += 2


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(DATA, 0, 1, b"x"), 1, id="data of no stream"),
        pytest.param(frame(DATA, 0, 0, b"x"), 1, id="data of stream 0"),
        pytest.param(OPEN + frame(DATA, PADDED, 1, b"\x05abc"), 1, id="more padding than frame"),
        pytest.param(frame(DATA, 0, 1, bytes(16_385)), 6, id="a frame that is too large"),
        pytest.param(frame(PING, 0, 0, b"short"), 6, id="a short ping"),
        pytest.param(frame(SETTINGS, 0, 0, b"short"), 6, id="a cut setting"),
        pytest.param(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), 3, id="a window beyond all"),
        pytest.param(frame(WINDOW_UPDATE, 0, 0, number((1 << 31) - 1)), 3, id="a window that grows beyond all"),
        pytest.param(frame(WINDOW_UPDATE, 0, 7, number(1)), 1, id="the window of no stream"),
        pytest.param(frame(RST_STREAM, 0, 7, number(0)), 1, id="the end of no stream"),
        pytest.param(frame(PUSH_PROMISE, 0, 1, number(2)), 1, id="a push"),
        pytest.param(frame(HEADERS, END_HEADERS, 2, BLOCK), 1, id="a server's stream"),
        pytest.param(frame(HEADERS, END_HEADERS, 1, b"\xff\xff"), 9, id="headers that cannot be read"),
        pytest.param(frame(CONTINUATION, END_HEADERS, 1, BLOCK), 1, id="a continuation of nothing"),
        pytest.param(frame(HEADERS, 0, 1, BLOCK) + frame(PING, 0, 0, bytes(8)), 1, id="headers without an end"),
    ],
)
def test_what_breaks_the_protocol(sent: bytes, code: int) -> None:
    """
    A violation of the protocol ends the connection, the client gets its code, and the log a short reason.
    """
    server = Session(greeted=True)
    server.receive(sent)
    last = server.frames()[-1]
    assert (last.kind, last.payload[4:8]) == (GOAWAY, number(code))
    assert server.over
    assert 0 < len(server.error) < 100


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "magic", id="another protocol"),
        pytest.param(HELLO + 200 * frame(SETTINGS, 0, 0), "too many SETTINGS frames", id="settings"),
        pytest.param(HELLO + 1_200 * frame(PING, 0, 0, bytes(8)), "Flooding", id="pings"),
        pytest.param(
            HELLO + frame(HEADERS, 0, 1, BLOCK) + 200 * frame(CONTINUATION, 0, 1, bytes(16_000)),
            "",
            id="endless headers",
        ),
    ],
)
def test_what_ends_at_once(sent: bytes, error: str) -> None:
    """
    A client that does not speak HTTP/2, or floods the server, loses its connection for a short reason.
    """
    server = Session()
    server.receive(sent)
    server.take()
    assert server.over
    assert error in server.error
    assert 0 < len(server.error) < 100


def test_answers_that_are_not_read() -> None:
    """
    A client that takes no answers loses its connection before they fill the memory.
    """
    server = Session(greeted=True)
    server.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    for stream in (1, 3, 5):
        server.receive(frame(HEADERS, END_HEADERS, stream, BLOCK) + frame(DATA, 1, stream, framed(b"x")))
        assert not server.over
        server.reply(stream, bytes(MAX_UNREAD // 3))
        server.take()
    assert (server.over, server.error) == (True, "the client does not read its answers")


def test_an_error_of_a_stream_is_no_error_of_the_connection() -> None:
    """
    After an error of one stream, the end of the connection has no reason to log.
    """
    server = Session(greeted=True)
    assert server.receive(OPEN) == [Seen(1, OPENED)]
    assert server.receive(OPEN) == []  # headers again, without the end of the stream
    assert [(each.kind, each.payload) for each in server.frames()] == [(RST_STREAM, number(1))]
    server.receive(frame(GOAWAY, 0, 0, bytes(8)))
    server.take()
    assert (server.over, server.error) == (True, "")


def test_headers_in_pieces() -> None:
    """
    A header block may come with padding and a priority, and in several frames.
    """
    first = frame(HEADERS, PADDED | PRIORITIZED | END_STREAM, 1, b"\x02" + bytes(5) + BLOCK[:3] + bytes(2))
    rest = frame(CONTINUATION, 0, 1, BLOCK[3:5]) + frame(CONTINUATION, END_HEADERS, 1, BLOCK[5:])
    assert Session(greeted=True).receive(first + rest) == [Seen(1, OPENED | REFUSED, lib.HTTP2_INCOMPLETE)]


names = st.sampled_from(["a", "b", "grpc-accept-encoding", "authorization"])
values = st.sampled_from(["", "x", "y" * 200, "z" * 1500])
blocks = st.lists(st.tuples(st.integers(0, 9), st.lists(st.tuples(names, values), max_size=5)), max_size=30)


@given(blocks)
def test_headers_are_what_was_sent(sent: list[tuple[int, list[tuple[str, str]]]]) -> None:
    """
    Repeated blocks are decoded correctly while the table that defines them changes.
    """
    server, encoder = Session(max_streams=100, greeted=True), Encoder()
    for place, (path, headers) in enumerate(sent):
        block = encoder.encode([*REQUEST[:2], (":path", f"/{path}"), *REQUEST[3:], *headers])
        stream = 2 * place + 1
        assert server.receive(frame(HEADERS, END_HEADERS, stream, block)) == [Seen(stream, OPENED, path=f"/{path}")]


def test_duplicate_headers_in_the_table() -> None:
    """
    The same bytes mean another method after an insertion that leaves the newest entry of the table as it was.
    """
    server = Session(greeted=True)

    def literal(name: str, value: str) -> bytes:
        """
        Return a header that is inserted into the table.
        """
        return b"\x40" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()

    def block(path: str) -> bytes:
        """
        Return a request that inserts four headers, the newest of which is always the same.
        """
        pseudo = b"\x83\x86" + literal(":authority", "x") + literal(":path", path)
        return pseudo + literal("content-type", "application/grpc") + literal("te", "trailers")

    indexed = b"\x83\x86\xc1\xc0\xbf\xbe"  # the four headers by their places in the table
    for stream, path in ((1, "/Remove"), (5, "/Stat"), (9, "/Remove"), (13, "/Stat")):
        for number_, sent in ((stream, block(path)), (stream + 2, indexed)):
            [seen] = server.receive(frame(HEADERS, END_HEADERS, number_, sent))
            assert seen == Seen(number_, OPENED, path=path)


frames = st.builds(
    frame,
    st.integers(0, 12),
    st.sampled_from([0, END_STREAM, END_HEADERS, END_HEADERS | END_STREAM, PADDED, PRIORITIZED | END_HEADERS, 0xFF]),
    st.sampled_from([0, 1, 2, 3, 5, 0x7FFFFFFF]),
    st.one_of(st.binary(max_size=20), st.just(BLOCK), st.builds(number, st.integers(0, (1 << 32) - 1))),
)


@given(st.lists(st.one_of(frames, st.binary(max_size=30)), max_size=20))
def test_anything_is_understood_or_refused(pieces: list[bytes]) -> None:
    """
    Any bytes yield events or the end of the connection with a short reason.
    """
    server = Session(greeted=True)
    for piece in pieces:
        for event in server.receive(piece):
            if event.kind & (ENDED | REFUSED):
                server.reply(event.stream, b"reply")
        server.take()
    assert len(server.error) < 100


class TestClient:
    """
    Sessions of both sides.
    """

    def pair(self) -> tuple[Session, Session]:
        client, server = Session(client=True), Session()
        server.receive(client.take())
        client.receive(server.take())
        return client, server

    def test_a_call(self) -> None:
        """
        The request has the further headers, and the answer all messages and the status.
        """
        client, server = self.pair()
        stream = client.request(b"request", b"grpc-timeout\x005S\0x\0y\0", 2)
        seen = server.receive(client.take())
        assert seen == [Seen(stream, OPENED | ENDED, timeout=5, body=b"request")]
        server.send(stream, b"one")
        server.send(stream, b"two")
        assert client.receive(server.take()) == []
        server.finish(stream, 0)
        [event] = client.receive(server.take())
        assert (event.kind, event.body) == (ENDED, framed(b"one") + framed(b"two"))
        assert client.c.events[0].status == 0

    def test_an_error(self) -> None:
        """
        An error arrives with its status and its text; an HTTP error has no status.
        """
        client, server = self.pair()
        stream = client.request(b"")
        server.receive(client.take())
        server.finish(stream, 5, b"not%20there")
        [event] = client.receive(server.take())
        assert (event.kind, event.body, event.text, client.c.events[0].status) == (ENDED, b"", "not%20there", 5)
        stream = client.request(b"")
        server.receive(client.take())
        block = Encoder().encode([(":status", "503"), ("content-length", "0")])
        client.receive(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
        assert (client.c.count, client.c.events[0].status) == (1, -1)

    def test_a_reset(self) -> None:
        """
        A call whose stream the server resets is closed; the connection stays open.
        """
        client, _ = self.pair()
        stream = client.request(b"")
        client.take()
        [event] = client.receive(frame(RST_STREAM, 0, stream, number(7)))
        assert (event.stream, event.kind) == (stream, CLOSED)
        assert not client.over

    def test_the_server_ends(self) -> None:
        """
        After a GOAWAY an idle connection is over.
        """
        client, server = self.pair()
        lib.http2_terminate(server.c)
        client.receive(server.take())
        client.take()
        assert client.over

    def test_large_messages(self) -> None:
        """
        Messages larger than every window pass in both directions.
        """
        client, server = self.pair()
        stream = client.request(bytes(MAX_REQUEST))
        assert server.receive(client.take())[0].body == bytes(MAX_REQUEST)
        server.send(stream, bytes(MAX_UNREAD - 10))
        events: list[Seen] = []
        for _ in range(20):
            events += client.receive(server.take())
            server.receive(client.take())
        server.finish(stream, 0)
        [event] = client.receive(server.take())
        assert event.body == framed(bytes(MAX_UNREAD - 10))


def test_preface() -> None:
    """
    A client's output starts with the preface.
    """
    assert Session(client=True).take().startswith(PREFACE)
