"""
Background work: busy subvolumes block nothing, the queue is bounded, and unfinished work stays on disk.
"""

import errno
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from pybtrfs.mountinfo import MountTable
from snapshotter.store import worker
from snapshotter.store.layout import FS, LAYER, Directory
from snapshotter.store.worker import Worker

PATIENCE = 10


class Disk:
    """
    A fake of both `Store` and `Volumes`, as far as the worker uses them.

    Attributes:
        gate: Blocks destroys while it is clear.
        entered: Released at the begin of each destroy.
        refuses: The errors of destroys, by snapshot id.
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

    def read(self, directory: Directory) -> None:
        pass

    def check_readable(self, directory: Directory, name: str, base_transid: int) -> None:
        pass

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
def start(disk: Disk) -> Iterator[Callable[..., Worker]]:
    """
    A function that makes a worker without a delay between batches, closed at the end.
    """
    with ExitStack() as stack:

        def start(*, batch_seconds: float = 0, **options: Any) -> Worker:
            worker = Worker(disk, disk, batch_seconds=batch_seconds, **options)  # type: ignore[arg-type]  # fakes both
            stack.callback(worker.close)
            stack.callback(disk.gate.set)
            return worker

        yield start


@pytest.fixture
def running(start: Callable[..., Worker]) -> Worker:
    return start()


HELD = OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def test_destroys(disk: Disk, running: Worker) -> None:
    """
    A removed snapshot loses both subvolumes, then its directory; another snapshot loses only the named subvolume.
    """
    running.destroy(1)
    running.destroy(2, FS)
    running.drain(PATIENCE)
    assert sorted(disk.destroyed) == [(1, FS), (1, LAYER), (2, FS)]
    assert disk.removed == [1]
    assert running.pending == []


def test_gone_already(disk: Disk, running: Worker) -> None:
    """
    A directory that is gone already counts as destroyed.
    """
    disk.missing.add(1)
    running.destroy(1)
    running.drain(PATIENCE)
    assert running.pending == []


def test_held(disk: Disk, start: Callable[..., Worker]) -> None:
    """
    A busy subvolume blocks no other, and its destroy is retried until it succeeds.
    """
    running = start(retry_seconds=(0.001, 0.002))
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
    Draining retries failed destroys once, and does not wait for them.
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
    Draining returns after the given time, even if a destroy takes longer.
    """
    disk.gate.clear()
    running.destroy(1)
    assert disk.entered.acquire(timeout=PATIENCE)
    running.drain(0.01)
    assert disk.removed == []


def test_backlog(disk: Disk, start: Callable[..., Worker]) -> None:
    """
    With a long queue, `destroy` blocks until the queue is shorter.
    """
    running = start(backlog=3, crowded_seconds=PATIENCE)
    occupy(disk, running)
    for snapshot_id in (10, 11, 12):
        running.destroy(snapshot_id)
    caller = threading.Thread(target=running.destroy, args=(13,))
    caller.start()
    while 13 not in running.pending:
        caller.join(0.001)
    assert caller.is_alive()
    disk.gate.set()
    caller.join(PATIENCE)
    assert not caller.is_alive()
    running.drain(PATIENCE)
    assert sorted(disk.removed) == [*range(worker.THREADS), 10, 11, 12, 13]


def test_backlog_is_bounded(disk: Disk, start: Callable[..., Worker]) -> None:
    """
    `destroy` does not block for ever, however long the queue is.
    """
    running = start(backlog=3, crowded_seconds=0.01)
    occupy(disk, running)
    for snapshot_id in (10, 11, 12, 13, 14):
        running.destroy(snapshot_id)
    assert sorted(running.pending) == [0, 1, 2, 3, 10, 11, 12, 13, 14]


def occupy(disk: Disk, running: Worker) -> None:
    """
    Block every thread in a destroy until the gate opens.
    """
    disk.gate.clear()
    for snapshot_id in range(worker.THREADS):
        running.destroy(snapshot_id)
        assert disk.entered.acquire(timeout=PATIENCE)


def test_close_leaves_the_rest(disk: Disk, running: Worker) -> None:
    """
    Closing waits for the destroys in progress and leaves the queue undone.
    """
    occupy(disk, running)
    for snapshot_id in range(10, 30):
        running.destroy(snapshot_id)
    closing = close(running)
    disk.gate.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert len(disk.removed) == worker.THREADS
    running.destroy(40)
    running.drain(PATIENCE)
    assert len(disk.removed) == worker.THREADS


