"""
Listening unix sockets with a path, accessible to their owner only.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator

from snapshotter.errors import FailedPreconditionError, NotFoundError, StoreHeldError

BACKLOG = 4_096  # connections that wait to be accepted


@contextlib.contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """
    Listen at the path *address* during the ``with``, with mode 0600.

    The directory of the path is created with mode 0700 if it is missing, and removed at the end if it was created.
    A stale socket, left by a process that has ended, is replaced.

    Raises:
        NotFoundError: The parent of the directory does not exist.
        StoreHeldError: Another process listens at *address*.
        FailedPreconditionError: *address* exists and is not a socket.
    """
    with contextlib.ExitStack() as undo:
        directory = os.path.dirname(address)
        try:
            os.mkdir(directory, 0o700)
            undo.callback(_remove_directory, directory)
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise NotFoundError(f"{os.path.dirname(directory)!r} does not exist: make it first") from error
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            _bind(listener, address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(address)
            _bind(listener, address)
        undo.callback(_remove_own, address, os.lstat(address))
        listener.listen(BACKLOG)
        yield listener


def _bind(listener: socket.socket, address: str) -> None:
    before = os.umask(0o177)
    try:
        listener.bind(address)
    except OSError as error:
        error.filename = address
        raise
    finally:
        os.umask(before)


def _remove_stale(address: str) -> None:
    """
    Remove the socket of a process that has ended.
    """
    if not stat.S_ISSOCK(os.lstat(address).st_mode):
        raise FailedPreconditionError(f"{address!r} exists and is not a socket: choose another address")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            os.unlink(address)
            return
        except BlockingIOError:
            who = "a busy process"  # its backlog is full
        else:
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            who = f"process {pid}"
    raise StoreHeldError(f"{who} serves at {address!r}: stop it, or choose another address")


def _remove_own(address: str, made: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(address), made):
            os.unlink(address)


def _remove_directory(path: str) -> None:
    with contextlib.suppress(OSError):  # the directory is in use
        os.rmdir(path)
