"""
The lock of a store: one process has it, and others are told which.
"""

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import image, processes
from pybtrfs.path import owned
from snapshotter import Snapshotter
from snapshotter.errors import (
    DataLossError,
    FailedPreconditionError,
    StoreHeldError,
)
from snapshotter.store import lock, store
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.record_storage import XATTR
from tests.conftest import PATIENCE
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


def test_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A holder that lives is named at once, without a wait for its end.
    """

    def wait(_: float) -> None:
        raise AssertionError

    with Snapshotter(root), monkeypatch.context() as patch:
        patch.setattr(time, "sleep", wait)
        with pytest.raises(StoreHeldError):
            Snapshotter(root)


def test_find_holder(root: Path, tmp_path: Path) -> None:
    """
    The holder is found without the lock, and nobody is found after the store was closed.
    """
    assert lock.find_holder(str(tmp_path)) is None
    with Snapshotter(root, socket="/run/s"):
        found = lock.find_holder(str(root))
        assert found
        assert (found.pid, found.socket) == (os.getpid(), "/run/s")
    assert lock.find_holder(str(root)) is None
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_unsigned(number: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A holder whose name cannot be written has the store, and is named all the same, not the one before.
    """
    Snapshotter(root, socket="/run/earlier.sock").close()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        store = Snapshotter(root)
    text = json.loads((root / "lock").read_text())
    (root / "lock").write_text(json.dumps(text | {"pid": 1 << 22}))
    with store, pytest.raises(StoreHeldError, match=f"root' is held by process {os.getpid()} ") as caught:
        Snapshotter(root)
    assert caught.value.socket == ""


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


def test_forked_holder(root: Path) -> None:
    """
    A forked child shares the lock, and is named at once when its parent has ended.
    """
    with holder(root) as ask:
        pid = int(ask("os.getpid()"))
        child = int(ask("os.fork() or (__import__('signal').pause(), os._exit(0))"))
        try:
            with pytest.raises(StoreHeldError, match=f"is held by process {pid} "):
                Snapshotter(root)
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(
                StoreHeldError, match=rf"(?s)is held by process {child} \(.*python.*\): stop it"
            ) as caught:
                Snapshotter(root)
            assert caught.value.socket == ""
        finally:
            os.kill(child, signal.SIGKILL)
        Snapshotter(root).close()


def wait_for_state(pid: int, state: str) -> None:
    """
    Wait until a thread of the process has a state, as in proc(5).
    """
    deadline = time.monotonic() + PATIENCE
    while all(
        task.read_text().rpartition(")")[2].split()[0] != state for task in Path(f"/proc/{pid}/task").glob("*/stat")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


FREEZE, THAW = 0xC0045877, 0xC0045878  # FIFREEZE and FITHAW of <linux/fs.h>


def test_dying_holder(root: Path, btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A killed process has the lock until its last call has ended: the next one waits for that, but not for ever.
    """
    other = btrfs_mount()
    with holder(root) as ask, owned(os.open(other, os.O_RDONLY)) as frozen:
        pid = int(ask("os.getpid()"))
        fcntl.ioctl(frozen, FREEZE, 0)
        try:
            ask(f"__import__('threading').Thread(target=os.mkdir, args=('{other}/new',)).start()")
            wait_for_state(pid, "D")
            os.kill(pid, signal.SIGKILL)
            wait_for_state(pid, "Z")
            monkeypatch.setattr(lock, "DEAD_HOLDER_SECONDS", 0)
            with pytest.raises(StoreHeldError, match=f"is held by process {pid} "):
                Snapshotter(root)
            monkeypatch.setattr(lock, "DEAD_HOLDER_SECONDS", PATIENCE)
            with ThreadPoolExecutor() as pool:
                opening = pool.submit(Snapshotter, root)
                fcntl.ioctl(frozen, THAW, 0)
                opening.result().close()
        finally:
            with suppress(OSError):
                fcntl.ioctl(frozen, THAW, 0)


def test_unreadable_holder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A lock without a readable holder still holds the store.
    """
    monkeypatch.setattr(lock, "DEAD_HOLDER_SECONDS", 0)
    with Snapshotter(root):
        for text in (b"", b"{", b"[]", b'{"pid": "x"}', b'{"command": 1}', b"\xff"):
            (root / "lock").write_bytes(text)
            with pytest.raises(StoreHeldError):
                Snapshotter(root)


def test_unseen_holder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A holder that is hidden, as in another pid namespace, is still a holder; its command can be hidden as well.
    """
    monkeypatch.setattr(lock, "UNSEEN_HOLDER_SECONDS", 0)
    with holder(root) as ask:
        pid = int(ask("os.getpid()"))
        (root / "lock").write_text(json.dumps({"pid": 1 << 22}))

        def open_(path: str, *arguments: str, **options: Any) -> Any:
            if path.endswith("cmdline"):
                raise PermissionError(path)
            return open(path, *arguments, **options)

        monkeypatch.setattr(processes, "open", open_, raising=False)
        with pytest.raises(StoreHeldError, match=rf"is held by process {pid} \(unknown\)"):
            Snapshotter(root)
        listed = os.listdir
        monkeypatch.setattr(os, "listdir", lambda path: [] if path == "/proc" else listed(path))
        with pytest.raises(StoreHeldError, match=r"is held by process \? \(unknown\)"):
            Snapshotter(root)


def test_release_in_a_child(root: Path) -> None:
    """
    A forked child that releases the lock leaves it to its parent.
    """
    with owned(os.open(root, os.O_RDONLY)) as fd, lock.Lock(fd, str(root)) as held:
        if not (pid := os.fork()):
            held.release()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with pytest.raises(StoreHeldError, match=f"is held by process {os.getpid()} "):
            lock.Lock(fd, str(root))


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
