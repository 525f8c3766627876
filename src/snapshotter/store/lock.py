"""
Lock of a store.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import time
from types import TracebackType
from typing import Any, Self

from snapshotter.errors import (
    StoreHeldError,
)
from snapshotter.store.layout import LOCK

COMMAND_SIZE = 1000  # characters; a longer command line identifies the holder no better
# A killed process keeps the lock until its ioctl in flight ends, which may have to flush much data.
DEAD_HOLDER_SECONDS = 60.0


class Lock:
    """
    The lock of a store, held until it is released or the process ends.
    """

    def __init__(self, root_fd: int, root: str, socket: str = "", client: str = "") -> None:
        self._pid = os.getpid()
        self._fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=root_fd)
        try:
            self._take(root, client)
            self._sign({"pid": self._pid, "command": " ".join(sys.argv)[:COMMAND_SIZE], "socket": socket})
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, root: str, client: str) -> None:
        deadline = time.monotonic() + DEAD_HOLDER_SECONDS
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = self._holder()
                pid = holder.get("pid")
                if pid is None or _alive(pid) or time.monotonic() > deadline:
                    raise StoreHeldError(
                        f"store {root!r} is held by process {pid or '?'} ({holder.get('command', 'unknown')}): "
                        "stop it, or use a command that only reads",
                        holder.get("socket", ""),
                        client,
                    ) from error
            time.sleep(0.05)

    def _sign(self, holder: dict[str, Any]) -> None:
        # At least as long as the text before, because a concurrent reader then finds one text or the other.
        text = json.dumps(holder).encode().ljust(os.fstat(self._fd).st_size)
        try:
            os.pwrite(self._fd, text, 0)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # Emptying a full disk needs the lock: a nameless holder is better than no holder.
            os.ftruncate(self._fd, 0)

    def _holder(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            holder = json.loads(os.pread(self._fd, 1 << 16, 0))
            if isinstance(holder, dict):
                return holder
        return {}

    def release(self) -> None:
        # A forked child shares the lock, so only the process that took it gives it back.
        if os.getpid() == self._pid:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


_PF_EXITING = 0x4


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
