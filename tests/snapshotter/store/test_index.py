"""
Index of a store: the snapshots in memory, and the locks of keys.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from snapshotter.errors import NotFoundError
from snapshotter.model import Info, Kind, Measured, Usage
from snapshotter.store.index import Index, Snapshot
from snapshotter.store.records import Record, State

PATIENCE = 10


def snapshot(key: str, parent: Snapshot | None = None, state: State = State.COMMITTED) -> Snapshot:
    return Snapshot(Record(1, state, key), parent)


@pytest.fixture
def index() -> Index:
    """
    "base" with the child "child".
    """
    index = Index()
    base = snapshot("base")
    index.add(base)
    index.add(snapshot("child", base))
    return index


@contextmanager
def holding(index: Index, *keys: str, parent: str = "") -> Iterator[None]:
    """
    Lock *keys* in another thread.
    """
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with index.change(*keys, parent=parent):
            held.set()
            assert done.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        assert held.wait(PATIENCE)
        try:
            yield
        finally:
            done.set()
            future.result()


def wait_for_waiting(index: Index, number: int) -> None:
    with index._condition:
        while index._waiting < number:
            index._condition.wait(0.001)


def test_info() -> None:
    """
    A description has times in microseconds and UTC, and its own copy of the labels.
    """
    parent = snapshot("base")
    record = Record(3, State.VIEW, "k", 1, {"a": "b"}, created=1_000_001_999, updated=2_000_000_000)
    info = Snapshot(record, parent).info
    assert info == Info(
        Kind.VIEW,
        "k",
        "base",
        {"a": "b"},
        datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=UTC),
        datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
    )
    info.labels["a"] = "c"  # type: ignore[index]  # as a caller may
    assert record.labels == {"a": "b"}


def test_children(index: Index) -> None:
    """
    A parent counts its children, and the changes that pin it.
    """
    base = index.get("base")
    assert base.children == 1
    with index.change("new", parent="base") as pinned:
        assert pinned is base
        assert base.children == 2
        index.add(snapshot("new", base))
    assert base.children == 2
    index.remove(index.get("new"))
    with pytest.raises(ZeroDivisionError), index.change("new", parent="base"):
        raise ZeroDivisionError
    assert base.children == 1


def test_missing(index: Index) -> None:
    """
    A missing key or parent is NotFoundError, and no lock remains.
    """
    with pytest.raises(NotFoundError, match="snapshot 'x' does not exist: not found"):
        index.get("x")
    with pytest.raises(NotFoundError, match="'x'"), index.change("new", parent="x"):
        pass
    with index.change("new", "x"):
        assert "new" not in index
    assert not index._held


def test_renamed(index: Index) -> None:
    """
    A commit moves a snapshot to its new name and drops the measurement of the active snapshot.
    """
    active = snapshot("active", index.get("base"), State.ACTIVE)
    index.add(active)
    active.measured = (Measured(Usage(), Usage()), (7,), 1)
    index.update(active, active.record._replace(key="name", state=State.COMMITTED), settled=False)
    assert "active" not in index
    assert index.get("name") is active
    assert (active.kind, active.measured, active.settled) == (Kind.COMMITTED, None, False)
    assert {each.key for each in index.snapshots()} == {"base", "child", "name"}
    assert len(index) == 3
    assert index.get("base").children == 2


def waits(index: Index, *keys: str, parent: str = "") -> Future[list[str]]:
    """
    Change *keys* in another thread; the result is the keys of the index at that time.
    """

    def change() -> list[str]:
        with index.change(*keys, parent=parent):
            return sorted(each.key for each in index.snapshots())

    pool = ThreadPoolExecutor(1)
    future = pool.submit(change)
    pool.shutdown(wait=False)
    return future


@pytest.mark.parametrize("keys", [["k"], ["other", "k"], ["k", "other"]])
def test_one_at_a_time(keys: list[str], index: Index) -> None:
    """
    A second change of a key waits for the first, and sees its effect; changes of other keys do not wait.
    """
    with holding(index, "k", "more"):
        future = waits(index, *keys)
        wait_for_waiting(index, 1)
        assert "other" not in index._held  # no thread waits while it holds a lock
        assert waits(index, "free").result(PATIENCE) == ["base", "child"]
        index.add(snapshot("k"))
        assert not future.done()
    assert future.result(PATIENCE) == ["base", "child", "k"]


def test_parent_under_change(index: Index) -> None:
    """
    A change waits for a change of its parent, and sees its effect; two changes with one parent do not wait.
    """
    index.add(snapshot("other"))
    with holding(index, "base"):
        lost, kept = waits(index, "a", parent="base"), waits(index, "b", parent="base")
        wait_for_waiting(index, 2)
        index.remove(index.get("base"))
    for future in (lost, kept):
        with pytest.raises(NotFoundError):
            future.result(PATIENCE)
    with holding(index, "a", parent="other"):
        waits(index, "b", parent="other").result(PATIENCE)


def test_no_deadlock(index: Index) -> None:
    """
    Concurrent changes of the same keys in any order do not deadlock.
    """
    orders = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "a"), ("a", "b", "c")]
    done = []

    def change(number: int) -> None:
        with index.change(*orders[number % len(orders)], parent="base"):
            done.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(500)))
    assert len(done) == 500
    assert index.get("base").children == 1
    assert not index._held
    assert not index._waiting
