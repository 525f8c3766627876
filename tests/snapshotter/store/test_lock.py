"""
The lock of a store: one process has it, and others are told which.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pybtrfs import image
from snapshotter import Snapshotter
from snapshotter.errors import (
    DataLossError,
    FailedPreconditionError,
    StoreHeldError,
)
from snapshotter.store import lock, store
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.record_storage import XATTR
from tests.snapshotter.store.stores import holder

pytestmark = pytest.mark.btrfs


def test_held_here(root: Path) -> None:
    """
    A store can be open once in a process for writing, and again after it was closed.
    """
    with Snapshotter(root) as first:
        with pytest.raises(StoreHeldError, match=f"root' is held by process {os.getpid()} "):
            Snapshotter(root)
        first.prepare("k")
    Snapshotter(root).close()


def test_held_elsewhere(root: Path) -> None:
    """
    Another process's hold is told with its id and command, and lasts until it ends; reading goes on beside it.
    """
    with holder(root, "an argument") as ask:
        pid = int(ask("os.getpid()"))
        with pytest.raises(StoreHeldError, match=f"is held by process {pid} .*root an argument"):
            Snapshotter(root)
        with pytest.raises(StoreHeldError):
            Snapshotter.adopt(root)
        with Snapshotter(root, read_only=True) as reader, Snapshotter(root, read_only=True) as another:
            assert ask("store.prepare('k', 'base') and 'fine'") == "fine\n"
            for each in (reader, another):
                assert {info.name for info in each.walk()} == {"base", "view", "nothing"}
        with Snapshotter(root, read_only=True) as reader:
            assert reader.stat("k").parent == "base"
            assert reader.mounts("k")
    works_again = Snapshotter(root)
    works_again.remove("k")
    works_again.close()


def test_socket(root: Path) -> None:
    """
    The lock names the socket that the store is served at, and no longer once somebody else has it.
    """
    Snapshotter(root, socket="/run/a.sock").close()
    assert json.loads((root / "lock").read_text())["socket"] == "/run/a.sock"
    Snapshotter(root).close()
    assert json.loads((root / "lock").read_text())["socket"] == ""


def test_held_on_a_full_disk(btrfs_mount: Callable[..., Path]) -> None:
    """
    A store opens on a disk that has no place for the holder's name, to be emptied, and is held all the same.
    """
    mount = btrfs_mount(image.MINIMUM_SIZE)
    with Snapshotter.create(mount / "root") as store:
        store.prepare("k")
    with open(mount / "filler", "wb", buffering=0) as filler:
        for size in 1 << 20, 4096:
            with suppress(OSError):
                while True:
                    filler.write(bytes(size))
    with Snapshotter(mount / "root") as store:
        with pytest.raises(StoreHeldError, match="root' is held by process"):
            Snapshotter(mount / "root")
        store.remove("k")
        store.cleanup()
        assert list(store.walk()) == []


def test_long_command(root: Path) -> None:
    """
    A holder is known however long its command is.
    """
    with holder(root, *(100 * "é" for _ in range(300))) as ask:
        pid = int(ask("os.getpid()"))
        with pytest.raises(StoreHeldError, match=f"is held by process {pid} "):
            Snapshotter(root)


def test_killed_holder(root: Path) -> None:
    """
    A killed holder, collected or not, is in nobody's way.
    """
    with holder(root) as ask:
        pid = int(ask("os.getpid()"))
        os.kill(pid, signal.SIGKILL)
        works_again = Snapshotter(root)
        works_again.remove("view")
        works_again.close()


def test_dying_holder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The lock of a dead process can last, until its last call has ended: that is waited for, but not for ever.
    """
    with holder(root) as ask:
        pid = int(ask("os.getpid()"))
        # A child shares the lock, as the kernel does for a call under way.
        child = int(ask("os.fork() or (__import__('signal').pause(), os._exit(0))"))
        os.kill(pid, signal.SIGKILL)
        monkeypatch.setattr(lock, "DEAD_HOLDER_SECONDS", 0)
        with pytest.raises(StoreHeldError, match=f"is held by process {pid} "):
            Snapshotter(root)
        monkeypatch.setattr(lock, "DEAD_HOLDER_SECONDS", 60)

        class Time:
            monotonic = staticmethod(time.monotonic)
            time_ns = staticmethod(time.time_ns)

            @staticmethod
            def sleep(seconds: float) -> None:
                os.kill(child, signal.SIGKILL)
                time.sleep(seconds)

        monkeypatch.setattr(lock, "time", Time)
        Snapshotter(root).close()


def test_unreadable_holder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What does not say who holds the store is still a hold.
    """
    monkeypatch.setattr(lock, "DEAD_HOLDER_SECONDS", 0)
    with Snapshotter(root):
        for text in (b"", b"{", b"[]", b'{"pid": "x"}', b'{"command": 1}', b"\xff"):
            (root / "lock").write_bytes(text)
            with pytest.raises(StoreHeldError):
                Snapshotter(root)


def test_lock_is_no_symlink(root: Path) -> None:
    """
    A link in the place of the lock is not followed.
    """
    (root / "lock").unlink()
    (root / "target").write_text("precious")
    (root / "lock").symlink_to("target")
    with pytest.raises(FailedPreconditionError):
        Snapshotter(root)
    assert (root / "target").read_text() == "precious"


def test_lock_is_not_kept(root: Path) -> None:
    """
    A store that turns out not to be usable once it is taken is let go.
    """
    opened = store.Store(str(root), volumes := BtrfsVolumes(str(root), "btrfs"))
    header = os.getxattr(root / "store", XATTR)
    os.setxattr(root / "store", XATTR, b"{}")
    with pytest.raises(DataLossError):
        opened.acquire()
    os.setxattr(root / "store", XATTR, header)
    opened.acquire().release()
    opened.close()
    volumes.close()
