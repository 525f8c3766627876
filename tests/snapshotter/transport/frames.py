"""
Frames of HTTP/2 for tests: those of requests, and those that no library sends.
"""

from typing import NamedTuple

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a/b"),
    (":authority", "x"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
BLOCK = Encoder().encode(REQUEST)

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def split(data: bytes) -> list[Frame]:
    """
    Return the frames of *data*.
    """
    frames = []
    while data:
        size = 9 + int.from_bytes(data[:3], "big")
        frames.append(Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:size]))
        data = data[size:]
    return frames


HELLO = PREFACE + frame(SETTINGS, 0, 0)
OPEN = frame(HEADERS, END_HEADERS, 1, BLOCK)
