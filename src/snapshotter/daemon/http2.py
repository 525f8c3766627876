"""
The server's side of HTTP/2, without I/O: from bytes to events, and from answers to bytes.

The h2 library would take three times as long as the rest of a call. gRPC clients do not need its further features:
pushing, priorities, arbitrary headers and trailers. hpack decodes the header blocks.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError

__all__ = [
    "Connection",
    "DataReceived",
    "ProtocolError",
    "RequestReceived",
    "StreamEnded",
    "StreamReset",
    "WindowUpdated",
    "encode_headers",
]

MAX_WINDOW = (1 << 31) - 1
FRAME_SIZE = 16_384  # bytes, the limit in both directions
MAX_HEADERS_SIZE = 65_536

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DEFAULT_WINDOW = 65_535
_KNOWN_BLOCKS = 100

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_SIZES = {_PRIORITY: 5, _RST_STREAM: 4, _PING: 8, _WINDOW_UPDATE: 4}
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _PRIORITIZED = 0x4, 0x8, 0x20
_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE, _MAX_HEADER_LIST_SIZE = 0x3, 0x4, 0x5, 0x6
_NO_ERROR, _PROTOCOL_ERROR, _FLOW_CONTROL_ERROR, _FRAME_SIZE_ERROR, _REFUSED_STREAM = 0x0, 0x1, 0x3, 0x6, 0x7
_COMPRESSION_ERROR, _ENHANCE_YOUR_CALM = 0x9, 0xB

_FRAME = struct.Struct(">HBBBI")  # size in three bytes, type, flags, stream
_NUMBER = struct.Struct(">I")
_SETTING = struct.Struct(">HI")
_GOODBYE = struct.Struct(">II")


class ProtocolError(Exception):
    """
    The client broke the protocol. The caller sends the pending data, and closes the connection.
    """

    def __init__(self, text: str, code: int = _PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code


class RequestReceived(NamedTuple):
    stream_id: int
    headers: dict[bytes, bytes]


class DataReceived(NamedTuple):
    stream_id: int
    data: bytes


class StreamEnded(NamedTuple):
    """
    The request is complete.
    """

    stream_id: int


class StreamReset(NamedTuple):
    """
    The client cancelled the request.
    """

    stream_id: int


class WindowUpdated(NamedTuple):
    """
    More data can be sent, on one stream or, with *stream_id* 0, on all.
    """

    stream_id: int


Event = RequestReceived | DataReceived | StreamEnded | StreamReset | WindowUpdated


class _Stream:
    __slots__ = ("ended", "receive_window", "send_window")

    def __init__(self, send_window: int, receive_window: int) -> None:
        self.send_window = send_window
        self.receive_window = receive_window
        self.ended = False  # by the client


class Connection:
    """
    The state of a connection.

    Args:
        max_streams: The limit of streams open at the same time.
        stream_window: The limit of data that the client sends on a stream, in bytes, over its whole life.
        window: The limit of data that the client sends before `acknowledge`, in bytes.
    """

    def __init__(self, max_streams: int, stream_window: int, window: int) -> None:
        self.max_frame_size = FRAME_SIZE
        self._max_streams = max_streams
        self._stream_window = stream_window
        self._window = window
        self._receive_window = window
        self._acknowledged = 0
        self._send_window = _DEFAULT_WINDOW
        self._stream_send_window = _DEFAULT_WINDOW
        self._streams: dict[int, _Stream] = {}
        self._last_id = 0
        self._decoder = Decoder(MAX_HEADERS_SIZE)
        self._known: dict[bytes, dict[bytes, bytes]] = {}
        self._block: tuple[int, int, bytes] | None = None
        self._received = b""
        self._greeted = False
        self._to_send = bytearray()
        settings = (
            (_MAX_CONCURRENT_STREAMS, max_streams),
            (_INITIAL_WINDOW_SIZE, stream_window),
            (_MAX_HEADER_LIST_SIZE, MAX_HEADERS_SIZE),
        )
        self._add(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings))
        self._add(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(window - _DEFAULT_WINDOW))

    # -- sending

    def data_to_send(self) -> bytes:
        """
        Return the bytes to send to the client, and forget them.
        """
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def _add(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._to_send += _FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream_id)
        self._to_send += payload

    def send_headers(self, stream_id: int, block: bytes, *, end_stream: bool = False) -> None:
        """
        Args:
            block: Results of `encode_headers`, joined.
            end_stream: Ends the stream. If the request is incomplete, the client is told to send no more of it.
        """
        self._add(_HEADERS, _END_HEADERS | (_END_STREAM if end_stream else 0), stream_id, block)
        if end_stream and not self._streams.pop(stream_id).ended:
            self._add(_RST_STREAM, 0, stream_id, _NUMBER.pack(_NO_ERROR))

    def send_window(self, stream_id: int) -> int:
        """
        Return the number of bytes that may be sent on a stream. It can be negative.
        """
        return min(self._send_window, self._streams[stream_id].send_window)

    def send_data(self, stream_id: int, data: bytes) -> None:
        self._send_window -= len(data)
        self._streams[stream_id].send_window -= len(data)
        self._add(_DATA, 0, stream_id, data)

    def acknowledge(self, size: int) -> None:
        """
        Let the client send *size* bytes more on the connection.
        """
        self._acknowledged += size
        if self._acknowledged >= self._window // 2:
            self._add(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._acknowledged))
            self._receive_window += self._acknowledged
            self._acknowledged = 0

    def close(self, code: int = _NO_ERROR) -> None:
        self._add(_GOAWAY, 0, 0, _GOODBYE.pack(self._last_id, code))

    # -- receiving

    def receive(self, data: bytes) -> Iterator[Event]:
        """
        Yield the events in *data*. The data after an event is parsed after the event is handled.

        Raises:
            ProtocolError: The client broke the protocol.
        """
        try:
            yield from self._receive(self._received + data)
        except ProtocolError as error:
            self.close(error.code)
            raise

    def _receive(self, data: bytes) -> Iterator[Event]:
        at = 0
        if not self._greeted:
            if not data.startswith(_PREFACE[: len(data)]):
                raise ProtocolError("the client does not speak HTTP/2")
            if len(data) >= len(_PREFACE):
                self._greeted = True
                at = len(_PREFACE)
        while self._greeted and len(data) - at >= _FRAME.size:
            upper, lower, kind, flags, stream_id = _FRAME.unpack_from(data, at)
            size = upper << 8 | lower
            if size > FRAME_SIZE or size != _SIZES.get(kind, size):
                raise ProtocolError(f"a frame of type {kind} has {size} bytes", _FRAME_SIZE_ERROR)
            end = at + _FRAME.size + size
            if len(data) < end:
                break
            if self._block and kind != _CONTINUATION:
                raise ProtocolError("a header block has no end")
            yield from self._on_frame(kind, flags, stream_id & MAX_WINDOW, data[at + _FRAME.size : end])
            at = end
        self._received = data[at:]

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Iterator[Event]:
        if kind == _DATA:
            yield from self._on_data(flags, stream_id, payload)
        elif kind in (_HEADERS, _CONTINUATION):
            yield from self._on_headers(kind, flags, stream_id, payload)
        elif kind == _WINDOW_UPDATE:
            yield from self._on_window_update(stream_id, _NUMBER.unpack(payload)[0] & MAX_WINDOW)
        elif kind == _PING:
            if not flags & _ACK:
                self._add(_PING, _ACK, 0, payload)
        elif kind == _SETTINGS:
            if not flags & _ACK:
                yield from self._on_settings(payload)
        elif kind == _RST_STREAM:
            self._check_opened(stream_id)
            if self._streams.pop(stream_id, None):
                yield StreamReset(stream_id)
        elif kind == _PUSH_PROMISE:
            raise ProtocolError("a client cannot push")

    def _check_opened(self, stream_id: int) -> None:
        if not stream_id & 1 or stream_id > self._last_id:
            raise ProtocolError(f"stream {stream_id} was never opened")

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> Iterator[Event]:
        self._check_opened(stream_id)
        size = len(payload)
        stream = self._streams.get(stream_id)
        self._receive_window -= size
        if stream:
            stream.receive_window -= size
        if self._receive_window < 0 or (stream and stream.receive_window < 0):
            raise ProtocolError("the client exceeded a window", _FLOW_CONTROL_ERROR)
        if stream is None or stream.ended:
            self.acknowledge(size)  # sent before the client received the end
            return
        if flags & _PADDED:
            payload = _unpadded(payload)
            padding = size - len(payload)
            stream.receive_window += padding
            self._add(_WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(padding))
            self.acknowledge(padding)
        yield DataReceived(stream_id, payload)
        if flags & _END_STREAM:
            yield from self._on_end(stream_id)

    def _on_end(self, stream_id: int) -> Iterator[Event]:
        if stream := self._streams.get(stream_id):  # an early answer may have removed it
            stream.ended = True
            yield StreamEnded(stream_id)

    def _on_headers(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Iterator[Event]:
        if kind == _CONTINUATION:
            if not self._block or self._block[0] != stream_id:
                raise ProtocolError("a continuation has no header block")
            _, begun_flags, begun = self._block
            self._block = (stream_id, begun_flags, begun + payload)
        else:
            if flags & _PADDED:
                payload = _unpadded(payload)
            self._block = (stream_id, flags, payload[5:] if flags & _PRIORITIZED else payload)
        _, begun_flags, block = self._block
        if len(block) > MAX_HEADERS_SIZE:
            raise ProtocolError("a header block is too large", _ENHANCE_YOUR_CALM)
        if not flags & _END_HEADERS:
            return
        self._block = None
        headers = self._decode(block)
        if stream_id > self._last_id:
            if not stream_id & 1:
                raise ProtocolError(f"stream {stream_id} has the number of a server's stream")
            self._last_id = stream_id
            if len(self._streams) >= self._max_streams:
                self._add(_RST_STREAM, 0, stream_id, _NUMBER.pack(_REFUSED_STREAM))
                return
            self._streams[stream_id] = _Stream(self._stream_send_window, self._stream_window)
            yield RequestReceived(stream_id, headers)
        if begun_flags & _END_STREAM:
            yield from self._on_end(stream_id)

    def _decode(self, block: bytes) -> dict[bytes, bytes]:
        """
        Return the headers of a block. Hot path: decoded blocks are cached, because clients repeat a few of them.
        """
        headers = self._known.get(block)
        if headers is None:
            table = self._decoder.header_table.dynamic_entries
            before = len(table), table and table[0]
            try:
                headers = dict(self._decoder.decode(block, raw=True))
            except HPACKError as error:
                raise ProtocolError(f"a header block cannot be decoded: {error}", _COMPRESSION_ERROR) from error
            if (len(table), table and table[0]) != before or len(self._known) == _KNOWN_BLOCKS:
                self._known.clear()  # the table changed, so the same bytes may mean other headers
            else:
                self._known[block] = headers
        return headers

    def _on_window_update(self, stream_id: int, increment: int) -> Iterator[Event]:
        if not stream_id:
            window = self._send_window = self._send_window + increment
        else:
            self._check_opened(stream_id)
            stream = self._streams.get(stream_id)
            if stream is None:
                return
            window = stream.send_window = stream.send_window + increment
        if not increment or window > MAX_WINDOW:
            raise ProtocolError(f"a window grows by {increment}", _FLOW_CONTROL_ERROR)
        yield WindowUpdated(stream_id)

    def _on_settings(self, payload: bytes) -> Iterator[Event]:
        if len(payload) % _SETTING.size:
            raise ProtocolError(f"settings have {len(payload)} bytes", _FRAME_SIZE_ERROR)
        for name, value in _SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise ProtocolError(f"a window of {value} exceeds the limit", _FLOW_CONTROL_ERROR)
                for stream in self._streams.values():
                    stream.send_window += value - self._stream_send_window
                self._stream_send_window = value
            elif name == _MAX_FRAME_SIZE:
                self.max_frame_size = max(FRAME_SIZE, min(value, 0xFFFFFF))
        self._add(_SETTINGS, _ACK, 0, b"")
        yield WindowUpdated(0)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("the padding exceeds the frame")
    return payload[1 : len(payload) - payload[0]]


def encode_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """
    Return a header block that uses no table, so that it is valid on every connection.
    """
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers)


def _literal(text: str) -> bytes:
    data = text.encode()
    size = len(data)
    if size < 0x7F:
        return bytes((size,)) + data
    size -= 0x7F
    head = bytearray((0x7F,))
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data
