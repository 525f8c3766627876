"""
Ownership of a store: the first snapshot binds it to a client, and other clients are refused while it has snapshots.
"""

from typing import Any

import pytest

from snapshotter.errors import FailedPreconditionError
from snapshotter.store.header import Header
from snapshotter.store.index import Index, Snapshot
from snapshotter.store.ownership import Ownership
from snapshotter.store.records import Record, State


class FakeStore:
    root = "/root"

    def __init__(self) -> None:
        self.header = Header("uuid", {})

    def change(self, **values: Any) -> None:
        self.header = self.header._replace(**values)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def index() -> Index:
    return Index()


@pytest.fixture
def ownership(store: FakeStore, index: Index) -> Ownership:
    return Ownership(store, index)  # type: ignore[arg-type]  # all of a store that ownership uses


REFUSED = "store '/root' holds the snapshots of client 'a', and 'b' would delete them: make a second store beside it"


def test_first_snapshot(store: FakeStore, index: Index, ownership: Ownership) -> None:
    """
    The first snapshot binds the store to its client, and other clients are refused from then on.
    """
    with ownership.making("a"):
        index.add(Snapshot(Record(1, State.ACTIVE, "k"), None))
    assert store.header.client == "a"
    ownership.check("a")
    with ownership.making("a"):
        pass
    with pytest.raises(FailedPreconditionError, match=REFUSED):
        ownership.check("b")
    with pytest.raises(FailedPreconditionError, match=REFUSED), ownership.making("b"):
        pytest.fail("entered")


def test_two_first_snapshots(store: FakeStore, ownership: Ownership) -> None:
    """
    While a client creates the first snapshot, another client is refused.
    """
    with ownership.making("a"):
        with pytest.raises(FailedPreconditionError, match=REFUSED), ownership.making("b"):
            pytest.fail("entered")
        with ownership.making("a"):
            pass
    assert store.header.client == "a"


def test_empty_store(store: FakeStore, ownership: Ownership) -> None:
    """
    A store without snapshots accepts another client.
    """
    with ownership.making("a"):
        pass
    ownership.check("b")
    with ownership.making("b"):
        pass
    assert store.header.client == "b"


def test_bind(store: FakeStore, index: Index, ownership: Ownership) -> None:
    """
    `bind` gives the snapshots of one client to another.
    """
    index.add(Snapshot(Record(1, State.ACTIVE, "k"), None))
    ownership.bind("b")
    ownership.bind("a")
    ownership.check("a")
    with pytest.raises(FailedPreconditionError, match=REFUSED):
        ownership.check("b")
