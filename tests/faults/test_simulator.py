"""
The simulator: log and crash images are exact, faults hit the named requests, and a missing barrier is found.
"""

import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybtrfs import image, subvolume
from tests.namespaces import other_namespace

from .disk import Disk
from .fuse_disk import MARK, punch
from .mounts import mounted
from .power import MODES, Replay, sweep

pytestmark = pytest.mark.btrfs

BLOCK = 4096


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def test_replay_is_exact(tmp_path: Path) -> None:
    """
    At every point of a log, each mode leaves exactly its bytes.
    """
    rng = random.Random(1)
    size = 1 << 20
    base = tmp_path / "base"
    base.write_bytes(rng.randbytes(size))
    model = bytearray(base.read_bytes())
    states, flushed = [bytes(model)], [bytes(model)]  # after each entry: all of it, and what is durable
    with Disk(str(base)) as disk:
        with opened(f"{disk.directory}/fuse/disk", os.O_RDWR) as fd:
            for step in range(120):
                offset, length = rng.randrange(size // BLOCK - 8) * BLOCK, rng.randint(1, 8) * BLOCK
                durable = flushed[-1]
                choice = rng.random()
                if choice < 0.6:
                    data = rng.randbytes(length)
                    os.pwrite(fd, data, offset)
                    model[offset : offset + length] = data
                elif choice < 0.7:
                    punch(fd, offset, length)
                    model[offset : offset + length] = bytes(length)
                elif choice < 0.85:
                    os.fsync(fd)
                    durable = bytes(model)
                else:
                    disk.mark(f"step {step}")
                states.append(bytes(model))
                flushed.append(durable)
            assert os.pread(fd, size, 0) == model
        log = disk.log()
    assert len(log.entries) == 120
    assert log.marked(120) == [bytes(entry.data).decode() for entry in log.entries if entry.kind == MARK]
    for mode in MODES:
        with contextlib.closing(Replay(log, str(base), str(tmp_path))) as replay:
            kept = lost = 0
            for point in range(121):
                cut = Path(replay.cut(point, mode, rng)).read_bytes()
                if mode == "prefix":
                    assert cut == states[point]
                elif mode == "flushed":
                    assert cut == flushed[point]
                else:
                    since = [states[past] for past in range(point + 1) if flushed[past] == flushed[point]]
                    for start in range(0, size, BLOCK):
                        block = cut[start : start + BLOCK]
                        assert any(state[start : start + BLOCK] == block for state in since)
                        if since[-1][start : start + BLOCK] != flushed[point][start : start + BLOCK]:
                            kept += block == since[-1][start : start + BLOCK]
                            lost += block == flushed[point][start : start + BLOCK]
            if mode in ("subset", "torn"):
                assert kept > 100
                assert lost > 100


def test_points_go_forward(tmp_path: Path) -> None:
    """
    A point before the flush of the last point is refused, because its image would be wrong.
    """
    base = tmp_path / "base"
    base.write_bytes(bytes(1 << 20))
    with Disk(str(base)) as disk:
        with opened(f"{disk.directory}/fuse/disk", os.O_RDWR) as fd:
            os.pwrite(fd, b"x" * BLOCK, 0)
            os.fsync(fd)
        log = disk.log()
    with contextlib.closing(Replay(log, str(base), str(tmp_path))) as replay:
        replay.cut(2, "prefix", random.Random(0))
        with pytest.raises(ValueError, match="point 1 lies before the last one"):
            replay.cut(1, "prefix", random.Random(0))


def test_faults_hit_what_they_name(tmp_path: Path) -> None:
    """
    A refused write fails with its errno, changes nothing and is not in the log. Other writes succeed.
    """
    base = tmp_path / "base"
    base.write_bytes(bytes(1 << 20))
    with Disk(str(base)) as disk, opened(f"{disk.directory}/fuse/disk", os.O_RDWR) as fd:
        disk.refuse(f"write EIO {2 * BLOCK} {3 * BLOCK}", f"data ENOSPC {4 * BLOCK} {5 * BLOCK}", "flush EIO")
        for block, number in ((2, errno.EIO), (4, errno.ENOSPC)):
            with pytest.raises(OSError) as refused:
                os.pwrite(fd, b"x" * BLOCK, block * BLOCK)
            assert refused.value.errno == number
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(fd)
        os.pwrite(fd, b"y" * BLOCK, 3 * BLOCK)
        disk.refuse("read EIO")
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, BLOCK, 0)
        disk.refuse()
        os.pwrite(fd, b"z" * BLOCK, 2 * BLOCK)
        os.fsync(fd)
        assert os.pread(fd, 3 * BLOCK, 2 * BLOCK) == b"z" * BLOCK + b"y" * BLOCK + bytes(BLOCK)
        with pytest.raises(OSError, match="Invalid argument"):
            disk.refuse("nonsense EIO")
        assert [entry.kind for entry in disk.log().entries] == [b"W", b"W", b"F"]


