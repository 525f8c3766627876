"""
What happens after the answer: removed subvolumes are destroyed, records brought up to date.

Nothing here need be durable. What a crash leaves undone, the next open finds and hands in again.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import chain

from pybtrfs.mountinfo import MountTable
from snapshotter.events import Event
from snapshotter.store.layout import FS, LAYER
from snapshotter.store.store import Store
from snapshotter.store.volumes import Volumes

THREADS = 4  # destroys queue in the kernel behind each snapshot's commit, and pass together
BATCH = 64
BATCH_SECONDS = 0.1  # between batches that are not full: for each the mounts are read
BACKLOG = 1000  # beyond it, who hands in work waits until it is less
CROWDED_SECONDS = 1.0  # and so long at most
TASK_SECONDS = 1.0  # most snapshots that end soon are gone by then
CLOSE_SECONDS = 1.0
RETRY_SECONDS = (0.5, 30.0)  # from, and up to


class PendingDestroy:
    """
    The directory of a removed snapshot, or one subvolume in the directory of a living one.
    """

    __slots__ = ("delay", "due", "name", "snapshot_id")

    def __init__(self, snapshot_id: int, name: str = "", due: float = 0.0) -> None:
        self.snapshot_id = snapshot_id
        self.name = name
        self.due = due
        self.delay = 0.0


class Worker:
    """
    Threads that destroy and settle; started when there is something to do.

    What cannot be destroyed now, being mounted, sent or swapped to, waits without blocking the rest.
    """

    def __init__(self, store: Store, volumes: Volumes) -> None:
        self._store = store
        self._volumes = volumes
        self._condition = threading.Condition()
        self._pending: deque[PendingDestroy] = deque()
        self._in_hand: dict[int, deque[PendingDestroy]] = {}  # by thread
        self._held: list[PendingDestroy] = []
        self._tasks: deque[tuple[float, Callable[[], None]]] = deque()
        self._next_batch = 0.0
        self._busy = 0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._reclaimable = False

    def submit(self, task: Callable[[], None]) -> None:
        """
        Run *task* in a while; it takes care of its own errors.
        """
        with self._condition:
            self._start()
            self._tasks.append((time.monotonic() + TASK_SECONDS, task))
            if len(self._tasks) == 1:
                self._condition.notify_all()

    def destroy(self, snapshot_id: int, name: str = "", *, later: bool = False) -> None:
        """
        Destroy a snapshot's directory with all in it, or the one subvolume *name*; *later*, in a while.
        """
        with self._condition:
            self._start()
            if later:
                self._held.append(PendingDestroy(snapshot_id, name, due=time.monotonic() + TASK_SECONDS))
                self._condition.notify_all()
                return
            self._pending.append(PendingDestroy(snapshot_id, name))
            # For the others the threads have set their time already.
            if len(self._pending) in (1, BATCH):
                self._condition.notify_all()
            if len(self._pending) > BACKLOG:
                self._condition.wait_for(lambda: self._closed or len(self._pending) <= BACKLOG, CROWDED_SECONDS)

    def destroy_now(self, snapshot_id: int) -> None:
        """
        Destroy a snapshot's directory with all in it before returning.

        Raises:
            OSError: EBUSY when it is mounted; else as the kernel says.
        """
        self._destroy_one(PendingDestroy(snapshot_id), self._volumes.mounts())

    @property
    def pending(self) -> list[int]:
        """
        The snapshots of which something still has to be destroyed.
        """
        with self._condition:
            # Once each: what is being put among the held ones is in hand, too.
            everything = chain(self._pending, self._held, *self._in_hand.values())
            return list(dict.fromkeys(pending.snapshot_id for pending in everything))

    def drain(self, seconds: float) -> None:
        """
        Wait until everything is destroyed that can be, at most *seconds*; tries what is held once more.
        """
        with self._condition:
            if not (self._pending or self._held or self._busy):
                return
            self._pending.extend(self._held)
            self._held.clear()
            self._next_batch = 0.0
            self._start()
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._closed or not (self._pending or self._busy), seconds)

    def reclaim(self, seconds: float, *, always: bool = False) -> None:
        """
        Have the space of everything destroyed so far given back, within about *seconds*.

        Args:
            always: Also when nothing was since the last time: others may have, the same store before it was opened too.
        """
        end = time.monotonic() + seconds
        self.drain(seconds)
        with self._condition:
            wanted, self._reclaimable = always or self._reclaimable, False
        if wanted:
            self._volumes.reclaim(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """
        Finish what is in hand and what tasks there is time for, and leave the rest to the next open.
        """
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        end = time.monotonic() + CLOSE_SECONDS
        while self._tasks and time.monotonic() < end:
            _, task = self._tasks.popleft()
            task()

    def _start(self) -> None:
        while len(self._threads) < THREADS and not self._closed:
            number = len(self._threads)
            thread = threading.Thread(
                target=self._run, args=(number == 0,), name=f"snapshotter-worker-{number}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    Event.NO_THREAD.emit(error=str(error))
                return
            self._threads.append(thread)

    def _run(self, tasks_first: bool) -> None:
        while True:
            with self._condition:
                while not (self._closed or self._due_batch() or self._due_task()):
                    self._condition.wait(self._seconds_to_next())
                    self._release_due()
                if self._closed:
                    return
                if self._due_task() and (tasks_first or not self._due_batch()):
                    _, work = self._tasks.popleft()
                else:
                    work = self._destroy_batch
                    self._next_batch = time.monotonic() + BATCH_SECONDS
                self._busy += 1
            try:
                work()
            except Exception as error:
                Event.DEFECT.emit(traceback=error, error=repr(error))
            finally:
                with self._condition:
                    self._busy -= 1
                    self._condition.notify_all()

    def _due_batch(self) -> bool:
        return len(self._pending) >= BATCH or (bool(self._pending) and self._next_batch <= time.monotonic())

    def _due_task(self) -> bool:
        return bool(self._tasks) and self._tasks[0][0] <= time.monotonic()

    def _seconds_to_next(self) -> float | None:
        due = [pending.due for pending in self._held]
        if self._pending:
            due.append(self._next_batch)
        if self._tasks:
            due.append(self._tasks[0][0])
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _release_due(self) -> None:
        now = time.monotonic()
        self._pending.extend(pending for pending in self._held if pending.due <= now)
        self._held = [pending for pending in self._held if pending.due > now]

    def _destroy_batch(self) -> None:
        with self._condition:
            batch = deque(self._pending.popleft() for _ in range(min(BATCH, len(self._pending))))
            self._in_hand[threading.get_ident()] = batch
        mounts = None
        try:
            while batch and not self._closed:
                pending = batch[0]
                try:
                    # Read after all of the batch were removed: whatever of it is still mounted is there.
                    mounts = mounts or self._volumes.mounts()
                    self._destroy_one(pending, mounts)
                except OSError as error:
                    self._hold(pending, error)
                finally:
                    with self._condition:
                        batch.popleft()
        finally:
            with self._condition:
                del self._in_hand[threading.get_ident()]
                self._pending.extendleft(reversed(batch))

    def _hold(self, pending: PendingDestroy, error: OSError) -> None:
        if not pending.delay:
            Event.HELD.emit(id=pending.snapshot_id, subvolume=pending.name, error=str(error))
        shortest, longest = RETRY_SECONDS
        pending.delay = min(max(shortest, pending.delay * 2), longest)
        pending.due = time.monotonic() + pending.delay
        with self._condition:
            self._held.append(pending)
            self._condition.notify_all()

    def _destroy_one(self, pending: PendingDestroy, mounts: MountTable) -> None:
        started = time.monotonic()
        try:
            with self._store.directory(pending.snapshot_id) as directory:
                for name in (pending.name,) if pending.name else (FS, LAYER):
                    self._volumes.destroy(directory, name, mounts)
        except FileNotFoundError:
            return
        self._reclaimable = True
        if not pending.name:
            self._store.remove_directory(pending.snapshot_id)
        Event.DESTROYED.emit(id=pending.snapshot_id, subvolume=pending.name, seconds=time.monotonic() - started)
