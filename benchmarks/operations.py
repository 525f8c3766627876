"""
The snapshotter's operations against the bare sequences of system calls, in one filesystem.
"""

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.bare import Bare
from benchmarks.measure import Effort, Figure, Round, Row, Target, against, compare, rows, say, timed
from pybtrfs import filesystem, subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.mounting import mounted

FILE_BYTES = 5000
BASE_FILES = 100
CHANGED_FILES = 500
THREADS = 64
BACKLOG = 1500  # the worker's own limit, and the snapshots in flight
MILLISECOND = 1e6

BASE = "base"


class Bench:
    """
    A store, and a directory in the same filesystem where C does the same work.
    """

    def __init__(self, group: str, mount: Path, store: Snapshotter, bare: Bare, effort: Effort) -> None:
        self.group = group
        self.mount = mount
        self.store = store
        self.bare = bare
        self.effort = effort
        self.directory = mount / "bare"
        self._next_number = 1
        self._snapshots = os.path.join(store.root, "snapshots")
        self._living = self._entries()
        # C copies the store's own layer, because a subvolume with many snapshots is slower to copy.
        self.layer = _layer_path(store.root)
        self.directory.mkdir(exist_ok=True)
        self.fd = os.open(mount, os.O_RDONLY)

    def close(self) -> None:
        os.close(self.fd)

    def measure(self) -> Iterator[Row]:
        for function in (self._operations, self._pairs, self._simultaneous, self._large_layers, self._sustained):
            say(f"{self.group}: {function.__name__[1:]}")
            yield from function()

    # -- keys, numbers and waiting

    def keys(self, count: int) -> list[str]:
        first = self.numbers(count)
        return [f"key-{number}" for number in range(first, first + count)]

    def numbers(self, count: int) -> int:
        """
        Reserve *count* numbers, and return the first.
        """
        self._next_number += count
        return self._next_number - count

    def _entries(self) -> int:
        return len(os.listdir(self._snapshots))

    def backlog(self) -> int:
        """
        Return the number of removed snapshots that are not destroyed, plus the prepares in flight.
        """
        return self._entries() - self._living

    def idle(self) -> None:
        """
        Wait until the worker has destroyed all removed snapshots.
        """
        while self.backlog():
            time.sleep(0.001)

    def quiet(self) -> None:
        """
        Wait until the kernel has cleaned all removed snapshots as well.
        """
        self.idle()
        while subvolume.count_deleted(self.fd):
            filesystem.sync(self.fd)  # wakes the cleaner, unless it is busy
            time.sleep(0.005)
        syscall.syncfs(self.fd)  # the cleaner leaves a part of its work to the next commit

    def against_c(
        self, rounds: int, snapshotter: Callable[[], Round], c: Callable[[], Round], **targets: Target
    ) -> Iterator[Row]:
        yield from rows(self.group, compare(rounds, {"snapshotter": snapshotter, "C": c}), targets)

    # -- the measurements

    def _operations(self) -> Iterator[Row]:
        store, bare, count = self.store, self.bare, self.effort.operations

        def snapshotter() -> Round:
            copies, empty, views, layers = (self.keys(count) for _ in range(4))
            times = {
                "prepare": [timed(store.prepare, key, BASE) for key in copies],
                "prepare, no parent": [timed(store.prepare, key) for key in empty],
                "view": [timed(store.view, key, BASE) for key in views],
                "commit of one file": [],
            }
            for key, layer in zip(copies, layers, strict=True):
                with mounted(store.mounts(key)) as path:
                    bare("fill", path, 0, 1, FILE_BYTES, 1)
                times["commit of one file"].append(timed(store.commit, layer, key))
            times["remove"] = [timed(store.remove, key) for key in (*layers, *empty, *views)]
            self.idle()
            return times

        def c() -> Round:
            directory = self.directory
            first = self.numbers(3 * count)
            times = {
                "prepare": bare("prepare", directory, first, count, self.layer),
                "prepare, no parent": bare("prepare_empty", directory, first + count, count),
                "view": bare("view", directory, first + 2 * count, count),
                "commit of one file": [],
            }
            for number in range(first, first + count):
                bare("fill", directory / str(number) / "fs", 0, 1, FILE_BYTES, 1)
                times["commit of one file"] += bare("commit", directory, number, 1)
            times["remove"] = bare("mark_removed", directory, first, 3 * count)
            bare("discard", directory, first, 3 * count)
            return times

        yield from self.against_c(self.effort.rounds, snapshotter, c)

    def _pairs(self) -> Iterator[Row]:
        store, count = self.store, self.effort.operations
        answered, done = "prepare and remove, one thread", "the same until it is destroyed"

        def pair(key: str) -> None:
            store.prepare(key, BASE)
            store.remove(key)

        def snapshotter() -> Round:
            begin = time.perf_counter_ns()
            times = [timed(pair, key) for key in self.keys(count)]
            self.idle()
            return {answered: times, done: [(time.perf_counter_ns() - begin) / count]}

        def c() -> Round:
            times = self.bare("pair", self.directory, self.numbers(count), count, self.layer)
            return {answered: times, done: [statistics.fmean(times)]}

        samples = compare(self.effort.rounds, {"snapshotter": snapshotter, "C": c})
        yield from rows(self.group, samples, {answered: Target(1.3, ratio=True)})

    def _simultaneous(self) -> Iterator[Row]:
        store, bare, count = self.store, self.bare, self.effort.simultaneous
        together, apart = f"{count} prepares at once", "one after the other"
        start = threading.Barrier(count + 1)

        def prepare_at_once(key: str) -> int:
            start.wait()
            store.prepare(key, BASE)
            return time.perf_counter_ns()

        def clear(keys: list[str]) -> None:
            for key in keys:
                store.remove(key)
            self.quiet()

        def snapshotter_apart() -> Round:
            keys = self.keys(count)
            elapsed = timed(lambda: [store.prepare(key, BASE) for key in keys])
            clear(keys)
            return {together: [elapsed]}

        def snapshotter_together() -> Round:
            keys = self.keys(count)
            futures = [pool.submit(prepare_at_once, key) for key in keys]
            while start.n_waiting < count:
                time.sleep(0.001)
            begin = time.perf_counter_ns()
            start.wait()
            end = max(future.result() for future in futures)
            clear(keys)
            return {together: [end - begin]}

        def c_apart() -> Round:
            first = self.numbers(count)
            elapsed = sum(bare("prepare", self.directory, first, count, self.layer))
            bare("discard", self.directory, first, count)
            return {together: [elapsed]}

        def c_together() -> Round:
            first = self.numbers(count)
            times = bare("simultaneous", self.directory, first, count, self.layer)
            bare("discard", self.directory, first, count)
            return {together: times}

        with ThreadPoolExecutor(count) as pool:
            samples = compare(
                self.effort.storms,
                {
                    "snapshotter": snapshotter_together,
                    apart: snapshotter_apart,
                    "C": c_together,
                    f"C, {apart}": c_apart,
                },
            )[together]
        for subject, baseline, target in (
            ("snapshotter", apart, Target(0.25, ratio=True)),
            ("C", f"C, {apart}", None),
            ("snapshotter", "C", None),
        ):
            yield against(self.group, together, subject, samples[subject], baseline, samples[baseline], target)

    def _large_layers(self) -> Iterator[Row]:
        store, bare, files = self.store, self.bare, self.effort.files
        changed = min(CHANGED_FILES, files)
        commit = f"commit of {files:,} files"
        usage, remove = f"usage, {changed} of them changed", f"remove of {files:,} files"

        def snapshotter() -> Round:
            key, layer, child = self.keys(3)
            with mounted(store.prepare(key)) as path:
                bare("fill", path, 0, files, FILE_BYTES, 1)
            times = {commit: [timed(store.commit, layer, key)]}
            with mounted(store.prepare(child, layer)) as path:
                bare("fill", path, 0, changed, FILE_BYTES, files // changed)
            store.cleanup()  # otherwise the destruction of the committed active snapshot would run concurrently
            times[usage] = [timed(store.usage, child)]
            store.remove(child)
            store.cleanup()
            times[remove] = [timed(store.remove, layer)]
            self.quiet()
            return times

        def c() -> Round:
            number = self.numbers(1)
            bare("prepare_empty", self.directory, number, 1)
            bare("fill", self.directory / str(number) / "fs", 0, files, FILE_BYTES, 1)
            times = {commit: bare("commit", self.directory, number, 1)}
            times[remove] = bare("mark_removed", self.directory, number, 1)
            bare("discard", self.directory, number, 1)
            self.quiet()
            return times

        samples = compare(self.effort.layers, {"snapshotter": snapshotter, "C": c})
        targets = {
            commit: Target(1.2, ratio=True),
            usage: Target(50 * MILLISECOND),
            remove: Target(5 * MILLISECOND),
        }
        yield from rows(self.group, samples, targets)

    def _sustained(self) -> Iterator[Row]:
        seconds = self.effort.seconds
        for threads, duration in ((1, seconds / 12), (4, seconds / 12), (16, seconds / 12), (THREADS, seconds)):
            name = f"prepare and remove, {threads} threads"
            prepares, removes, backlog, duration = self._churn(threads, duration)
            self.quiet()
            elapsed, pairs = self.bare(
                "churn", self.directory, self.numbers(threads), threads, self.layer, self.effort.seconds / 12
            )
            ours, theirs = len(removes) / duration, pairs / elapsed * 1e9
            yield against(self.group, name, "snapshotter", [[ours]], "C", [[theirs]], unit="pairs/s")
        for name, times in (("prepare", prepares), ("remove", removes)):
            for percent in (50, 99):
                value = statistics.quantiles(times, n=100)[percent - 1]
                figure = Figure(value, min(times), max(times), len(times))
                yield Row(self.group, f"{name} at {THREADS} threads, {percent} %", "snapshotter", figure)
        yield Row(
            self.group,
            f"backlog of destroys at {THREADS} threads, most in {self.effort.seconds:.0f} s",
            "snapshotter",
            Figure(max(backlog), min(backlog), max(backlog), len(backlog)),
            target=Target(BACKLOG),
            unit="snapshots",
            series=backlog,
        )

    def _churn(self, threads: int, seconds: float) -> tuple[list[float], list[float], list[float], float]:
        """
        Prepare and remove for *seconds*; return the times of both, the backlog each second, and the duration.
        """
        stop = threading.Event()

        def loop(number: int) -> list[tuple[float, float]]:
            times: list[tuple[float, float]] = []
            while not stop.is_set():
                key = f"churn-{number}-{len(times)}"
                times.append((timed(self.store.prepare, key, BASE), timed(self.store.remove, key)))
            return times

        backlog = []
        with ThreadPoolExecutor(threads) as pool:
            begin = time.monotonic()
            try:
                futures = [pool.submit(loop, number) for number in range(threads)]
                while (left := begin + seconds - time.monotonic()) > 0:
                    time.sleep(min(1, left))
                    backlog.append(float(self.backlog()))
            finally:
                stop.set()
        elapsed = time.monotonic() - begin
        times = [pair for future in futures for pair in future.result()]
        return [prepare for prepare, _ in times], [remove for _, remove in times], backlog, elapsed


def measure(mount: Path, bare: Bare, effort: Effort) -> Iterator[Row]:
    """
    Measure on a fresh store, and again after it has aged by snapshots that were written to and kept.
    """
    root = mount / "store"
    with Snapshotter.create(root) as store:
        with mounted(store.prepare(BASE + "-active")) as path:
            bare("fill", path, 0, BASE_FILES, FILE_BYTES, 1)
        store.commit(BASE, BASE + "-active")
        record = os.getxattr(os.path.dirname(_layer_path(store.root)), "user.snapshotter")
        bare("record", mount, 0, len(record))
        with contextlib.closing(Bench("fresh store", mount, store, bare, effort)) as bench:
            bench.idle()
            yield from bench.measure()
    group = f"store aged by {effort.aged:,} snapshots"
    say(f"{group}: aging")
    # "bind", because its mount names the subvolume's path, and mounting each snapshot would take longer.
    with Snapshotter(root, mount_mode="bind") as store:
        for number in range(effort.aged):
            (written,) = store.prepare(f"aged-{number}", BASE)
            bare("fill", written.source, number % BASE_FILES, 1, FILE_BYTES, 1)
    begin = time.perf_counter_ns()
    with Snapshotter(root) as store:
        yield Row(group, "open", "snapshotter", Figure.of([time.perf_counter_ns() - begin]))
        with contextlib.closing(Bench(group, mount, store, bare, effort)) as bench:
            yield from bench.measure()


def _layer_path(root: str) -> str:
    """
    Return the path of the layer of the store's first snapshot, the base.
    """
    snapshots = os.path.join(root, "snapshots")
    return os.path.join(snapshots, min(os.listdir(snapshots), key=int), "layer")
