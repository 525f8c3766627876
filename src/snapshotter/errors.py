"""
The snapshotter's errors, named after containerd's error kinds.

The class tells a program how to react; the message is for people. If an OSError caused an error, it is the error's
``__cause__``.
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
    "is_full",
    "quoted",
    "tolerating_full",
    "translated",
    "translating",
]

QUOTED_SIZE = 160  # characters; containerd's own keys have about a hundred

FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
EXHAUSTED_ERRNOS = {*FULL_ERRNOS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
DEAD_ERRNOS = {errno.EIO, errno.EROFS}  # signs of a filesystem that the kernel has aborted
DAMAGED_ERRNOS = {errno.EIO, errno.EUCLEAN, errno.ESTALE}  # signs of a block that cannot be read, or makes no sense

CURES = {
    # The kernel lets nobody destroy a subvolume whose parent is over a limit, but it lets files be deleted.
    errno.EDQUOT: ": raise the limit with `btrfs qgroup limit`, or mount a snapshot, delete files in it, and sync",
    errno.ETXTBSY: ": a swap file in the subvolume is in use: swapoff first",
    errno.EXDEV: ": something is mounted inside the subvolume: unmount it first",
    errno.EBUSY: ": the subvolume is mounted: unmount it first",
    errno.EPERM: ": CAP_SYS_ADMIN is missing, or the subvolume is being sent or is the default subvolume",
}


class Error(Exception):
    """
    The base class of all errors of the snapshotter.
    """


class NotFoundError(Error):
    """
    No snapshot has the given key.
    """


class AlreadyExistsError(Error):
    """
    The key or name is taken.
    """


class InvalidArgumentError(Error):
    """
    The arguments are wrong in every state of the store.
    """


class FailedPreconditionError(Error):
    """
    The arguments are valid, but the state of the snapshot or the store forbids the call.
    """


class ResourceExhaustedError(Error):
    """
    Space, memory, file descriptors or a quota ran out.
    """


class UnavailableError(Error):
    """
    The store cannot serve the call now; the same call may succeed later.
    """


class StoreHeldError(UnavailableError):
    """
    Another process has the store open for writing.

    Attributes:
        socket: The address at which that process serves the store; empty if it does not serve.
        client: The client to which the store is bound; empty if it has never had a snapshot.
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
    This installation, kernel or filesystem does not support the call (containerd's Unimplemented).
    """


def is_damage(error: OSError) -> bool:
    """
    Return whether *error* can come from a damaged file or subvolume on a filesystem that works otherwise.
    """
    return error.errno in DAMAGED_ERRNOS


def is_full(error: BaseException) -> bool:
    """
    Return whether *error* says that the disk or a quota is full.
    """
    return isinstance(error, OSError) and error.errno in FULL_ERRNOS


@contextlib.contextmanager
def tolerating_full() -> Iterator[None]:
    """
    End the ``with`` at a call that finds the disk or a quota full: opening, removing and cleaning up need no space.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


def quoted(value: object) -> str:
    """
    Return the repr of *value* for a message. A long text is cut, because gRPC sends messages in a header.
    """
    if isinstance(value, str) and len(value) > QUOTED_SIZE:
        return f"{value[:QUOTED_SIZE]!r}..."
    return repr(value)


@contextlib.contextmanager
def translating(doing: str) -> Iterator[None]:
    """
    Translate an OSError raised in the ``with`` by `translated`. BrokenPipeError passes through unchanged.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise translated(doing, error) from error


def translated(doing: str, error: OSError) -> Error:
    """
    Return the snapshotter's error for the kernel's refusal of *doing*, with the cure if there is a known one.
    """
    text = f"cannot {doing}: {error.strerror or error}"
    cure = CURES.get(error.errno or 0, "")
    if error.errno in EXHAUSTED_ERRNOS:
        return ResourceExhaustedError(text + cure)
    if error.errno in DEAD_ERRNOS:
        return UnavailableError(text)
    if error.errno == errno.ENOENT:
        return DataLossError(f"{text}: somebody deleted its subvolume")
    return FailedPreconditionError(text + cure)
