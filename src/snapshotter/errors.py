"""
What the snapshotter raises: containerd's error kinds, by their names.

The kind tells a caller what to do, the text tells a person what happened. An
OSError behind an error is its ``__cause__``.
"""

import contextlib
import errno
from collections.abc import Iterator

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


_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
_DEAD = {errno.EIO, errno.EROFS}
_CURES = {
    errno.ETXTBSY: ": a swap file in it is in use: swapoff first",
    errno.EXDEV: ": something is mounted in it: unmount that first",
    errno.EBUSY: ": it is mounted: unmount it first",
    errno.EPERM: ": CAP_SYS_ADMIN is missing, or it is being sent or is the default subvolume",
}


@contextlib.contextmanager
def translating(doing: str) -> Iterator[None]:
    """
    Raise what the contract calls the kernel's refusal of *doing*. That somebody closed a pipe is none.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _translated(doing, error) from error


def _translated(doing: str, error: OSError) -> Error:
    text = f"cannot {doing}: {error.strerror or error}"
    if error.errno in _EXHAUSTED:
        return ResourceExhaustedError(text)
    if error.errno in _DEAD:
        return UnavailableError(text)
    if error.errno == errno.ENOENT:
        return DataLossError(f"{text}: somebody deleted its subvolume")
    return FailedPreconditionError(text + _CURES.get(error.errno or 0, ""))
