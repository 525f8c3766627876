"""
HTTP/2's frames, against the h2 library as the client, and against frames that no library sends.
"""

import struct
from collections.abc import Iterable

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.daemon import http2
from snapshotter.daemon.http2 import Connection, ProtocolError, encode_headers

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":authority", "x"), ("te", "trailers")]
BLOCK = Encoder().encode(REQUEST)
OK = encode_headers(((":status", "200"),))
WINDOW = 1000  # of a stream, in bytes; the connection's is 100 times as large

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


def number(value: int) -> bytes:
    return value.to_bytes(4)


OPEN = frame(HEADERS, END_HEADERS, 1, BLOCK)


def connected(*, streams: int = 10) -> Connection:
    connection = Connection(streams, WINDOW, 100 * WINDOW)
    assert list(connection.receive(PREFACE + frame(SETTINGS, 0, 0))) == [http2.WindowUpdated(0)]
    connection.data_to_send()
    return connection


def goodbye(connection: Connection) -> int:
    """
    Return the error code of the connection's GOAWAY.
    """
    last = connection.data_to_send()[-17:]
    assert last[:9] == frame(GOAWAY, 0, 0, bytes(8))[:9]
    return int.from_bytes(last[-4:])


class Client:
    """
    h2 on the other side of a `Connection`.
    """

    def __init__(self) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.connection = Connection(10, WINDOW, 100 * WINDOW)

    def exchange(self, pieces: int | None = None) -> tuple[list[http2.Event], list[object]]:
        """
        Carry the pending bytes both ways, ours split into pieces of *pieces* bytes; return the events of both sides.
        """
        data = self.h2.data_to_send()
        step = pieces or len(data) or 1
        ours = [event for at in range(0, len(data), step) for event in self.connection.receive(data[at : at + step])]
        return ours, list(self.h2.receive_data(self.connection.data_to_send()))


@pytest.mark.parametrize("pieces", [None, 1, 2, 7, 9, 10])
def test_a_call(pieces: int | None) -> None:
    """
    A request arrives complete however its bytes are split, and h2 understands the answer.
    """
    client = Client()
    client.exchange()
    client.h2.send_headers(1, REQUEST)
    client.h2.send_data(1, b"request", end_stream=True)
    ours, _ = client.exchange(pieces)
    assert ours == [
        http2.RequestReceived(1, {name.encode(): value.encode() for name, value in REQUEST}),
        http2.DataReceived(1, b"request"),
        http2.StreamEnded(1),
    ]
    client.connection.send_headers(1, OK)
    client.connection.send_data(1, b"reply")
    client.connection.send_headers(1, encode_headers((("grpc-status", "0"),)), end_stream=True)
    _, theirs = client.exchange()
    response, data, trailers, _ = theirs
    assert isinstance(response, ResponseReceived)
    assert response.headers == [(":status", "200")]
    assert isinstance(data, DataReceived)
    assert data.data == b"reply"
    assert isinstance(trailers, TrailersReceived)
    assert trailers.headers == [("grpc-status", "0")]


def test_what_is_between_calls() -> None:
    """
    A ping is answered, a reset is an event, and h2 understands the end of the connection.
    """
    client = Client()
    client.exchange()
    client.h2.ping(b"01234567")
    client.h2.send_headers(1, REQUEST)
    client.h2.reset_stream(1)
    ours, theirs = client.exchange()
    assert ours[1:] == [http2.StreamReset(1)]
    assert any(isinstance(event, PingAckReceived) and event.ping_data == b"01234567" for event in theirs)
    client.connection.close()
    _, theirs = client.exchange()
    assert isinstance(theirs[0], ConnectionTerminated)
    assert theirs[0].error_code == 0


def test_a_request_that_is_answered_early_is_ended() -> None:
    """
    A client whose incomplete request was answered is told to send no more; its late data is ignored.
    """
    client = Client()
    client.exchange()
    client.h2.send_headers(1, REQUEST)
    client.exchange()
    client.connection.send_headers(1, OK, end_stream=True)
    assert list(client.connection.receive(frame(DATA, END_STREAM, 1, b"late"))) == []
    _, theirs = client.exchange()
    assert any(isinstance(event, StreamReset) and event.error_code == 0 for event in theirs)


def test_too_many_streams_are_refused() -> None:
    """
    A stream beyond the limit is refused, and the others stay open.
    """
    connection = connected(streams=1)
    assert len(list(connection.receive(OPEN))) == 1
    assert list(connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 3, BLOCK))) == []
    assert connection.data_to_send() == frame(RST_STREAM, 0, 3, number(7))
    assert list(connection.receive(frame(DATA, END_STREAM, 1, b"x")))[1:] == [http2.StreamEnded(1)]


def test_windows_bound_what_is_sent() -> None:
    """
    The window is the smaller of the stream's and the connection's. Sending shrinks it, the client's updates grow it.
    """
    connection = connected()
    list(connection.receive(OPEN))
    list(connection.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 500))))
    assert connection.send_window(1) == 500
    connection.send_data(1, bytes(400))
    assert connection.send_window(1) == 100
    list(connection.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 300))))
    assert connection.send_window(1) == -100
    assert list(connection.receive(frame(WINDOW_UPDATE, 0, 1, number(1 << 20)))) == [http2.WindowUpdated(1)]
    assert connection.send_window(1) == 65_535 - 400
    assert list(connection.receive(frame(WINDOW_UPDATE, 0, 0, number(1000)))) == [http2.WindowUpdated(0)]
    assert connection.send_window(1) == 65_535 + 600


