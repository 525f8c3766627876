"""
What happens after the answer: nothing waits for what is held, nobody falls behind, and what is left stays on disk.
"""

import errno
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pybtrfs.mountinfo import MountTable
from snapshotter.store import worker
from snapshotter.store.layout import FS, LAYER, Directory
from snapshotter.store.worker import Worker

PATIENCE = 10


class Disk:
    """
    A store and its volumes in one, as far as the worker asks: holds what it is told to, and remembers who did what.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.refuses: dict[int, BaseException] = {}
        self.missing: set[int] = set()
        self.destroyed: list[tuple[int, str]] = []
        self.removed: list[int] = []
        self.by: dict[int, str] = {}
        self.changed = threading.Condition()
        self.attempts: dict[int, int] = defaultdict(int)
        self.tables = 0
        self.reclaimed: list[float] = []

    @contextmanager
    def directory(self, snapshot_id: int) -> Iterator[Directory]:
        if snapshot_id in self.missing:
            raise FileNotFoundError(snapshot_id)
        yield Directory(-1, str(snapshot_id))

    def mounts(self) -> MountTable:
        self.tables += 1
        return MountTable()

    def destroy(self, directory: Directory, name: str, mounts: MountTable) -> None:
        snapshot_id = int(directory.path)
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        with self.changed:
            self.attempts[snapshot_id] += 1
            self.by[snapshot_id] = threading.current_thread().name
            self.changed.notify_all()
            if snapshot_id in self.refuses:
                raise self.refuses[snapshot_id]
            self.destroyed.append((snapshot_id, name))

    def remove_directory(self, snapshot_id: int) -> None:
        with self.changed:
            self.removed.append(snapshot_id)
            self.changed.notify_all()

    def reclaim(self, seconds: float) -> None:
        self.reclaimed.append(seconds)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def running(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """
    A worker that does not dawdle, closed at the end.
    """
    monkeypatch.setattr(worker, "BATCH_SECONDS", 0)
    running = Worker(disk, disk)  # type: ignore[arg-type]  # one is as much of both as the worker asks for
    yield running
    disk.gate.set()
    running.close()


HELD = OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def test_destroys(disk: Disk, running: Worker) -> None:
    """
    A removed snapshot loses both subvolumes, then its directory; a living one only what was named.
    """
    running.destroy(1)
    running.destroy(2, FS)
    running.drain(PATIENCE)
    assert sorted(disk.destroyed) == [(1, FS), (1, LAYER), (2, FS)]
    assert disk.removed == [1]
    assert running.pending == []


def test_gone_already(disk: Disk, running: Worker) -> None:
    """
    A directory that somebody deleted is done with.
    """
    disk.missing.add(1)
    running.destroy(1)
    running.drain(PATIENCE)
    assert running.pending == []


def test_held(disk: Disk, running: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What is held waits in nobody's way, is told once, and is tried again until it is free.
    """
    monkeypatch.setattr(worker, "RETRY_SECONDS", (0.001, 0.002))
    for snapshot_id in (1, 3):
        disk.refuses[snapshot_id] = HELD
    for snapshot_id in (1, 2, 3, 4):
        running.destroy(snapshot_id)
    disk.wait_for(lambda: {2, 4} <= set(disk.removed) and disk.attempts[1] > 3 and disk.attempts[3] > 3)
    assert {1, 3} <= set(running.pending)
    with disk.changed:
        disk.refuses.clear()
    disk.wait_for(lambda: sorted(disk.removed) == [1, 2, 3, 4])


def test_drain_does_not_wait_for_what_is_held(disk: Disk, running: Worker) -> None:
    """
    Draining tries what is held once more, and leaves it.
    """
    disk.refuses[1] = HELD
    running.destroy(1)
    running.drain(PATIENCE)
    running.drain(PATIENCE)
    assert disk.attempts[1] >= 2
    assert running.pending == [1]
    del disk.refuses[1]
    running.drain(PATIENCE)
    assert running.pending == []
    assert disk.removed == [1]


def test_drain_is_bounded(disk: Disk, running: Worker) -> None:
    """
    What takes longer is not waited for longer than told.
    """
    disk.gate.clear()
    running.destroy(1)
    assert disk.entered.acquire(timeout=PATIENCE)
    running.drain(0.01)
    assert disk.removed == []


