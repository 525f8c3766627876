"""
Ownership of a store: one client owns all snapshots, because a second client's garbage collection would remove them.
"""

import contextlib
import threading
from collections.abc import Iterator

from snapshotter.errors import FailedPreconditionError, quoted
from snapshotter.store.index import Index
from snapshotter.store.store import Store


class Ownership:
    """
    The binding of a store to the client that creates its first snapshot.
    """

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        self._lock = threading.Lock()
        self._creating = 0

    @property
    def client(self) -> str:
        """
        The client that the store is bound to; empty before its first snapshot, or if the store's record was replaced.
        """
        return self._store.header.client

    def check(self, client: str) -> None:
        """
        Raise an error unless *client* may change the store.

        Raises:
            FailedPreconditionError: The store has snapshots of another client.
        """
        if self._store.header.client not in ("", client) and len(self._index):
            raise self._foreign(client)

    @contextlib.contextmanager
    def making(self, client: str) -> Iterator[None]:
        """
        Create a snapshot of *client* inside the ``with``; the first snapshot binds the store to its client.

        Raises:
            FailedPreconditionError: The store has snapshots of another client, or another client is creating the first.
        """
        with self._lock:
            if self._store.header.client != client:
                if self._creating:
                    raise self._foreign(client)
                self.check(client)
                self._store.change(client=client)
            self._creating += 1
        try:
            yield
        finally:
            with self._lock:
                self._creating -= 1

    def bind(self, client: str) -> None:
        """
        Give the store and all its snapshots to *client*, durably.
        """
        with self._lock:
            self._store.change(client=client)

    def _foreign(self, client: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"store {self._store.root!r} holds the snapshots of client {self._store.header.client!r}, and "
            f"{quoted(client)} would delete them: make a second store beside it"
        )
