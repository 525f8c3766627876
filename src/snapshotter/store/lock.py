"""
Lock of a store: one process has the store for writing, and others learn which.

The lock is flock(2) on the file ``lock``. The text of that file is only a comment with the holder's pid, command
and socket. No error of writing the text fails the lock, because a full disk is emptied by the holder of the lock.
"""

import contextlib
import fcntl
import itertools
import json
import os
import signal
import sys
import time
from typing import Any, NamedTuple, Self

from pybtrfs import processes
from snapshotter.errors import StoreHeldError
from snapshotter.store.layout import LOCK

COMMAND_SIZE = 1000  # characters; a longer command line identifies the holder no better
# A killed process keeps the lock until its ioctl in flight ends, which may have to flush much data.
DEAD_HOLDER_SECONDS = 60.0
# The holder can be invisible: it released the lock a moment ago, or runs in another pid namespace.
UNSEEN_HOLDER_SECONDS = 1.0

_PF_EXITING = 0x4


class Holder(NamedTuple):
    """
    The process that has a store.

    Attributes:
        pid: 0 if it is unknown.
        socket: The address at which it serves the store; empty if it does not.
    """

    pid: int = 0
    command: str = "unknown"
    socket: str = ""


class Lock:
    """
    The lock of a store, held until it is released or the process ends.
    """

    def __init__(self, root_fd: int, root: str, socket: str = "", client: str = "") -> None:
        """
        Take the lock of the store *root*, the open directory *root_fd*.

        Args:
            socket: The address at which this process serves the store.
            client: The owner of the snapshots, for the error.

        Raises:
            StoreHeldError: A process has the lock.
        """
        self._pid = os.getpid()
        self._fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=root_fd)
        try:
            self._take(root, client)
            self._sign(Holder(self._pid, " ".join(sys.argv)[:COMMAND_SIZE], socket))
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, root: str, client: str) -> None:
        started = time.monotonic()
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder, dying = self._holder()
                patience = DEAD_HOLDER_SECONDS if dying else 0 if holder.pid else UNSEEN_HOLDER_SECONDS
                if time.monotonic() - started >= patience:
                    raise StoreHeldError(
                        f"store {root!r} is held by process {holder.pid or '?'} ({holder.command}): "
                        "stop it, or use a command that only reads",
                        holder.socket,
                        client,
                    ) from error
            time.sleep(0.05)

    def _sign(self, holder: Holder) -> None:
        # At least as long as the text before, because a concurrent reader then finds one text or the other.
        text = json.dumps(holder._asdict()).encode()
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, text.ljust(os.fstat(self._fd).st_size), 0)

    def _holder(self) -> tuple[Holder, bool]:
        """
        Return the holder, and whether it is dying. A forked child shares the lock, and outlives the signer.
        """
        signed = _signed(self._fd)
        status = os.fstat(self._fd)
        dying = False
        for pid in itertools.chain([signed.pid], map(int, processes.pids())):
            if pid and _has_lock(pid, status):
                if _alive(pid):
                    command = processes.command(pid, COMMAND_SIZE) or "unknown"
                    return (signed if pid == signed.pid else Holder(pid, command)), False
                dying = True
        # Without permission to look at its files, the signer is the holder as long as it lives.
        return (signed if dying or _alive(signed.pid) else Holder()), dying

    def release(self) -> None:
        """
        Give back the lock. A forked child, which shares it, only closes its descriptor.
        """
        if os.getpid() == self._pid:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def find_holder(root: str) -> Holder | None:
    """
    Return the process that has the store at *root*, by the text of the lock; None if no process has it.
    """
    try:
        fd = os.open(os.path.join(root, LOCK), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        # Held for a moment, for which a process that takes the lock waits.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _signed(fd)
    else:
        return None
    finally:
        os.close(fd)


def _signed(fd: int) -> Holder:
    """
    Return the holder by the text of the open lock *fd*, which may be an earlier one.
    """
    with contextlib.suppress(ValueError):
        text: Any = json.loads(os.pread(fd, 1 << 16, 0))
        if isinstance(text, dict) and isinstance(text.get("pid"), int):
            return Holder(text["pid"], str(text.get("command", "unknown")), str(text.get("socket", "")))
    return Holder()


def _has_lock(pid: int, lock: os.stat_result) -> bool:
    """
    Return whether an open file of the process *pid* has a lock of the file *lock*.
    """
    # A process can end at any time, and others' files may be hidden.
    with contextlib.suppress(OSError):
        # The first thread of a dying process has no files any more, while another one is in a call.
        for thread in os.listdir(f"/proc/{pid}/task"):
            files = f"/proc/{pid}/task/{thread}"
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if names := os.listdir(f"{files}/fd"):
                    return any(_is_locked(files, name, lock) for name in names)
    return False


def _is_locked(files: str, fd: str, lock: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(f"{files}/fd/{fd}"), lock):
            with open(f"{files}/fdinfo/{fd}") as file:
                return "\nlock:" in file.read()
    return False


def _alive(pid: int) -> bool:
    """
    Return whether the process *pid* runs. A killed process does not, even while an ioctl in flight delays its end.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, flags, pending = fields[0], int(fields[6]), int(fields[28])
    return not (state in (b"Z", b"X") or flags & _PF_EXITING or pending & 1 << signal.SIGKILL - 1)
