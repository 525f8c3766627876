"""
Session: the time from open to close of a store, with checks before each call and the release of resources at the end.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

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
        resources: Closed at the end of the session, after the last call in progress.
        is_dead: Returns whether the filesystem is dead; called after an error that may be one object's own.
        why_read_only: The reason why the store cannot be changed; empty if it can.

    Attributes:
        failure: The reason why the filesystem is not used any more; empty while it works.
    """

    def __init__(
        self, root: str, resources: contextlib.ExitStack, why_read_only: str, is_dead: Callable[[], bool]
    ) -> None:
        self._root = root
        self._is_dead = is_dead
        self._resources = resources
        self.why_read_only = why_read_only
        self._pid = os.getpid()
        self._gate = threading.Condition()
        self._running = 0
        self._closed = False
        self.failure = ""

    def check(self) -> None:
        """
        Raise an error if the session has ended.

        Raises:
            FailedPreconditionError: The store is closed, or this is a forked child of the process that opened it.
        """
        if os.getpid() != self._pid:
            raise FailedPreconditionError("the store was opened before a fork: open it in the process that uses it")
        if self._closed:
            raise FailedPreconditionError(f"store {self._root!r} is closed")

    @contextlib.contextmanager
    def reading(self, doing: str) -> Iterator[None]:
        """
        Guard the body of a ``with`` that reads from the disk.

        Args:
            doing: The action, for the error ``cannot {doing}: ...``.
        """
        with self._using(), translating(doing):
            yield

    @contextlib.contextmanager
    def changing(self, doing: str) -> Iterator[None]:
        """
        Guard the body of a ``with`` that changes the store.

        After EIO or EROFS the filesystem is examined. If it is dead, all changes are refused from now on, and the
        session ends after the last call in progress. Without this, after an abort, fsync would succeed, files would
        show data that is not durable, and open descriptors would prevent unmounting. The index can still be read.

        Args:
            doing: The action, for the error ``cannot {doing}: ...``.
        """
        with self._using():
            if self.why_read_only:
                raise FailedPreconditionError(f"store {self._root!r} cannot be changed: {self.why_read_only}")
            try:
                yield
            except OSError as error:
                if error.errno in DEAD_ERRNOS and not self.failure and self._is_dead():
                    self.failure = f"the filesystem of {self._root!r} failed, {error.strerror}: mount it and reopen"
                    Event.FILESYSTEM_FAILED.emit(root=self._root, error=str(error))
                raise translated(doing, error) from error

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        with self._gate:
            self.check()
            failure = self.failure
            if failure:
                raise UnavailableError(failure)
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
        End the session after the calls in progress.

        In a forked child nothing is closed, because the session belongs to its parent process.
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
