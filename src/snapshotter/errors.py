"""
What the snapshotter raises: containerd's error kinds, by their names.

The kind tells a caller what to do, the text tells a person what happened. An
OSError behind an error is its ``__cause__``.
"""

__all__ = [
    "AlreadyExistsError",
    "DataLossError",
    "Error",
    "FailedPreconditionError",
    "InvalidArgumentError",
    "NotFoundError",
    "NotSupportedError",
    "ResourceExhaustedError",
    "StoreHeldError",
    "UnavailableError",
    "quoted",
]

QUOTED_SIZE = 160  # characters; containerd's own keys have about a hundred


def quoted(value: object) -> str:
    """
    *value* as an error repeats it, of a long text the beginning: errors travel in headers.
    """
    if isinstance(value, str) and len(value) > QUOTED_SIZE:
        return f"{value[:QUOTED_SIZE]!r}..."
    return repr(value)


class Error(Exception):
    """
    The base of everything below.
    """


class NotFoundError(Error):
    """
    No snapshot has that key.
    """


class AlreadyExistsError(Error):
    """
    The key or name is taken.
    """


class InvalidArgumentError(Error):
    """
    The arguments are wrong whatever the state of the store.
    """


class FailedPreconditionError(Error):
    """
    The arguments are right, and the state of the snapshot forbids the call.
    """


class ResourceExhaustedError(Error):
    """
    Space, memory, file descriptors or a quota ran out.
    """


class UnavailableError(Error):
    """
    The store cannot serve this now; the same call may succeed later.
    """


class StoreHeldError(UnavailableError):
    """
    Another process has the store open for writing.

    Attributes:
        socket: Where it serves the store; empty where it does not.
        client: Whose snapshots the store has; empty while nobody's.
    """

    def __init__(self, text: str, socket: str = "", client: str = "") -> None:
        super().__init__(text)
        self.socket = socket
        self.client = client


class DataLossError(Error):
    """
    Data of the snapshot is gone or cannot be trusted.
    """


class NotSupportedError(Error):
    """
    This installation, kernel or filesystem cannot do that (containerd's Unimplemented).
    """
