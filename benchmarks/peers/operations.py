"""
The measurements of all contestants in turns.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.bare import Bare
from benchmarks.measure import Contender, Figure, Round, Row, Samples, Step, Target, against, compare, say
from benchmarks.operations import BACKLOG, BASE_FILES, CHANGED_FILES, FILE_BYTES, THREADS
from benchmarks.peers.contestants import ALL, DAEMON, GO, LIBRARY, Driven, Field, Program, fields
from snapshotter.mounting import mounted

CLIENTS = (1, 4, 16, THREADS)
MAKERS = 16  # clients that prepare many snapshots
SAMPLE_SECONDS = 0.2
WRITTEN = 10  # every tenth of the polled snapshots is written to
MEGABYTE = 1e6
SECOND = 1e9

_BASE = "base-0"
_PROCESSES = tuple(name for name in ALL if name != LIBRARY)


@dataclass(frozen=True)
class Scale:
    """
    The amount of measurements.

    Attributes:
        rounds: Turns of each contestant with quick operations.
        operations: Operations in a turn.
        storms: Turns with many clients.
        seconds: Duration of a turn with the most clients; a third of it with fewer.
        layers: Turns with a large layer.
        files: Files of a large layer.
        polled: Active snapshots to poll, the files of each, and the limit of the daemon's CPU as a part of Go's.
        polls: Turns of polling.
        snapshots: Snapshots of the store at the start of a contestant; the store is listed at half of them.
        starts: Turns of starting.
    """

    rounds: int
    operations: int
    storms: int
    seconds: int
    layers: int
    files: int
    polled: Sequence[tuple[int, int, float]]
    polls: int
    snapshots: int
    starts: int


FULL = Scale(
    rounds=15,
    operations=20,
    storms=3,
    seconds=9,
    layers=5,
    files=20000,
    polled=((1000, 50, 1 / 3), (200, 2000, 1 / 20)),
    polls=3,
    snapshots=10000,
    starts=5,
)
QUICK = replace(
    FULL,
    rounds=3,
    storms=1,
    seconds=3,
    layers=1,
    polled=((1000, 50, 1 / 3), (40, 2000, 1 / 20)),
    polls=1,
    snapshots=2000,
    starts=2,
)


class Peers:
    """
    The measurements of one run.

    Args:
        directory: Where the images are made.
    """

    def __init__(self, directory: str, program: Program, bare: Bare, scale: Scale) -> None:
        self._directory = directory
        self._program = program
        self._bare = bare
        self._scale = scale

    def measure(self) -> Iterator[Row]:
        yield from self._one_client()
        yield from self._many_clients()
        yield from self._large_layers()
        for snapshots, files, limit in self._scale.polled:
            yield from self._polling(snapshots, files, limit)
        yield from self._many_snapshots()

    # -- contestants and files

    @contextlib.contextmanager
    def _fields(self, group: str, names: Sequence[Contender], base_files: int) -> Iterator[dict[Contender, Field]]:
        """
        Start the contestants, each with a base of *base_files* files.
        """
        say(group)
        with fields(names, self._directory, self._program) as opened:
            for field in opened.values():
                field.contestant("prepare", 1, "new", 0, 1, "")
                self._unpack(field, "new-0", base_files)
                field.contestant("commit", 1, "new", 0, 1, _BASE.partition("-")[0])
                field.quiet()
            yield opened

    def _unpack(self, field: Field, key: str, files: int) -> None:
        """
        Write *files* files as from an image.

        Their times are whole seconds, as in a tar, because containerd's snapshotters compare such files differently.
        """
        with mounted(field.contestant.mounts(key)) as path:
            self._bare("fill", path, 0, files, FILE_BYTES, 1)
            now = int(time.time())
            for directory, _, names in os.walk(path, topdown=False):
                for name in (*names, "."):
                    os.utime(os.path.join(directory, name), (now, now))

    def _write(self, field: Field, key: str, first: int, count: int, step: int = 1) -> None:
        """
        Write *count* files into an active snapshot, every *step*th.
        """
        with mounted(field.contestant.mounts(key)) as path:
            self._bare("fill", path, first, count, FILE_BYTES, step)

    # -- the measurements

    def _one_client(self) -> Iterator[Row]:
        count = self._scale.operations

        def turn(field: Field) -> Round:
            ask, first = field.contestant, field.numbers(count)
            times: dict[Step, list[float]] = {
                "prepare": ask("prepare", 1, "active", first, count, _BASE),
                "view": ask("view", 1, "view", first, count, _BASE),
                "commit of one file": [],
            }
            for number in range(first, first + count):
                self._write(field, f"active-{number}", 0, 1)
                times["commit of one file"] += ask("commit", 1, "active", number, 1, "layer")
            times["remove"] = ask("remove", 1, "layer", first, count) + ask("remove", 1, "view", first, count)
            field.quiet()
            return times

        targets = {
            "prepare": Target(0.7, ratio=True),
            "view": Target(0.5, ratio=True),
            "commit of one file": Target(0.9, ratio=True),
            "remove": Target(0.5, ratio=True),
        }
        with self._fields("one client", ALL, BASE_FILES) as opened:
            yield from _rows("one client", _in_turns(self._scale.rounds, opened, turn), targets)

    def _many_clients(self) -> Iterator[Row]:
        backlog: list[float] = []

        def turn(field: Field) -> Round:
            times = {}
            for clients in CLIENTS:
                seconds = self._scale.seconds if clients == THREADS else max(1, self._scale.seconds // 3)
                prefix = f"pair-{field.numbers(1)}"
                watched = field.name == DAEMON and clients == THREADS
                with _sampling(field.entries, backlog) if watched else contextlib.nullcontext():
                    pairs, elapsed = field.contestant("pairs", clients, seconds, prefix, _BASE)
                times[_pair(clients)] = [elapsed / pairs]
                field.quiet()
            return times

        group = "prepare and remove, the time of all over the pairs"
        with self._fields(group, ALL, BASE_FILES) as opened:
            samples = _in_turns(self._scale.storms, opened, turn)
        yield from _rows(group, samples, {_pair(THREADS): Target(0.25, ratio=True)})
        yield Row(
            group,
            f"backlog of destroys at {THREADS} clients",
            DAEMON,
            Figure(max(backlog), min(backlog), max(backlog), len(backlog)),
            target=Target(BACKLOG),
            unit="snapshots",
            series=backlog,
        )

    def _large_layers(self) -> Iterator[Row]:
        files = self._scale.files
        changed = min(CHANGED_FILES, files)
        commit, remove = "commit", "remove"
        usage = {count: f"usage, {count:,} changed" for count in (0, changed, files)}

        def turn(field: Field) -> Round:
            ask, number = field.contestant, field.numbers(1)
            ask("prepare", 1, "active", number, 1, "")
            self._unpack(field, f"active-{number}", files)
            times = {commit: ask("commit", 1, "active", number, 1, "layer")}
            # Measured here, because the daemon would otherwise measure it a second later.
            times["usage of the committed"] = ask("usage", 1, "layer", number, 1)
            ask("prepare", 1, "child", number, 1, f"layer-{number}")
            for count, step in usage.items():
                if count:
                    self._write(field, f"child-{number}", 0, count, files // count)
                    field.sync()
                times[step] = ask("usage", 1, "child", number, 1)
            ask("remove", 1, "child", number, 1)
            times[remove] = ask("remove", 1, "layer", number, 1)
            field.quiet()
            return times

        targets = {commit: Target(0.15, ratio=True), usage[changed]: Target(1 / 15, ratio=True)}
        group = f"a layer of {files:,} files"
        with self._fields(group, ALL, BASE_FILES) as opened:
            yield from _rows(group, _in_turns(self._scale.layers, opened, turn), targets)

    def _polling(self, snapshots: int, files: int, limit: float) -> Iterator[Row]:
        asleep, awake = "nothing written", f"one in {WRITTEN} written to"

        def poll(field: Field, doing: str) -> Round:
            driven = field.contestant
            assert isinstance(driven, Driven)
            processes = {driven.pid, driven.client_pid}
            before = {pid: cpu_time(pid) for pid in processes}
            begin = time.monotonic_ns()
            for verb in ("stat", "usage"):
                driven(verb, 1, "active", 0, snapshots)
            elapsed = time.monotonic_ns() - begin
            spent = {pid: cpu_time(pid) - before[pid] for pid in processes}
            return {
                f"CPU, {doing}": [spent[driven.pid]],
                f"CPU with the client's, {doing}": [sum(spent.values())],
                f"elapsed, {doing}": [elapsed],
            }

        def turn(field: Field) -> Round:
            times = dict(poll(field, asleep))
            number = field.numbers(1)
            for active in range(0, snapshots, WRITTEN):
                self._write(field, f"active-{active}", number, 1)
            field.sync()
            return times | dict(poll(field, awake))

        targets = {f"CPU, {asleep}": Target(limit, ratio=True)}
        group = f"a round of polling {snapshots:,} active snapshots of {files:,} files"
        with self._fields(group, _PROCESSES, files) as opened:
            for field in opened.values():
                field.contestant("prepare", MAKERS, "active", 0, snapshots, _BASE)
                for number in range(snapshots):
                    self._write(field, f"active-{number}", 0, 1)
                field.sync()
                poll(
                    field, asleep
                )  # the first is another: ours has to measure, and the others read inodes from the disk
            yield from _rows(group, _in_turns(self._scale.polls, opened, turn), targets)

    def _many_snapshots(self) -> Iterator[Row]:
        snapshots, count = self._scale.snapshots, self._scale.operations
        half = snapshots // 2

        def ask(field: Field) -> Round:
            return {
                f"walk of {half + 1:,}": field.contestant("walk"),
                "stat": field.contestant("stat", 1, "active", 0, count),
                "update": field.contestant("update", 1, "active", 0, count),
            }

        start, memory = f"start with {snapshots:,}", f"memory with {snapshots:,}, "
        started, walked = memory + "started", memory + "walked"

        def restart(field: Field) -> Round:
            field.contestant.close()
            begin = time.monotonic_ns()
            field.start()
            field.contestant("stat", 1, "active", 0, 1)
            return {start: [time.monotonic_ns() - begin]}

        def measure_memory(field: Field) -> Round:
            restart(field)
            driven = field.contestant
            assert isinstance(driven, Driven)
            before = _resident(driven.pid)
            driven("walk")
            return {started: [before], walked: [_resident(driven.pid)]}

        group = "many snapshots"
        with self._fields(group, ALL, BASE_FILES) as opened:
            for field in opened.values():
                field.contestant("prepare", MAKERS, "active", 0, half, _BASE)
                field.quiet()
            yield from _rows(group, _in_turns(self._scale.rounds, opened, ask), {})
            for field in opened.values():
                field.contestant("prepare", MAKERS, "active", half, snapshots - half, _BASE)
                field.quiet()
            yield from _rows(group, _in_turns(self._scale.starts, opened, restart), {start: Target(SECOND)})
            processes = {name: opened[name] for name in _PROCESSES}
            samples = _in_turns(self._scale.starts, processes, measure_memory)
            yield from _rows(group, samples, {started: Target(80), walked: Target(80)}, unit="MB")


def _pair(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def _in_turns(rounds: int, opened: Mapping[Contender, Field], turn: Callable[[Field], Round]) -> Samples:
    return compare(rounds, {name: functools.partial(turn, field) for name, field in opened.items()})


def _rows(group: str, samples: Samples, targets: Mapping[Step, Target], unit: str = "ns") -> Iterator[Row]:
    """
    Yield, for each step, a row of each contestant against Go in process. The targets are the daemon's.
    """
    for step, measured in samples.items():
        for name in measured:
            if name != GO:
                target = targets.get(step) if name == DAEMON else None
                yield against(group, step, name, measured[name], GO, measured[GO], target, unit)


@contextlib.contextmanager
def _sampling(count: Callable[[], int], samples: list[float]) -> Iterator[None]:
    """
    Sample repeatedly by how much *count* exceeds its present value.
    """
    before = count()
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            samples.append(float(count() - before))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def cpu_time(pid: int) -> float:
    """
    Return the nanoseconds of CPU that a process has used, in user and kernel mode.
    """
    # As clock_getcpuclockid(3) makes it, which Python only has for threads; /proc counts in hundredths of a second.
    return time.clock_gettime_ns(~pid << 3 | 2)


def _resident(pid: int) -> float:
    """
    Return the resident memory of a process in megabytes.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kilobytes * 1024 / MEGABYTE
