"""
The log of fuse_disk.py, the images that a power failure can leave, and a sweep over many points of failure.
"""

import bisect
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

from pybtrfs import image

from .fuse_disk import ENTRY, FLUSH, MARK, WRITE, ZERO, punch
from .mounts import mounted

MODES = ("prefix", "flushed", "subset", "torn")
SECTOR = 4096  # the unit that a torn write keeps or loses


class Entry(NamedTuple):
    """
    An action of the disk, with the data of a write or a marker.
    """

    kind: bytes
    offset: int
    length: int
    data: memoryview


class Log:
    """
    The entries of a log, in the order of the disk.
    """

    def __init__(self, log: bytes) -> None:
        content = memoryview(log)
        self.entries: list[Entry] = []
        position = 0
        while position < len(content):
            kind, offset, length = ENTRY.unpack_from(content, position)
            position += ENTRY.size
            data = content[position : position + length] if kind in (WRITE, MARK) else content[:0]
            self.entries.append(Entry(kind, offset, length, data))
            position += len(data)
        self.flushes = [index for index, entry in enumerate(self.entries) if entry.kind == FLUSH]
        self.marks = [index for index, entry in enumerate(self.entries) if entry.kind == MARK]

    def marked(self, point: int) -> list[str]:
        """
        Return the markers among the first *point* entries.
        """
        return [bytes(self.entries[index].data).decode() for index in self.marks if index < point]

    def points(self, count: int, rng: random.Random, start: int = 0) -> list[int]:
        """
        Return *count* points of power failure: ascending numbers of entries, at least *start*.

        Half of them are anywhere. The other half directly follow a marker or a flush, because an acknowledgement
        without a barrier shows there.
        """
        after = [index + 1 for index in sorted(self.flushes + self.marks) if index + 1 >= start]
        anywhere = range(start, len(self.entries) + 1)
        return sorted(rng.choice(after) if number % 2 else rng.choice(anywhere) for number in range(count))


class Replay:
    """
    The images that a power failure can leave: all flushed writes, and a selection of the later writes.

    - ``prefix``: all later writes.
    - ``flushed``: no later write.
    - ``subset``: each later write with a probability of one half.
    - ``torn``: each 4 KiB of later writes with a probability of one half.

    Points must ascend, because the image of flushed writes is kept and moved forward.
    """

    def __init__(self, log: Log, base: str, directory: str) -> None:
        self.log = log
        self.path = f"{directory}/crashed"
        self._position = 0
        with open(base, "rb") as source, open(f"{directory}/durable", "w+b") as durable:
            copy_sparse(source.fileno(), durable.fileno())
            self._durable = os.dup(durable.fileno())
            self._crashed = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._crashed, os.fstat(self._durable).st_size)  # the loop device reads its size once

    def close(self) -> None:
        os.close(self._durable)
        os.close(self._crashed)

    def cut(self, point: int, mode: str, rng: random.Random) -> str:
        """
        Return the image after the first *point* entries and a power failure. The next call overwrites it.
        """
        flushed = bisect.bisect_left(self.log.flushes, point)
        barrier = self.log.flushes[flushed - 1] + 1 if flushed else 0
        if barrier < self._position:
            raise ValueError(f"point {point} lies before the last one")
        for entry in self.log.entries[self._position : barrier]:
            apply(self._durable, entry)
        self._position = barrier
        copy_sparse(self._durable, self._crashed)
        for entry in self.log.entries[barrier:point]:
            for part in kept(entry, mode, rng):
                apply(self._crashed, part)
        return self.path


def kept(entry: Entry, mode: str, rng: random.Random) -> Iterator[Entry]:
    """
    Yield the parts of an unflushed write that a power failure leaves.
    """
    if mode == "prefix":
        yield entry
    elif mode == "subset":
        if rng.random() < 0.5:
            yield entry
    elif mode == "torn":
        for start in range(0, entry.length, SECTOR):
            if rng.random() < 0.5:
                length = min(SECTOR, entry.length - start)
                yield Entry(entry.kind, entry.offset + start, length, entry.data[start : start + length])
    elif mode != "flushed":
        raise ValueError(f"no such mode: {mode!r}")


def apply(fd: int, entry: Entry) -> None:
    """
    Apply *entry* to the file.
    """
    if entry.kind == WRITE:
        os.pwrite(fd, entry.data, entry.offset)
    elif entry.kind == ZERO:
        punch(fd, entry.offset, entry.length)


class Result(NamedTuple):
    """
    The result of a sweep: each crash point with violations, with its place, its mode and the violations.
    """

    points: int
    seconds: float
    violations: list[tuple[int, str, list[str]]]

    def __str__(self) -> str:
        each = self.seconds / self.points
        lines = [f"{self.points} crash points, {len(self.violations)} with violations, {each:.3f} s each"]
        lines += [
            f"  after {point} entries, {mode}: {'; '.join(found[:5])}" for point, mode, found in self.violations[:10]
        ]
        return "\n".join(lines)


def sweep(
    log: Log,
    base: str,
    verify: Callable[[str, list[str]], list[str]],
    *,
    points: int,
    seed: int,
    start: int = 0,
    options: str = "",
) -> Result:
    """
    Cut the power at *points* places of *log* behind *start*, in all modes, and verify each image.

    *verify* gets the mount point and the markers before the failure, and returns the violations. An image that does
    not mount is a violation.
    """
    rng = random.Random(seed)
    violations = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/dev/shm") as directory:
        target = os.path.join(directory, "mount")
        os.mkdir(target)
        with closing(Replay(log, base, directory)) as replay, image.attach(replay.path) as device:
            for number, point in enumerate(log.points(points, rng, start)):
                mode = MODES[number % len(MODES)]
                replay.cut(point, mode, rng)
                try:
                    with mounted(device.path, target, options):
                        found = verify(target, log.marked(point))
                except OSError as error:
                    found = [f"{error!r}"]
                if found:
                    violations.append((point, mode, found))
                if (number + 1) % 50 == 0:
                    print(f"  {number + 1} of {points} crash points, {len(violations)} with violations", flush=True)
    result = Result(points, time.monotonic() - began, violations)
    print(f"seed {seed}: {result}", flush=True)
    return result


def copy_sparse(source: int, target: int) -> None:
    """
    Copy *source* to *target* with its holes.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, 0)
    os.ftruncate(target, size)
    for start, end in segments(source, size):
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            start += os.sendfile(target, source, start, end - start)


def segments(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """
    Yield the start and end of each part of a file that is no hole.
    """
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole to the end
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
