"""
The barrier takes turns only where concurrent fsyncs slow each other down, and waits for a turn only briefly.
"""

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybtrfs import mountinfo, syscall
from pybtrfs.path import owned
from snapshotter import Snapshotter
from snapshotter.store.barrier import Barrier
from snapshotter.store.btrfs import BtrfsVolumes

pytestmark = pytest.mark.btrfs

PATIENCE = 10


class Fsync:
    """
    os.fsync, whose first call hangs until `release`, and a lock that tells of its waiters.

    Attributes:
        happened: ``"fsync"`` for each begun fsync, and ``"waits"`` for each caller that waits for its turn.
    """

    def __init__(self) -> None:
        self.happened: queue.Queue[str] = queue.Queue()
        self.calls = 0
        self._may_end = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, fd: int) -> None:
        self.calls += 1
        first = self.calls == 1
        self.happened.put("fsync")
        if first:
            assert self._may_end.wait(PATIENCE)

    def next(self) -> str:
        return self.happened.get(timeout=PATIENCE)

    def end(self) -> None:
        self._may_end.set()

    def acquire(self, *, timeout: float) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        self.happened.put("waits")
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()


@pytest.fixture
def root(btrfs_mount: Callable[..., Path]) -> Path:
    """
    A btrfs without the option ``ssd``.
    """
    return btrfs_mount(options="nossd")


@pytest.fixture
def fd(root: Path) -> Iterator[int]:
    with owned(os.open(root, os.O_RDONLY)) as opened:
        yield opened


def second(call: Callable[[], object], turns: Barrier, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    Return the action of a second *call* while the fsync of the first *call* hangs: ``"fsync"`` or ``"waits"``.
    """
    fsync = Fsync()
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(turns, "_turn", fsync)
        try:
            first = pool.submit(call)
            assert fsync.next() == "fsync"
            other = pool.submit(call)
            seen = fsync.next()
        finally:
            fsync.end()
        first.result(PATIENCE)
        other.result(PATIENCE)
    assert fsync.calls == 2
    return seen


@pytest.mark.parametrize(
    ("options", "seen"), [("nossd", "waits"), ("ssd", "fsync"), ("ssd_spread", "fsync"), ("nossd,notreelog", "fsync")]
)
def test_turns(options: str, seen: str, btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The barriers of a store take turns on a mount without ``ssd``, unless each fsync is a commit of the filesystem.
    """
    root = btrfs_mount(options=options)
    volumes = BtrfsVolumes(str(root), "bind")
    try:
        with owned(os.open(root, os.O_RDONLY)) as directory:
            assert second(lambda: volumes.barrier(directory), volumes._barrier, monkeypatch) == seen
    finally:
        volumes.close()


def test_a_remount_counts(root: Path, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A remount with other options counts when the options are read again.
    """
    turns, late = Barrier(fd, options_seconds=0), Barrier(fd, options_seconds=1000)
    late(fd)
    for options, seen in (("nossd", "waits"), ("ssd", "fsync"), ("nossd", "waits")):
        syscall.mount("", root, "", syscall.MS_REMOUNT, options)
        assert second(lambda: turns(fd), turns, monkeypatch) == seen
        assert second(lambda: late(fd), late, monkeypatch) == "waits"


def test_a_hanging_fsync_holds_up_no_other(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A caller whose turn does not come runs its fsync without.
    """
    turns, fsync = Barrier(fd, turn_seconds=0), Fsync()
    monkeypatch.setattr(os, "fsync", fsync)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(turns, fd)
        assert fsync.next() == "fsync"
        for _ in range(3):
            turns(fd)
        assert not hanging.done()
        fsync.end()
        hanging.result(PATIENCE)


def test_a_store_with_a_hanging_fsync(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Changes of other snapshots succeed, and reads are answered, while the fsync of a snapshot's directory hangs.
    """
    with Snapshotter.create(root / "store") as store, ThreadPoolExecutor(1) as pool:
        for key in "ab":
            store.prepare(key)
        store.commit("layer", "b")
        fsync = Fsync()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            removing = pool.submit(store.remove, "a")
            assert fsync.next() == "fsync"
            store.view("view", "layer")
            store.prepare("active", "layer")
            store.update(store.stat("layer"), "labels.x")
            store.remove("view")
            assert {info.name for info in store.walk()} == {"a", "active", "layer"}
            assert store.mounts("active")
            assert store.usage("layer").inodes == 1
            assert not removing.done()
            fsync.end()
            removing.result(PATIENCE)


def test_a_refused_fsync_ends_its_turn(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The error of an fsync is raised, and the next caller has its turn.
    """
    turns = Barrier(fd)

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            turns(fd)
    assert turns._turn.acquire(blocking=False)


@pytest.mark.parametrize("hidden", ["error", "invisible"])
def test_unknown_options(hidden: str, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without /proc, or without a view of the mount, fsyncs run concurrently.
    """

    def own(_: int) -> None:
        if hidden == "error":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(mountinfo, "own", own)
    turns = Barrier(fd)
    assert second(lambda: turns(fd), turns, monkeypatch) == "fsync"