def test_backlog(disk: Disk, running: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Behind a long backlog, who hands in more waits until it is less, and not for ever.
    """
    monkeypatch.setattr(worker, "BACKLOG", 3)
    monkeypatch.setattr(worker, "CROWDED_SECONDS", 0.01)
    occupy(disk, running)
    for snapshot_id in (10, 11, 12, 13):
        running.destroy(snapshot_id)
    assert sorted(running.pending) == [0, 1, 2, 3, 10, 11, 12, 13]
    monkeypatch.setattr(worker, "CROWDED_SECONDS", PATIENCE)
    caller = threading.Thread(target=running.destroy, args=(14,))
    caller.start()
    with running._condition:
        assert running._condition.wait_for(lambda: len(running._pending) == 5, PATIENCE)
    assert caller.is_alive()
    disk.gate.set()
    caller.join(PATIENCE)
    assert not caller.is_alive()
    running.drain(PATIENCE)
    assert sorted(disk.removed) == [*range(worker.THREADS), 10, 11, 12, 13, 14]


def occupy(disk: Disk, running: Worker) -> None:
    """
    Keep every thread in a destroy until the gate opens.
    """
    disk.gate.clear()
    for snapshot_id in range(worker.THREADS):
        running.destroy(snapshot_id)
        assert disk.entered.acquire(timeout=PATIENCE)


def test_close_leaves_the_rest(disk: Disk, running: Worker) -> None:
    """
    Closing ends after what is in hand, however much waits behind it.
    """
    occupy(disk, running)
    for snapshot_id in range(10, 30):
        running.destroy(snapshot_id)
    closing = threading.Thread(target=running.close)
    closing.start()
    with running._condition:
        assert running._condition.wait_for(lambda: running._closed, PATIENCE)
    disk.gate.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert len(disk.removed) == worker.THREADS
    running.destroy(40)
    running.drain(PATIENCE)
    assert len(disk.removed) == worker.THREADS


def test_close_runs_tasks(disk: Disk, running: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Tasks that wait for their time are run at closing, as far as there is time for them.
    """
    done: list[int] = []
    for number in range(3):
        running.submit(lambda number=number: done.append(number))
    running.close()
    assert done == [0, 1, 2]
    monkeypatch.setattr(worker, "CLOSE_SECONDS", 0)
    running.submit(lambda: done.append(3))
    running.close()
    assert done == [0, 1, 2]


def test_close_within_a_batch(disk: Disk, running: Worker) -> None:
    """
    A batch under way is no reason to close later: what is not begun of it stays.
    """
    running.drain(PATIENCE)
    disk.gate.clear()
    with running._condition:  # no thread looks before all are there
        for snapshot_id in range(20):
            running.destroy(snapshot_id)
    assert disk.entered.acquire(timeout=PATIENCE)
    closing = threading.Thread(target=running.close)
    closing.start()
    with running._condition:
        assert running._condition.wait_for(lambda: running._closed, PATIENCE)
    disk.gate.set()
    closing.join(PATIENCE)
    assert disk.removed == [0]
    assert running.pending == list(range(1, 20))


def test_later(disk: Disk, running: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What has time waits in nobody's way, and goes at the latest when somebody drains.
    """
    running.destroy(1, FS, later=True)
    running.destroy(2)
    disk.wait_for(lambda: disk.removed == [2])
    assert 1 in running.pending
    running.drain(PATIENCE)
    assert (1, FS) in disk.destroyed
    monkeypatch.setattr(worker, "TASK_SECONDS", 0)
    running.destroy(3, FS, later=True)
    disk.wait_for(lambda: (3, FS) in disk.destroyed)


def test_one_table_a_batch(disk: Disk, running: Worker) -> None:
    """
    Mounts are looked up once for many, and not at all for none.
    """
    disk.gate.clear()
    for snapshot_id in range(40):
        running.destroy(snapshot_id)
    disk.gate.set()
    running.drain(PATIENCE)
    assert len(disk.removed) == 40
    assert disk.tables <= 2 * worker.THREADS


def test_reclaim(disk: Disk, running: Worker) -> None:
    """
    Space is asked for once something was destroyed, and not again unless it has to be.
    """
    running.reclaim(PATIENCE)
    disk.refuses[1] = HELD
    running.destroy(1)
    running.reclaim(PATIENCE)
    assert len(disk.reclaimed) == 0
    running.destroy(2)
    running.reclaim(PATIENCE)
    running.reclaim(PATIENCE)
    assert len(disk.reclaimed) == 1
    running.reclaim(PATIENCE, always=True)
    assert len(disk.reclaimed) == 2


def test_reclaim_is_bounded(disk: Disk, running: Worker) -> None:
    """
    The time that destroys took is not there again for the space.
    """
    running.destroy(1)
    running.drain(PATIENCE)
    disk.gate.clear()
    running.destroy(2)
    assert disk.entered.acquire(timeout=PATIENCE)
    running.reclaim(0.1)
    assert disk.reclaimed == [0]


def test_destroy_now(disk: Disk, running: Worker) -> None:
    """
    What cannot wait is done by the caller, who gets the refusal.
    """
    running.destroy_now(1)
    assert disk.removed == [1]
    disk.refuses[2] = HELD
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        running.destroy_now(2)
    assert running.pending == []


def test_tasks(disk: Disk, running: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """
    Tasks run while a destroy is slow, and one that fails stops neither the others nor the destroying.
    """
    monkeypatch.setattr(worker, "TASK_SECONDS", 0)
    done = threading.Event()
    running.submit(lambda: 1 // 0)
    running.submit(done.set)
    assert done.wait(PATIENCE)
    disk.gate.clear()
    running.destroy(1)
    assert disk.entered.acquire(timeout=PATIENCE)
    again = threading.Event()
    running.submit(again.set)
    assert again.wait(PATIENCE)
    disk.gate.set()
    running.drain(PATIENCE)
    assert disk.removed == [1]
    assert "defect" in caplog.text


def test_unexpected_error(disk: Disk, running: Worker, caplog: pytest.LogCaptureFixture) -> None:
    """
    A mistake of ours with one snapshot is logged, and stops no other.
    """
    disk.refuses[5] = ZeroDivisionError()
    disk.gate.clear()
    for snapshot_id in range(10):
        running.destroy(snapshot_id)
    disk.gate.set()
    disk.wait_for(lambda: sorted(disk.removed) == [0, 1, 2, 3, 4, 6, 7, 8, 9])
    running.drain(PATIENCE)
    assert "defect" in caplog.text


def test_no_threads(
    disk: Disk, running: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Where no thread can be started, work waits until one can, at the next call; nobody fails for it.
    """

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(threading.Thread, "start", start)
        running.destroy(1)
        assert "can't start new thread" in caplog.text
        assert running.pending == [1]
    running.destroy(2)
    disk.wait_for(lambda: sorted(disk.removed) == [1, 2])
