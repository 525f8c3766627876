"""
pybtrfs against the bare ioctls, libbtrfsutil's binding, python-btrfs and the ``btrfs`` command.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from pathlib import Path

import btrfs  # type: ignore[import-untyped]

from benchmarks.bare import Bare, Program, libbtrfsutil
from benchmarks.measure import Contender, Effort, Round, Row, Samples, Step, Target, against, compare, say, timed
from benchmarks.pause import Pause
from pybtrfs import filesystem, ioctl, subvolume

GROUP = "pybtrfs"
THREADS = 64
_LOOPS = 100  # calls of a microsecond each, in every program; so few are seldom interrupted

# The most that a call may take, times libbtrfsutil's binding, which is written in C.
_INSPECTION_TARGETS = {
    "get_id": 3.0,
    "raw get_id": 2.0,
    "get_info": 1.0,
    "raw get_info": 0.6,
    "get_read_only": 3.0,
    "raw get_read_only": 2.0,
}

_C = "C"
_LIBBTRFSUTIL = "libbtrfsutil"
_PYTHON_BTRFS = "python-btrfs"
_COMMAND = "btrfs command"


def measure(mount: Path, bare: Bare, effort: Effort) -> Iterator[Row]:
    with ExitStack() as stack:
        binding = libbtrfsutil()
        if binding:
            stack.enter_context(binding)
        calls = _Calls(mount, bare, binding, effort)
        for function in (calls.life, calls.among_many, calls.pauses, calls.threads):
            say(f"{GROUP}: {function.__name__}")
            yield from function()


def _rows(samples: Samples, targets: Mapping[tuple[Step, Contender], Target] | None = None) -> Iterator[Row]:
    """
    Yield, for each step, a row of pybtrfs against each other contender that does it.
    """
    for step, measured in samples.items():
        ours, *others = measured
        for other in others:
            target = (targets or {}).get((step, other))
            yield against(GROUP, step, ours, measured[ours], other, measured[other], target)


def _run(*words: str | os.PathLike[str]) -> None:
    subprocess.run(("btrfs", *words), check=True, stdout=subprocess.DEVNULL)


class _Calls:
    """
    The measurements on one filesystem.

    libbtrfsutil's binding and the ``btrfs`` command are left out if they are not installed.
    """

    def __init__(self, mount: Path, bare: Bare, binding: Program | None, effort: Effort) -> None:
        self._mount = mount
        self._bare = bare
        self._binding = binding
        self._effort = effort
        self._source = mount / "source"
        subvolume.create(self._source)
        bare("fill", self._source, 0, 100, 5000, 1)

    def _compare(
        self,
        pybtrfs: Callable[[], Round],
        program: Callable[[Program], Round] | None = None,
        reader: Callable[[], Round] | None = None,
        command: Callable[[], Round] | None = None,
    ) -> Samples:
        """
        Let pybtrfs take turns with each installed contender that has a turn.
        """
        contenders = {"pybtrfs": pybtrfs}
        if program:
            contenders[_C] = partial(program, self._bare)
        if program and self._binding:
            contenders[_LIBBTRFSUTIL] = partial(program, self._binding)
        if reader:
            contenders[_PYTHON_BTRFS] = reader
        if command and shutil.which("btrfs"):
            contenders[_COMMAND] = command
        return compare(self._effort.rounds, contenders, warm_ups=1)

    def life(self) -> Iterator[Row]:
        directory = self._mount / "life"
        directory.mkdir()
        count, commands = self._effort.operations, self._effort.commands

        def pybtrfs() -> Round:
            fd = os.open(directory, os.O_RDONLY)
            with subvolume.Subvolume(self._source) as opened:
                measured = {
                    "create": [timed(subvolume.create, (fd, f"a{n}")) for n in range(count)],
                    "snapshot": [timed(subvolume.snapshot, opened, (fd, f"b{n}")) for n in range(count)],
                    "delete": [timed(subvolume.delete, (fd, f"{letter}{n}")) for letter in "ab" for n in range(count)],
                    "raw create": [timed(ioctl.subvol_create_v2, fd, b"%d" % n) for n in range(count)],
                    "raw delete": [timed(ioctl.snap_destroy, fd, b"%d" % n) for n in range(count)],
                }
            os.close(fd)
            return measured

        def program(call: Program) -> Round:
            return {
                "create": call("create", directory, 0, count),
                "snapshot": call("snapshot", directory, count, count, self._source),
                "delete": call("delete", directory, 0, 2 * count),
                "raw create": call("create", directory, 0, count),
                "raw delete": call("delete", directory, 0, count),
            }

        def command() -> Round:
            new, copies = ([directory / f"{letter}{n}" for n in range(commands)] for letter in "ab")
            return {
                "create": [timed(_run, "subvolume", "create", path) for path in new],
                "snapshot": [timed(_run, "subvolume", "snapshot", self._source, path) for path in copies],
                "delete": [timed(_run, "subvolume", "delete", path) for path in (*new, *copies)],
            }

        targets = {(step, _C): Target(1.15, ratio=True) for step in ("create", "delete", "raw create", "raw delete")}
        yield from _rows(self._compare(pybtrfs, program, command=command), targets)

    def among_many(self) -> Iterator[Row]:
        directory = self._mount / "listed"
        directory.mkdir()
        self._bare("create", directory, 0, self._effort.listed)
        filesystem.sync(self._mount)
        yield from self._inspection(self._source, "")
        yield from self._inspection(self._mount, " of the top level")
        yield from self._listing()
        self._bare("delete", directory, 0, self._effort.listed)

    def _inspection(self, path: Path, of: str) -> Iterator[Row]:
        calls: dict[str, Callable[[int], object]] = {
            "get_id": subvolume.get_id,
            "raw get_id": ioctl.ino_lookup_treeid,
            "get_info": subvolume.get_info,
            "raw get_info": ioctl.get_subvol_info,
            "get_read_only": subvolume.get_read_only,
            "raw get_read_only": ioctl.subvol_getflags,
        }
        verbs = {step: {"id": "id", "info": "info", "only": "flags"}[step.rpartition("_")[2]] for step in calls}
        commands = {
            "get_id": ("inspect-internal", "rootid"),
            "get_info": ("subvolume", "show"),
            "get_read_only": ("property", "get", "-t", "subvol"),
        }
        count = self._effort.operations

        def pybtrfs() -> Round:
            def loop(call: Callable[[int], object], fd: int) -> None:
                for _ in range(_LOOPS):
                    call(fd)

            with subvolume.Subvolume(path) as opened:
                return {
                    step + of: [timed(loop, call, opened.fileno()) / _LOOPS for _ in range(count)]
                    for step, call in calls.items()
                }

        def program(call: Program) -> Round:
            return {step + of: call(verb, path, 0, count) for step, verb in verbs.items()}

        def command() -> Round:
            return {
                step + of: [timed(_run, *words, path) for _ in range(self._effort.commands)]
                for step, words in commands.items()
            }

        targets = {
            (f"{step}{of}", _LIBBTRFSUTIL): Target(most, ratio=True) for step, most in _INSPECTION_TARGETS.items()
        }
        yield from _rows(self._compare(pybtrfs, program, command=command), targets)

    def _listing(self) -> Iterator[Row]:
        step, looked_at = f"list {self._effort.listed:,} subvolumes", "the same, and read all fields"

        def pybtrfs() -> Round:
            return {
                step: [timed(list, subvolume.iterate(self._mount))],
                looked_at: [timed(_read, subvolume.iterate(self._mount))],
                _paused("list"): _pause(lambda: list(subvolume.iterate(self._mount)), [()]),
            }

        def program(call: Program) -> Round:
            took = call("list", self._mount, 0, 1)
            paused = {} if call is self._bare else {_paused("list"): call("pause list", self._mount, 0, 1)}
            return {step: took, looked_at: took, **paused}

        def reader() -> Round:
            with btrfs.FileSystem(os.fspath(self._mount)) as opened:
                return {step: [timed(lambda: list(opened.subvolumes()))]}

        def command() -> Round:
            return {step: [timed(_run, "subvolume", "list", self._mount)]}

        samples = self._compare(pybtrfs, program, reader, command)
        yield from _rows(samples, {(step, _LIBBTRFSUTIL): Target(1 / 3.5, ratio=True)})

    def pauses(self) -> Iterator[Row]:
        directory = self._mount / "paused"
        directory.mkdir()
        count = self._effort.operations

        def pybtrfs() -> Round:
            fd = os.open(directory, os.O_RDONLY)
            names = [f"{n}" for n in range(count)]
            with subvolume.Subvolume(self._source) as opened:
                measured = {
                    _paused("create"): _pause(subvolume.create, [((fd, name),) for name in names]),
                    _paused("delete"): _pause(subvolume.delete, [((fd, name),) for name in names]),
                    _paused("snapshot"): _pause(subvolume.snapshot, [(opened, (fd, name)) for name in names]),
                }
            for name in names:
                subvolume.delete((fd, name))
            os.close(fd)
            return measured

        def program(call: Program) -> Round:
            if call is self._bare:
                return {}
            measured = {
                _paused("create"): call("pause create", directory, 0, count),
                _paused("delete"): call("pause delete", directory, 0, count),
                _paused("snapshot"): call("pause snapshot", directory, 0, count, self._source),
            }
            call("delete", directory, 0, count)
            return measured

        yield from _rows(self._compare(pybtrfs, program))

    def threads(self) -> Iterator[Row]:
        seconds = self._effort.seconds / 30
        step = f"snapshot and delete, {THREADS} threads"
        directory = self._mount / "threads"
        directory.mkdir()

        def pybtrfs() -> Round:
            start, counts = threading.Barrier(THREADS + 1), [0] * THREADS

            def work(number: int) -> None:
                own = directory / f"{number}"
                own.mkdir()
                fd = os.open(own, os.O_RDONLY)
                with subvolume.Subvolume(self._source) as opened:
                    start.wait()
                    end = time.monotonic() + seconds
                    while time.monotonic() < end:
                        subvolume.snapshot(opened, (fd, "copy"))
                        subvolume.delete((fd, "copy"))
                        counts[number] += 1
                os.close(fd)
                own.rmdir()

            workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
            for worker in workers:
                worker.start()
            start.wait()
            return {step: [timed(_join, workers) / sum(counts)]}

        def program(call: Program) -> Round:
            if call is not self._bare:
                return {}
            took, pairs = call("copy", directory, 0, THREADS, self._source, seconds)
            return {step: [took / pairs]}

        yield from _rows(self._compare(pybtrfs, program), {(step, _C): Target(1 / 0.7, ratio=True)})


_fields = attrgetter(*ioctl.SubvolInfo._fields)


def _read(entries: Iterable[subvolume.SubvolumeEntry]) -> list[object]:
    """
    Read every field, as libbtrfsutil's binding always does.
    """
    return [(path, _fields(info.raw)) for path, info in entries]


def _join(workers: Sequence[threading.Thread]) -> None:
    for worker in workers:
        worker.join()


def _paused(call: str) -> Step:
    return f"longest pause of a thread beside {call}"


def _pause(call: Callable[..., object], arguments: Sequence[tuple[object, ...]]) -> list[float]:
    with Pause() as pause:
        for each in arguments:
            call(*each)
    return [pause.longest]
