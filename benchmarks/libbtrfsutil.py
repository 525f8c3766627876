"""
``python3 -m benchmarks.libbtrfsutil``: libbtrfsutil's own binding, with the commands of ``bare.c``.

The system's Python runs it.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import btrfsutil  # type: ignore[import-not-found] # Debian's python3-btrfsutil

from benchmarks.pause import Pause

_LOOPS = 100  # calls of a microsecond each


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - begin


def _operations(verb: str, directory: str, first: int, count: int, extra: list[str]) -> Iterator[Callable[[], object]]:
    for number in range(first, first + count):
        path = f"{directory}/{number}"
        if verb == "create":
            yield lambda path=path: btrfsutil.create_subvolume(path)  # type: ignore[misc]
        elif verb == "snapshot":
            yield lambda path=path: btrfsutil.create_snapshot(extra[0], path)  # type: ignore[misc]
        elif verb == "delete":
            yield lambda path=path: btrfsutil.delete_subvolume(path)  # type: ignore[misc]
        elif verb == "list":
            yield lambda: list(btrfsutil.SubvolumeIterator(directory, 5, info=True))
        else:
            raise ValueError(verb)


def _loop(call: Callable[[int], Any], path: str) -> float:
    fd = os.open(path, os.O_RDONLY)

    def loop() -> None:
        for _ in range(_LOOPS):
            call(fd)

    try:
        return _timed(loop) / _LOOPS
    finally:
        os.close(fd)


_INSPECTIONS = {
    "id": btrfsutil.subvolume_id,
    "info": btrfsutil.subvolume_info,
    "flags": btrfsutil.get_subvolume_read_only,
}


def _run(verb: str, directory: str, first: int, count: int, *extra: str) -> list[float]:
    """
    Return the nanoseconds of each operation, or after ``pause`` the longest pause of another thread.
    """
    if verb in _INSPECTIONS:
        return [_loop(_INSPECTIONS[verb], directory) for _ in range(count)]
    operations = list(_operations(verb.removeprefix("pause "), directory, first, count, list(extra)))
    if verb.startswith("pause "):
        with Pause() as pause:
            for operation in operations:
                operation()
        return [pause.longest]
    return [_timed(operation) for operation in operations]


for line in sys.stdin:
    verb, directory, first, count, *extra = line.rstrip("\n").split("\t")
    print(*_run(verb, directory, int(first), int(count), *extra), flush=True)
