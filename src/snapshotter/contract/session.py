"""
The time that a store is open: who may use it, what the kernel's refusals mean, and when its descriptors are let go.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

from snapshotter.errors import (
    DEAD_ERRNOS,
    FailedPreconditionError,
    UnavailableError,
    translated,
    translating,
)
from snapshotter.events import Event


class Session:
    """
    An open store.

    Args:
        resources: Closed when the session ends, once no call is under way.
        why_read_only: Why nothing may be changed; empty when it may.

    Attributes:
        failure: Why the disk is not asked any more; empty while it is.
    """

    def __init__(self, root: str, resources: contextlib.ExitStack, why_read_only: str) -> None:
        self._root = root
        self._resources = resources
        self.why_read_only = why_read_only
        self._pid = os.getpid()
        self._gate = threading.Condition()
        self._running = 0
        self._closed = False
        self.failure = ""

    def check(self) -> None:
        """
        Raises:
            FailedPreconditionError: The store is closed, or this is another process.
        """
        if os.getpid() != self._pid:
            raise FailedPreconditionError("the store was opened before a fork: open it in the process that uses it")
        if self._closed:
            raise FailedPreconditionError(f"store {self._root!r} is closed")

    @contextlib.contextmanager
    def reading(self, doing: str) -> Iterator[None]:
        """
        Around what reads from the disk; *doing* is said when it fails.
        """
        with self._using(), translating(doing):
            yield

    @contextlib.contextmanager
    def changing(self, doing: str) -> Iterator[None]:
        """
        Around what changes the store.

        The first sign that the filesystem is dead ends all changes, and the session once nobody is in it: after an
        abort the kernel answers OK to barriers, shows what was never durable, and cannot unmount while we hold it.
        What is in memory can still be read.
        """
        with self._using():
            if self.why_read_only:
                raise FailedPreconditionError(f"store {self._root!r} cannot be changed: {self.why_read_only}")
            try:
                yield
            except OSError as error:
                if error.errno in DEAD_ERRNOS:
                    self.failure = f"the filesystem of {self._root!r} failed, {error.strerror}: mount it and reopen"
                    Event.FILESYSTEM_FAILED.emit(root=self._root, error=str(error))
                raise translated(doing, error) from error

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        with self._gate:
            self.check()
            if self.failure:
                raise UnavailableError(self.failure)
            self._running += 1
        try:
            yield
        finally:
            with self._gate:
                self._running -= 1
                self._gate.notify_all()
            if self.failure:
                self._end()

    def close(self) -> None:
        """
        End the session when the calls under way have returned. A forked child's descriptors go with the child.
        """
        if os.getpid() != self._pid:
            return
        with self._gate:
            self._closed = True
            self._gate.wait_for(lambda: not self._running)
        self._end()

    def _end(self) -> None:
        with self._gate:
            if self._running:
                return
            resources = self._resources.pop_all()
        resources.close()
