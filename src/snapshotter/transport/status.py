"""
gRPC's statuses, and the encoding of their texts.
"""

import enum
from urllib.parse import quote

__all__ = ["MAX_TEXT_SIZE", "Status", "encode_text"]

MAX_TEXT_SIZE = 4_096  # characters of an error, because clients limit the size of headers

_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Status(enum.IntEnum):
    """
    The statuses of a call.
    """

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def encode_text(text: str) -> bytes:
    """
    Return *text* in the encoding of the header ``grpc-message``, cut if it is too long.
    """
    if len(text) > MAX_TEXT_SIZE:
        text = f"{text[:MAX_TEXT_SIZE]}..."
    return quote(text.encode(errors="backslashreplace"), safe=_PLAIN).encode()
