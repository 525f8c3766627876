"""
Whose snapshots a store holds: one client's alone, for another's garbage collection would remove them.
"""

import contextlib
import threading
from collections.abc import Iterator

from snapshotter.errors import FailedPreconditionError, quoted
from snapshotter.store.index import Index
from snapshotter.store.store import Store


class Ownership:
    """
    Binds a store to the client that makes the first snapshot in it.
    """

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        self._lock = threading.Lock()
        self._making = 0

    def check(self, client: str) -> None:
        """
        Raises:
            FailedPreconditionError: The snapshots are another client's.
        """
        if self._store.header.client not in ("", client) and len(self._index):
            raise self._foreign(client)

    @contextlib.contextmanager
    def making(self, client: str) -> Iterator[None]:
        """
        Around the making of a snapshot: the first one binds the store to its client, and two cannot be first.

        Raises:
            FailedPreconditionError: The snapshots are another client's, or it is making the first one.
        """
        with self._lock:
            if self._store.header.client != client:
                if self._making:
                    raise self._foreign(client)
                self.check(client)
                self._store.change(client=client)
            self._making += 1
        try:
            yield
        finally:
            with self._lock:
                self._making -= 1

    def bind(self, client: str) -> None:
        """
        Make the snapshots those of *client*, whosever they were; durable.
        """
        with self._lock:
            self._store.change(client=client)

    def _foreign(self, client: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"store {self._store.root!r} holds the snapshots of client {self._store.header.client!r}, and "
            f"{quoted(client)} would delete them: make a second store beside it"
        )
