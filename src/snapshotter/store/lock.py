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

COMMAND_SIZE = 1000  # more does not tell a holder from others
# An ioctl in flight keeps the lock of a killed process until it ends, flushing all it has to.
DEAD_HOLDER_SECONDS = 60.0


class Lock:
    """
    The lock of a store, held until it is released or its process ends.
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
                        "stop it, or use what only reads",
                        holder.get("socket", ""),
                        client,
                    ) from error
            time.sleep(0.05)

    def _sign(self, holder: dict[str, Any]) -> None:
        # No shorter than what was there: whoever reads meanwhile finds one or the other.
        text = json.dumps(holder).encode().ljust(os.fstat(self._fd).st_size)
        try:
            os.pwrite(self._fd, text, 0)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            os.ftruncate(self._fd, 0)  # a full disk is emptied by who has the lock: better one without a name

    def _holder(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            holder = json.loads(os.pread(self._fd, 1 << 16, 0))
            if isinstance(holder, dict):
                return holder
        return {}

    def release(self) -> None:
        # A forked child shares the lock: only the process that took it gives it back.
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
    Whether a process runs; one that was killed, and cannot end before an ioctl does or was not yet collected, does not.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, flags, pending = fields[0], int(fields[6]), int(fields[28])
    return not (state in (b"Z", b"X") or flags & _PF_EXITING or pending & 1 << signal.SIGKILL - 1)
