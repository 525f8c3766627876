"""
The barrier of a store on btrfs: fsync of a directory, in turns where concurrent fsyncs slow each other down.
"""

import contextlib
import os
import threading
import time

from pybtrfs import mountinfo

TURN_SECONDS = 0.02  # wait for a turn; five jiffies of a kernel with HZ=250
OPTIONS_SECONDS = 10.0  # validity of the mount options, because reading all mounts takes milliseconds if there are many

WITHOUT_TURNS = frozenset(("ssd", "ssd_spread", "notreelog"))
"""
Mount options with which fsyncs take no turns.

With ``ssd`` the kernel does not sleep. With ``notreelog`` each fsync commits the filesystem, and concurrent fsyncs
share the commit.
"""


class Barrier:
    """
    fsync of any directory in the subvolume of *fd*.

    On a mount without the option ``ssd``, two tasks in the log of a subvolume make each commit of the log sleep for a
    jiffy. The sleep is repeated while further tasks come, and delays the commit of the filesystem. So the fsyncs take
    turns on such a mount.

    A turn only saves time, and the wait for it is short. On a slow disk the fsyncs then run concurrently, because the
    kernel writes them together. An fsync that hangs holds up no other for long.

    Args:
        turn_seconds: The longest wait for a turn.
        options_seconds: The time until a remount with other options counts.
    """

    def __init__(
        self, fd: int, *, turn_seconds: float = TURN_SECONDS, options_seconds: float = OPTIONS_SECONDS
    ) -> None:
        self._fd = fd
        self._turn_seconds = turn_seconds
        self._options_seconds = options_seconds
        self._turn = threading.Lock()
        self._takes_turns = False
        self._next_look = 0.0

    def __call__(self, fd: int) -> None:
        self._look()
        has_turn = self._takes_turns and self._turn.acquire(timeout=self._turn_seconds)
        try:
            os.fsync(fd)
        finally:
            if has_turn:
                self._turn.release()

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._options_seconds
        with contextlib.suppress(OSError):  # without /proc, as in a sandbox, or without descriptors
            mount = mountinfo.own(self._fd)
            self._takes_turns = mount is not None and WITHOUT_TURNS.isdisjoint(mount.options)