def fsync(path: str) -> None:
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def create(mount: str, name: str) -> None:
    subvolume.create(f"{mount}/{name}")


def create_durably(mount: str, name: str) -> None:
    subvolume.create(f"{mount}/{name}")
    fsync(mount)


def snapshot(mount: str, name: str) -> None:
    subvolume.snapshot(f"{mount}/source", f"{mount}/{name}")


def destroy(mount: str, name: str) -> None:
    subvolume.delete(f"{mount}/old-{name}")


def destroy_durably(mount: str, name: str) -> None:
    subvolume.delete(f"{mount}/old-{name}")
    fsync(mount)


@pytest.mark.parametrize(
    ("step", "durable"),
    [(create, False), (create_durably, True), (snapshot, True), (destroy, False), (destroy_durably, True)],
)
def test_known_durability(base: str, step: Callable[[str, str], None], durable: bool) -> None:
    """
    Known properties of ioctls are found: some are durable by themselves, others lose acknowledged changes.
    """
    count = 20
    with Disk(base) as disk:
        with disk.mounted() as mount:
            subvolume.create(f"{mount}/source")
            for number in range(count):
                subvolume.create(f"{mount}/old-{number}")
            fsync(mount)
            disk.mark("start")
            for number in range(count):
                step(mount, str(number))
                disk.mark(str(number))
            disk.mark("end")
        log = disk.log()

    def verify(mount: str, marks: list[str]) -> list[str]:
        there = set(os.listdir(mount))
        done = [mark for mark in marks if mark.isdigit()]
        if step in (destroy, destroy_durably):
            return [f"{name} is back" for name in done if f"old-{name}" in there]
        return [f"{name} is lost" for name in done if name not in there]

    result = sweep(log, base, verify, points=60, seed=0, start=log.marks[0] + 1)
    if durable:
        assert not result.violations
    else:
        assert len(result.violations) > 20


def test_a_copy_of_a_mount_is_waited_for(base: str, tmp_path: Path) -> None:
    """
    A mount namespace created during a mount holds the filesystem, so the end of the mount waits for its end.
    """
    target = tmp_path / "target"
    target.mkdir()
    ended = threading.Event()

    def end_behind_the_unmounting(stack: contextlib.ExitStack) -> None:
        while target.is_mount():
            pass
        ended.set()
        stack.close()

    with image.attach(base) as device:
        with mounted(device.path, str(target)):
            stack = contextlib.ExitStack()
            stack.enter_context(other_namespace("true"))
            thread = threading.Thread(target=end_behind_the_unmounting, args=(stack,))
            thread.start()
        assert ended.is_set()
        os.close(os.open(device.path, os.O_RDONLY | os.O_EXCL))
        thread.join()


def test_nothing_is_left(base: str) -> None:
    """
    A failure inside the ``with`` removes the mount, the loop device, the server and its files.
    """
    with pytest.raises(ZeroDivisionError), Disk(base) as disk, disk.mounted():
        raise ZeroDivisionError
    assert disk.server.returncode == 0
    assert not os.path.exists(disk.directory)
    assert disk.directory not in Path("/proc/self/mountinfo").read_text()


def test_nothing_is_left_of_a_disk_in_use(base: str) -> None:
    """
    An open file on the disk keeps neither the mount nor the device alive.
    """

    def leave_open(mount: str) -> int:
        fd = os.open(os.path.join(mount, "file"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        os.write(fd, b"data")
        return fd

    with pytest.raises(OSError, match="busy"), Disk(base) as disk, disk.mounted() as mount:
        fd = leave_open(mount)
    os.close(fd)
    assert not os.path.exists(disk.directory)
    assert disk.directory not in Path("/proc/self/mountinfo").read_text()
