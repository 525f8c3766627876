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
from types import MappingProxyType

from benchmarks.bare import Bare
from benchmarks.measure import Contender, Figure, Round, Row, Samples, Step, Target, against, compare, rows, say
from benchmarks.operations import BACKLOG, BASE_FILES, CHANGED_FILES, FILE_BYTES, THREADS
from benchmarks.peers.contestants import (
    ALL,
    CONCURRENT,
    DAEMON,
    EARLIER,
    GO,
    GO_PROXY,
    LIBRARY,
    Driven,
    Field,
    Program,
    fields,
)
from snapshotter.mounting import mounted

CLIENTS = (1, 4, 16, THREADS)
MAKERS = 16  # clients that prepare many snapshots
SAMPLE_SECONDS = 0.2
_VIEWS = 200  # views made and removed on a mount without ssd
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
        runs: Runs of everything, each on new filesystems.
        rounds: Turns of each contestant with quick operations.
        operations: Operations in a turn.
        storms: Turns with many clients.
        seconds: Duration of a turn with many clients.
        layers: Turns with a large layer.
        files: Files of a large layer.
        polled: Active snapshots to poll, the files of each, and the limit of the daemon's CPU as a part of Go's.
        polls: Turns of polling.
        few: Snapshots of a small store.
        snapshots: Snapshots of a large store, as at the start of a contestant; the store is listed at half of them.
        starts: Turns of starting.
    """

    runs: int
    rounds: int
    operations: int
    storms: int
    seconds: int
    layers: int
    files: int
    polled: Sequence[tuple[int, int, float]]
    polls: int
    few: int
    snapshots: int
    starts: int


FULL = Scale(
    runs=5,
    rounds=5,
    operations=20,
    storms=2,
    seconds=2,
    layers=1,
    files=20000,
    polled=((1000, 50, 0.15), (200, 2000, 0.005)),
    polls=1,
    few=10,
    snapshots=10000,
    starts=2,
)
QUICK = replace(
    FULL,
    runs=1,
    rounds=2,
    storms=1,
    seconds=1,
    files=5000,
    polled=((200, 50, 0.15), (20, 2000, 0.005)),
    snapshots=1000,
    starts=1,
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
        yield from self._without_ssd()
        if self._program.against:
            for option in ("ssd", "nossd"):
                yield from self._against(option)
        yield from self._large_layers()
        for snapshots, files, limit in self._scale.polled:
            yield from self._polling(snapshots, files, limit)
        yield from self._many_snapshots()
        yield from self._few_and_many()

    # -- contestants and files

    @contextlib.contextmanager
    def _fields(
        self, group: str, kinds: Mapping[Contender, str], base_files: int, options: str = ""
    ) -> Iterator[dict[Contender, Field]]:
        """
        Start the contestants, each with a base of *base_files* files.
        """
        say(group)
        with fields(kinds, self._directory, self._program, options) as opened:
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
        targets = {"prepare": 0.95, "view": 0.5, "commit of one file": 1.0, "remove": 0.35}
        behind_proxy = {"prepare": 0.85, "view": 0.35, "remove": 0.25}
        with self._fields("one client", _named(ALL), BASE_FILES) as opened:
            samples = _in_turns(self._scale.rounds, opened, self._operations, warm_ups=1)
            yield from _rows("one client", samples, targets, behind_proxy)

    def _operations(self, field: Field) -> Round:
        ask, count = field.contestant, self._scale.operations
        first = field.numbers(count)
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

    def _pairs(self, field: Field, clients: int, seconds: int) -> float:
        """
        Return the nanoseconds of a pair of prepare and remove, of all clients together.
        """
        pairs, elapsed = field.contestant("pairs", clients, seconds, f"pair-{field.numbers(1)}", _BASE)
        field.quiet()
        return elapsed / pairs

    def _many_clients(self) -> Iterator[Row]:
        backlog: list[float] = []

        def turn(field: Field) -> Round:
            times = {}
            for clients in CLIENTS:
                watched = field.name == DAEMON and clients == THREADS
                with _sampling(field.entries, backlog) if watched else contextlib.nullcontext():
                    times[_pair(clients)] = [self._pairs(field, clients, self._scale.seconds)]
            return times

        group = "prepare and remove, the time of all over the pairs"
        with self._fields(group, _named(ALL), BASE_FILES) as opened:
            samples = _in_turns(self._scale.storms, opened, turn)
        times_faster = zip(CLIENTS, (1.6, 2.5, 4, 6), strict=True)
        yield from _rows(group, samples, {_pair(clients): 1 / factor for clients, factor in times_faster})
        yield Row(
            group,
            f"backlog of destroys at {THREADS} clients",
            DAEMON,
            Figure(max(backlog), min(backlog), max(backlog), len(backlog)),
            target=Target(BACKLOG),
            unit="snapshots",
            series=backlog,
        )

    def _without_ssd(self) -> Iterator[Row]:
        """
        Measure whether turns of the barriers pay on a mount without ``ssd``, and what they cost barriers alone.
        """
        several = CLIENTS[1:]

        def turn(field: Field) -> Round:
            times = {_pair(clients): [self._pairs(field, clients, 1)] for clients in several}
            first = field.numbers(_VIEWS)
            for verb, extra in (("view", (_BASE,)), ("remove", ())):
                begin = time.monotonic_ns()
                field.contestant(verb, MAKERS, "view", first, _VIEWS, *extra)
                times[f"{verb}s by {MAKERS} clients"] = [(time.monotonic_ns() - begin) / _VIEWS]
            field.quiet()
            return times

        group = "mounted without ssd: prepare and remove, the time of all over the pairs"
        with self._fields(group, _named((LIBRARY, CONCURRENT)), BASE_FILES, "nossd") as opened:
            samples = _in_turns(2 * self._scale.storms, opened, turn)
        times_faster = zip(several, (1.3, 2.5, 1.7), strict=True)
        targets = {_pair(clients): Target(1 / factor, ratio=True) for clients, factor in times_faster}
        yield from rows(group, samples, targets)

    def _against(self, option: str) -> Iterator[Row]:
        """
        Measure the daemon against that of another commit.
        """

        def turn(field: Field) -> Round:
            pairs = {f"pairs, {_pair(clients)}": [self._pairs(field, clients, 1)] for clients in CLIENTS}
            return {**self._operations(field), **pairs}

        group = f"mounted with {option}, against {self._program.against}"
        with self._fields(group, {DAEMON: DAEMON, EARLIER: EARLIER}, BASE_FILES, option) as opened:
            samples = _in_turns(self._scale.rounds, opened, turn, warm_ups=1)
        yield from rows(group, samples)

    def _large_layers(self) -> Iterator[Row]:
        files = self._scale.files
        changed = min(CHANGED_FILES, files)
        commit, remove = "commit", "remove"
        usage = {count: f"usage, {count:,} changed" for count in (0, changed, files)}
        unchanged, new = "usage, asked for again", f"usage, {files:,} new on {files:,}"

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
                    field.count_written()
                times[step] = ask("usage", 1, "child", number, 1)
            times[unchanged] = [*ask("usage", 1, "child", number, 1), *ask("usage", 1, "child", number, 1)]
            ask("remove", 1, "child", number, 1)
            ask("prepare", 1, "more", number, 1, f"layer-{number}")
            self._write(field, f"more-{number}", files, files)
            field.count_written()
            times[new] = ask("usage", 1, "more", number, 1)
            ask("remove", 1, "more", number, 1)
            times[remove] = ask("remove", 1, "layer", number, 1)
            field.quiet()
            return times

        targets = {commit: 0.1, unchanged: 1 / 500, usage[changed]: 1 / 20, new: 1 / 8, usage[files]: 1 / 3}
        group = f"a layer of {files:,} files"
        with self._fields(group, _named(ALL), BASE_FILES) as opened:
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
            field.count_written()
            return times | dict(poll(field, awake))

        targets = {f"CPU, {asleep}": limit}
        group = f"a round of polling {snapshots:,} active snapshots of {files:,} files"
        with self._fields(group, _named((DAEMON, GO)), files) as opened:
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

        walk = f"walk of {half + 1:,}"

        def ask(field: Field) -> Round:
            times: dict[Step, list[float]] = {
                "stat": field.contestant("stat", 1, "active", 0, count),
                "update": field.contestant("update", 1, "active", 0, count),
            }
            if isinstance(field.contestant, Driven):
                before = cpu_time(field.contestant.pid)
                times[walk] = field.contestant("walk")
                times[f"CPU of a {walk}"] = [cpu_time(field.contestant.pid) - before]
            else:
                times[walk] = field.contestant("walk")
            return times

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
        with self._fields(group, _named(ALL), BASE_FILES) as opened:
            for field in opened.values():
                field.contestant("prepare", MAKERS, "active", 0, half, _BASE)
                field.quiet()
            behind_proxy = {"stat": 0.7, "update": 0.9, walk: 0.5, f"CPU of a {walk}": 0.2}
            yield from _rows(group, _in_turns(self._scale.rounds, opened, ask, warm_ups=1), {}, behind_proxy)
            for field in opened.values():
                field.contestant("prepare", MAKERS, "active", half, snapshots - half, _BASE)
                field.quiet()
            yield from _rows(group, _in_turns(self._scale.starts, opened, restart), {start: Target(0.5 * SECOND)})
            processes = {name: opened[name] for name in _PROCESSES}
            samples = _in_turns(self._scale.starts, processes, measure_memory)
            yield from _rows(group, samples, {started: Target(45), walked: Target(45)}, unit="MB")

    def _few_and_many(self) -> Iterator[Row]:
        few, many = (f"{DAEMON} with {count:,}" for count in (self._scale.few, self._scale.snapshots))
        count = self._scale.operations

        def turn(field: Field) -> Round:
            ask = field.contestant
            return {
                **self._operations(field),
                "stat": ask("stat", 1, "kept", 0, min(count, self._scale.few)),
                "usage": ask("usage", 1, "kept", 0, min(count, self._scale.few)),
                "update": ask("update", 1, "kept", 0, min(count, self._scale.few)),
            }

        group = f"each operation with {self._scale.snapshots:,} snapshots in the store, against {self._scale.few:,}"
        with self._fields(group, {many: DAEMON, few: DAEMON}, BASE_FILES) as opened:
            for name, kept in ((few, self._scale.few), (many, self._scale.snapshots)):
                opened[name].contestant("prepare", MAKERS, "kept", 0, kept, _BASE)
                opened[name].quiet()
            samples = _in_turns(self._scale.rounds, opened, turn, warm_ups=1)
        yield from rows(group, samples, dict.fromkeys(samples, Target(1.2, ratio=True)))


def _pair(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def _named(kinds: Sequence[str]) -> dict[Contender, str]:
    """
    Return contestants that are named after their kinds.
    """
    return {kind: kind for kind in kinds}


def _in_turns(
    turns: int, opened: Mapping[Contender, Field], turn: Callable[[Field], Round], warm_ups: int = 0
) -> Samples:
    contenders = {name: functools.partial(turn, field) for name, field in opened.items()}
    return compare(turns, contenders, warm_ups=warm_ups)


def _rows(
    group: str,
    samples: Samples,
    targets: Mapping[Step, float | Target],
    behind_proxy: Mapping[Step, float] = MappingProxyType({}),
    unit: str = "ns",
) -> Iterator[Row]:
    """
    Yield, for each step, a row of each contestant against Go in process.

    Args:
        targets: The targets of the daemon; a number is the limit of the ratio.
        behind_proxy: The limits of the daemon's ratio to Go behind its proxy, each of which has a row.
    """
    for step, measured in samples.items():
        for name in measured:
            if name != GO:
                target = _target(targets.get(step)) if name == DAEMON else None
                yield against(group, step, name, measured[name], GO, measured[GO], target, unit)
        if step in behind_proxy:
            target = _target(behind_proxy[step])
            yield against(group, step, DAEMON, measured[DAEMON], GO_PROXY, measured[GO_PROXY], target, unit)


def _target(limit: float | Target | None) -> Target | None:
    return limit if limit is None or isinstance(limit, Target) else Target(limit, ratio=True)


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
