"""
Background work of an open store: the destruction of removed subvolumes, and the update of records.

None of this work is durable. After a crash, the next open finds the unfinished work and submits it again.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain

from pybtrfs.mountinfo import MountTable
from snapshotter.errors import is_damage, tolerating_full
from snapshotter.events import Event
from snapshotter.store import records
from snapshotter.store.layout import FS, LAYER, Directory
from snapshotter.store.store import Store
from snapshotter.store.volumes import Volumes

THREADS = 4  # each destroy waits in the kernel for a transaction commit, and concurrent destroys share one commit
BATCH = 64
BATCH_SECONDS = 0.1  # minimum time between batches that are not full, because each batch reads the mount table
BACKLOG = 1000  # length of the queue beyond which `Worker.destroy` blocks
CROWDED_SECONDS = 1.0  # maximum time that `Worker.destroy` blocks
TASK_SECONDS = 1.0  # delay of tasks, because most short-lived snapshots are removed by then, which saves the task
CLOSE_SECONDS = 1.0  # time for the remaining tasks at close
RETRY_SECONDS = (0.5, 30.0)  # first and longest delay before a failed destroy is retried; the delay doubles each time


class PendingDestroy:
    """
    A directory of a removed snapshot, or one subvolume of another snapshot, to be destroyed.

    Attributes:
        name: The subvolume, or empty for the whole directory.
        due: The earliest time of the destroy, in seconds of the monotonic clock.
        delay: The last delay before a retry, in seconds; 0 before the first failure.
    """

    __slots__ = ("delay", "due", "name", "snapshot_id")

    def __init__(self, snapshot_id: int, name: str = "", due: float = 0.0) -> None:
        self.snapshot_id = snapshot_id
        self.name = name
        self.due = due
        self.delay = 0.0


class Worker:
    """
    A pool of threads that destroys subvolumes and runs tasks, started with the first work.

    A subvolume that cannot be destroyed now, because it is mounted, being sent or a swap file's, is retried later and
    does not block others.

    Args:
        task_seconds: The delay of tasks; None is `TASK_SECONDS`.
    """

    def __init__(
        self,
        store: Store,
        volumes: Volumes,
        *,
        task_seconds: float | None = None,
        batch_seconds: float = BATCH_SECONDS,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
        close_seconds: float = CLOSE_SECONDS,
        backlog: int = BACKLOG,
        crowded_seconds: float = CROWDED_SECONDS,
    ) -> None:
        self._store = store
        self._volumes = volumes
        self._task_seconds = TASK_SECONDS if task_seconds is None else task_seconds
        self._batch_seconds = batch_seconds
        self._retry_seconds = retry_seconds
        self._close_seconds = close_seconds
        self._backlog = backlog
        self._crowded_seconds = crowded_seconds
        self._condition = threading.Condition()
        self._pending: deque[PendingDestroy] = deque()
        self._in_progress: dict[int, deque[PendingDestroy]] = {}  # by thread
        self._held: list[PendingDestroy] = []
        self._tasks: deque[tuple[float, Callable[[], None]]] = deque()
        self._next_batch = 0.0
        self._busy = 0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._reclaimable = False

    def submit(self, task: Callable[[], None]) -> None:
        """
        Run *task* after a delay; it must handle its own errors.
        """
        with self._condition:
            self._start()
            self._tasks.append((time.monotonic() + self._task_seconds, task))
            if len(self._tasks) == 1:
                self._condition.notify_all()

    def destroy(self, snapshot_id: int, name: str = "", *, later: bool = False) -> None:
        """
        Destroy a snapshot's directory with its subvolumes, or only the subvolume *name*.

        Blocks for a while if the queue is long.

        Args:
            later: Wait for the delay of tasks first, or until the next `drain`.
        """
        with self._condition:
            self._start()
            if later:
                self._held.append(PendingDestroy(snapshot_id, name, due=time.monotonic() + self._task_seconds))
                self._condition.notify_all()
                return
            self._pending.append(PendingDestroy(snapshot_id, name))
            # At other lengths the threads already sleep until the time of the next batch.
            if len(self._pending) in (1, BATCH):
                self._condition.notify_all()
            if len(self._pending) > self._backlog:
                self._condition.wait_for(
                    lambda: self._closed or len(self._pending) <= self._backlog, self._crowded_seconds
                )

    def destroy_now(self, snapshot_id: int) -> None:
        """
        Destroy a snapshot's directory with its subvolumes in this thread.

        Raises:
            OSError: EBUSY: a subvolume is mounted. Also all errors of the kernel.
        """
        self._destroy_one(PendingDestroy(snapshot_id), self._volumes.mounts())

    @property
    def pending(self) -> list[int]:
        """
        The ids of the snapshots with a directory or subvolume still to be destroyed.
        """
        with self._condition:
            # A destroy that just failed is both held and in progress, so drop duplicates.
            everything = chain(self._pending, self._held, *self._in_progress.values())
            return list(dict.fromkeys(pending.snapshot_id for pending in everything))

    def drain(self, seconds: float) -> None:
        """
        Destroy everything that can be destroyed, retry failed destroys once, and wait at most *seconds*.
        """
        with self._condition:
            if self._pending or self._held or self._busy:
                self._hurry()
                self._condition.wait_for(lambda: self._closed or not (self._pending or self._busy), seconds)

    def finish(self, seconds: float) -> bool:
        """
        Run all tasks without their delay, and `drain`.

        Returns:
            Whether all tasks and destroys ended within *seconds*; failed destroys count as ended.
        """
        with self._condition:
            self._tasks = deque((0.0, task) for _, task in self._tasks)
            self._hurry()
            return self._condition.wait_for(
                lambda: self._closed or not (self._pending or self._tasks or self._busy), seconds
            )

    def _hurry(self) -> None:
        self._pending.extend(self._held)
        self._held.clear()
        self._next_batch = 0.0
        self._start()
        self._condition.notify_all()

    def reclaim(self, seconds: float, *, always: bool = False) -> None:
        """
        Free the space of everything destroyed so far; wait at most about *seconds*.

        Args:
            always: Ask the kernel even if this worker destroyed nothing since the last call, because another process,
                or an earlier open of the store, may have.
        """
        end = time.monotonic() + seconds
        self.drain(seconds)
        with self._condition:
            reclaimable, self._reclaimable = always or self._reclaimable, False
        if reclaimable:
            with tolerating_full():
                self._volumes.reclaim(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """
        Finish the destroys in progress, run tasks for a limited time, and leave the rest to the next open.
        """
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        end = time.monotonic() + self._close_seconds
        while self._tasks and time.monotonic() < end:
            _, task = self._tasks.popleft()
            task()

    def _start(self) -> None:
        while len(self._threads) < THREADS and not self._closed:
            number = len(self._threads)
            thread = threading.Thread(
                target=self._run,
                kwargs={"tasks_first": number == 0},
                name=f"snapshotter-worker-{number}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    Event.NO_THREAD.emit(error=str(error))
                return
            self._threads.append(thread)

    def _run(self, *, tasks_first: bool) -> None:
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
                    self._next_batch = time.monotonic() + self._batch_seconds
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
            self._in_progress[threading.get_ident()] = batch
        mounts = None
        try:
            while batch and not self._closed:
                pending = batch[0]
                try:
                    # All snapshots of the batch are removed by now, so the table has every mount that remains.
                    mounts = mounts or self._volumes.mounts()
                    self._destroy_one(pending, mounts)
                except OSError as error:
                    self._hold(pending, error)
                finally:
                    with self._condition:
                        batch.popleft()
        finally:
            with self._condition:
                del self._in_progress[threading.get_ident()]
                self._pending.extendleft(reversed(batch))

    def _hold(self, pending: PendingDestroy, error: OSError) -> None:
        if not pending.delay:
            Event.HELD.emit(id=pending.snapshot_id, subvolume=pending.name, error=str(error))
        shortest, longest = self._retry_seconds
        pending.delay = min(max(shortest, pending.delay * 2), longest)
        pending.due = time.monotonic() + pending.delay
        with self._condition:
            self._held.append(pending)
            self._condition.notify_all()

    def _destroy_one(self, pending: PendingDestroy, mounts: MountTable) -> None:
        started = time.monotonic()
        try:
            with self._store.directory(pending.snapshot_id) as directory:
                names = (pending.name,) if pending.name else (FS, LAYER)
                # An error that passes is no damage, so look twice.
                if self._damage(pending, directory, names) and (error := self._damage(pending, directory, names)):
                    self._keep(pending, error)
                    return
                for name in names:
                    self._volumes.destroy(directory, name, mounts)
        except FileNotFoundError:
            return
        self._reclaimable = True
        if not pending.name:
            self._store.remove_directory(pending.snapshot_id)
        Event.DESTROYED.emit(id=pending.snapshot_id, subvolume=pending.name, seconds=time.monotonic() - started)

    def _damage(self, pending: PendingDestroy, directory: Directory, names: Iterable[str]) -> OSError | None:
        """
        Return the error that the kernel would meet after the subvolumes *names* are destroyed; None without one.
        """
        try:
            base_transid = 0 if pending.name else self._base_transid(pending.snapshot_id, directory)
            for name in names:
                self._volumes.check_readable(directory, name, base_transid)
        except OSError as error:
            if is_damage(error):
                return error
            raise
        return None

    def _base_transid(self, snapshot_id: int, directory: Directory) -> int:
        data = self._store.read(directory)
        with contextlib.suppress(records.DamagedError):
            return records.decode(data, snapshot_id).base_transid or 0 if data else 0
        return 0

    def _keep(self, pending: PendingDestroy, error: OSError) -> None:
        """
        Keep what cannot be read: a removed snapshot in the quarantine, another snapshot's subvolume where it is.
        """
        if not pending.name:
            name = str(pending.snapshot_id)
            self._store.quarantine(self._store.snapshots_fd, name, name)
        Event.KEPT.emit(id=pending.snapshot_id, subvolume=pending.name, error=str(error))