def test_what_is_acknowledged_may_be_sent_again() -> None:
    """
    The connection's window is returned once half of it is acknowledged; padding is returned to both windows at once.
    """
    connection = connected()
    list(connection.receive(OPEN))
    connection.acknowledge(50 * WINDOW - 1)
    assert connection.data_to_send() == b""
    connection.acknowledge(1)
    assert connection.data_to_send() == frame(WINDOW_UPDATE, 0, 0, number(50 * WINDOW))
    padded = frame(DATA, PADDED, 1, b"\x04data" + bytes(4))
    assert list(connection.receive(padded)) == [http2.DataReceived(1, b"data")]
    assert connection.data_to_send() == frame(WINDOW_UPDATE, 0, 1, number(5))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n", 1, id="another protocol"),
        pytest.param(frame(DATA, 0, 1, b"x"), 1, id="data of no stream"),
        pytest.param(frame(DATA, 0, 0, b"x"), 1, id="data of stream 0"),
        pytest.param(OPEN + frame(DATA, 0, 1, bytes(WINDOW + 1)), 3, id="more than the window"),
        pytest.param(OPEN + frame(DATA, PADDED, 1, b"\x05abc"), 1, id="more padding than frame"),
        pytest.param(OPEN + frame(DATA, PADDED, 1), 1, id="no room for the padding's size"),
        pytest.param(frame(DATA, 0, 1, bytes(16_385)), 6, id="a frame that is too large"),
        pytest.param(frame(PING, 0, 0, b"short"), 6, id="a short ping"),
        pytest.param(frame(SETTINGS, 0, 0, b"short"), 6, id="a cut setting"),
        pytest.param(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), 3, id="a window beyond all"),
        pytest.param(OPEN + frame(WINDOW_UPDATE, 0, 1, number(0)), 3, id="a window that grows by nothing"),
        pytest.param(frame(WINDOW_UPDATE, 0, 0, number((1 << 31) - 1)), 3, id="a window that grows beyond all"),
        pytest.param(frame(WINDOW_UPDATE, 0, 7, number(1)), 1, id="the window of no stream"),
        pytest.param(frame(RST_STREAM, 0, 7, number(0)), 1, id="the end of no stream"),
        pytest.param(frame(PUSH_PROMISE, 0, 1, number(2)), 1, id="a push"),
        pytest.param(frame(HEADERS, END_HEADERS, 2, BLOCK), 1, id="a server's stream"),
        pytest.param(frame(HEADERS, END_HEADERS, 1, b"\xff\xff"), 9, id="headers that cannot be read"),
        pytest.param(frame(CONTINUATION, END_HEADERS, 1, BLOCK), 1, id="a continuation of nothing"),
        pytest.param(frame(HEADERS, 0, 1, BLOCK) + frame(PING, 0, 0, bytes(8)), 1, id="headers without an end"),
        pytest.param(
            frame(HEADERS, 0, 1, BLOCK) + 5 * frame(CONTINUATION, 0, 1, bytes(16_000)), 11, id="endless headers"
        ),
    ],
)
def test_what_breaks_the_protocol(sent: bytes, code: int) -> None:
    """
    A violation of the protocol is an error, and the client gets its code.
    """
    connection = Connection(10, WINDOW, 100 * WINDOW) if sent.startswith(b"GET") else connected()
    with pytest.raises(ProtocolError):
        list(connection.receive(sent))
    assert goodbye(connection) == code


def test_headers_in_pieces() -> None:
    """
    A header block may come with padding and a priority, and in several frames.
    """
    first = frame(HEADERS, PADDED | PRIORITIZED | END_STREAM, 1, b"\x02" + bytes(5) + BLOCK[:3] + bytes(2))
    rest = frame(CONTINUATION, 0, 1, BLOCK[3:5]) + frame(CONTINUATION, END_HEADERS, 1, BLOCK[5:])
    request, ended = connected().receive(first + rest)
    assert isinstance(request, http2.RequestReceived)
    assert request.headers[b":path"] == b"/a/b"
    assert ended == http2.StreamEnded(1)


names = st.sampled_from(["a", "b", "grpc-timeout", "authorization"])
values = st.sampled_from(["", "x", "y" * 200, "z" * 4000])
blocks = st.lists(st.lists(st.tuples(names, values), max_size=5, unique_by=lambda header: header[0]), max_size=30)


@given(blocks)
def test_headers_are_what_was_sent(sent: Iterable[list[tuple[str, str]]]) -> None:
    """
    Repeated blocks are decoded correctly while the table that defines them changes.
    """
    connection, encoder = connected(streams=100), Encoder()
    for place, headers in enumerate(sent):
        block = encoder.encode(headers)
        (event,) = connection.receive(frame(HEADERS, END_HEADERS, 2 * place + 1, block))
        assert isinstance(event, http2.RequestReceived)
        assert event.headers == {name.encode(): value.encode() for name, value in headers}


@given(st.lists(st.tuples(st.text(min_size=1), st.text(max_size=400))))
def test_encoded_headers_are_read_by_hpack(headers: list[tuple[str, str]]) -> None:
    """
    hpack decodes every encoded header to the original.
    """
    decoded = Decoder().decode(encode_headers(headers), raw=True)
    assert [(bytes(name).decode(), bytes(value).decode()) for name, value in decoded] == headers


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
    Any bytes yield events or a ProtocolError, of which the client gets the code.
    """
    connection, broken = connected(), None
    try:
        for piece in pieces:
            for event in connection.receive(piece):
                assert isinstance(event, http2.Event)
    except ProtocolError as error:
        broken = error
    if broken:
        assert goodbye(connection) == broken.code