def close(running: Worker) -> threading.Thread:
    """
    Close the worker in a thread, and return the thread once closing has begun.
    """
    closing = threading.Thread(target=running.close)
    closing.start()
    running.drain(PATIENCE)  # with a destroy in progress, this returns early only because of the close
    assert closing.is_alive()
    return closing


def test_close_runs_tasks(start: Callable[..., Worker]) -> None:
    """
    Closing runs the tasks that are not due yet, as far as there is time.
    """
    done: list[int] = []
    for close_seconds in (PATIENCE, 0):
        running = start(close_seconds=close_seconds)
        for number in range(3):
            running.submit(lambda number=number: done.append(number))
        running.close()
    assert done == [0, 1, 2]


def test_close_within_a_batch(disk: Disk, start: Callable[..., Worker]) -> None:
    """
    Closing waits for the destroy in progress only, and leaves the rest of its batch undone.
    """
    running = start(batch_seconds=PATIENCE)
    running.destroy(99)  # the next batch is due after the delay, or once drained
    disk.wait_for(lambda: disk.removed == [99])
    assert disk.entered.acquire(timeout=PATIENCE)
    assert disk.entered.acquire(timeout=PATIENCE)
    disk.gate.clear()
    for snapshot_id in range(20):
        running.destroy(snapshot_id)
    running.drain(0)
    assert disk.entered.acquire(timeout=PATIENCE)
    closing = close(running)
    disk.gate.set()
    closing.join(PATIENCE)
    assert disk.removed == [99, 0]
    assert running.pending == list(range(1, 20))


def test_later(disk: Disk, start: Callable[..., Worker]) -> None:
    """
    A destroy for later blocks no other, and is done after the delay or when drained.
    """
    running = start(task_seconds=PATIENCE)
    running.destroy(1, FS, later=True)
    running.destroy(2)
    disk.wait_for(lambda: disk.removed == [2])
    assert 1 in running.pending
    running.drain(PATIENCE)
    assert (1, FS) in disk.destroyed
    start(task_seconds=0).destroy(3, FS, later=True)
    disk.wait_for(lambda: (3, FS) in disk.destroyed)


def test_finish(disk: Disk, start: Callable[..., Worker]) -> None:
    """
    Finishing runs tasks and delayed destroys at once, and does not wait for busy subvolumes.
    """
    running = start(task_seconds=PATIENCE)
    done: list[int] = []
    disk.refuses[2] = HELD
    assert running.finish(0)
    running.submit(lambda: done.append(1))
    running.destroy(1, FS, later=True)
    running.destroy(2)
    assert running.finish(PATIENCE)
    assert done == [1]
    assert disk.destroyed == [(1, FS)]
    assert running.pending == [2]


def test_finish_is_bounded(disk: Disk, running: Worker) -> None:
    """
    Finishing reports if the work took longer than the given time.
    """
    disk.gate.clear()
    running.destroy(1)
    assert not running.finish(0.01)
    disk.gate.set()
    assert running.finish(PATIENCE)
    assert disk.removed == [1]


def test_one_table_a_batch(disk: Disk, running: Worker) -> None:
    """
    The mount table is read once for many destroys.
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
    Space is reclaimed only if a subvolume was destroyed since the last time, or if the caller insists.
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
    The time limit of a reclaim includes the time of its destroys.
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
    `destroy_now` destroys in the calling thread, and raises the error of the kernel.
    """
    running.destroy_now(1)
    assert disk.removed == [1]
    disk.refuses[2] = HELD
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        running.destroy_now(2)
    assert running.pending == []


def test_tasks(disk: Disk, start: Callable[..., Worker], caplog: pytest.LogCaptureFixture) -> None:
    """
    Tasks run while a destroy is slow, and an error in a task affects neither other tasks nor destroys.
    """
    running = start(task_seconds=0)
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
    An unexpected error is logged, and affects no other snapshot.
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
    If no thread can be started, no call fails, and the next call tries to start one again.
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


def test_fewer_threads(
    disk: Disk, running: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    If some threads cannot be started, those that run do all the work, without a warning.
    """
    run = threading.Thread.start
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        run(thread)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(threading.Thread, "start", start)
        for snapshot_id in range(10):
            running.destroy(snapshot_id)
        running.drain(PATIENCE)
    assert sorted(disk.removed) == list(range(10))
    assert set(disk.by.values()) == {"snapshotter-worker-0"}
    assert caplog.text == ""
