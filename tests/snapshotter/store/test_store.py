"""
A store's directory: made anywhere it can be, owned by one process, told from its copies.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import image, subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StoreHeldError,
)
from snapshotter.maintenance import doctor
from snapshotter.store import lock, records, store
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.layout import Directory
from snapshotter.store.record_storage import XATTR
from snapshotter.testing import DirectoryVolumes

pytestmark = pytest.mark.btrfs


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    syscall.mount("none", path, "tmpfs")
    yield path
    syscall.umount2(path)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def settle(opened: Snapshotter) -> None:
    """
    Bring all records up to date, and destroy what is left over, now.
    """
    for snapshot in opened.opened.index.snapshots():
        opened.opened.operations.settle(snapshot)
    opened.cleanup()


def works(opened: Snapshotter) -> None:
    """
    Put a store to use, and close it.
    """
    with opened:
        opened.prepare("k")
        opened.commit("base", "k")
        opened.view("view", "base")
        opened.view("nothing")
        settle(opened)


# Making one


def test_missing(btrfs: Path) -> None:
    """
    A root that does not exist is made as a subvolume, also through a symlink to where it shall be.
    """
    works(Snapshotter.create(btrfs / "root"))
    (btrfs / "link").symlink_to("target")
    works(Snapshotter.create(btrfs / "link"))
    assert subvolume.is_subvolume(btrfs / "root")
    assert subvolume.is_subvolume(btrfs / "target")
    works(Snapshotter.create(btrfs / os.fsdecode(b"\xff")))


def test_missing_directory(btrfs: Path) -> None:
    """
    Nothing above the root is made.
    """
    with pytest.raises(NotFoundError, match=r"missing' does not exist: make it first"):
        Snapshotter.create(btrfs / "missing" / "root")
    assert os.listdir(btrfs) == []


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_empty_directory(umask: int, btrfs: Path) -> None:
    """
    An empty directory is used as it is, and closed to everybody else; the modes are the same whatever the umask.
    """
    root = btrfs / "root"
    root.mkdir(0o755)
    before = os.umask(umask)
    try:
        works(Snapshotter.create(root))
    finally:
        os.umask(before)
    assert not subvolume.is_subvolume(root)
    modes = {str(path.relative_to(root)): mode(path) for path in (root, *root.rglob("*"))}
    if umask == 0o777:  # the directories below the root are closed even to their owner, which root does not notice
        modes |= dict.fromkeys(("store", "snapshots", *(f"snapshots/{id}" for id in (1, 2, 3))), 0o700)
        modes["lock"] = 0o600
    assert modes == {
        ".": 0o700,
        "store": 0o700,
        "lock": 0o600,
        "empty": 0o755,
        "snapshots": 0o700,
        "snapshots/1": 0o700,
        "snapshots/1/layer": 0o755,
        "snapshots/2": 0o700,
        "snapshots/3": 0o700,
    }
    assert subvolume.get_read_only(root / "empty")


def test_mount_point(btrfs_mount: Callable[..., Path]) -> None:
    """
    The root of a filesystem can be the root of a store.
    """
    root = btrfs_mount()
    works(Snapshotter.create(root))
    works_again = Snapshotter(root)
    works_again.remove("view")
    works_again.close()


def test_refused(btrfs: Path, tmpfs: Path) -> None:
    """
    What is something else, or not on btrfs, is refused by name and not changed.
    """
    (btrfs / "file").write_text("content")
    (btrfs / "full").mkdir(0o755)
    (btrfs / "full" / "content").touch()
    (tmpfs / "empty").mkdir(0o755)
    for root, text in [
        (btrfs / "file", "Not a directory"),
        (btrfs / "full", "full' is not empty: it holds 'content'"),
        (tmpfs / "empty", "empty' is not on btrfs"),
        (tmpfs / "missing", "missing' is not on btrfs"),
        (Path("/proc/root"), "is not on btrfs"),
    ]:
        with pytest.raises(FailedPreconditionError, match=text):
            Snapshotter.create(root)
    assert (btrfs / "file").read_text() == "content"
    assert mode(btrfs / "full") == mode(tmpfs / "empty") == 0o755
    assert os.listdir(btrfs / "full") == ["content"]
    assert os.listdir(tmpfs) == ["empty"]


@pytest.mark.parametrize("options", [{"client": ""}, {"usage": "du"}, {"mount_mode": "overlay"}])
def test_bad_options(options: dict[str, Any], btrfs: Path) -> None:
    """
    Wrong options are refused before anything is made.
    """
    with pytest.raises(InvalidArgumentError):
        Snapshotter.create(btrfs / "root", **options)
    assert os.listdir(btrfs) == []


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 256, "é" * 128, "x/" * 2048, "a\0" + "x" * 5000, "\ud800"], ids=lambda name: ascii(name[:4])
)
@pytest.mark.parametrize("call", [Snapshotter, Snapshotter.create, Snapshotter.adopt, doctor.examine])
def test_impossible_path(call: Callable[[str], object], name: str, btrfs: Path) -> None:
    """
    A root that no file can have is named, shortened, and nothing is made.
    """
    with pytest.raises(
        InvalidArgumentError, match=r"is not a path|has more than 4095 bytes, or a name in it"
    ) as caught:
        call(f"{btrfs}/{name}")
    assert len(str(caught.value)) < 500
    assert os.listdir(btrfs) == []


def test_longest_name(btrfs: Path) -> None:
    """
    A name may be as long as the filesystem takes it.
    """
    works(Snapshotter.create(btrfs / ("é" * 127 + "x")))


def test_is_one_already(btrfs: Path) -> None:
    """
    A store is not made again, and not touched, also where somebody has it.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    with Snapshotter(root) as held:
        root.chmod(0o750)
        lock = (root / "lock").read_text()
        os.utime(root / "lock", (0, 0))
        with pytest.raises(AlreadyExistsError, match="root' is already a store"):
            Snapshotter.create(root)
        assert held.stat("base")
    assert (mode(root), (root / "lock").read_text(), (root / "lock").stat().st_mtime) == (0o750, lock, 0)


def test_lost_record(btrfs: Path) -> None:
    """
    Snapshots whose store lost its record, as in a copy without attributes, are not taken into a new store.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    os.removexattr(root / "store", "user.snapshotter")
    with pytest.raises(FailedPreconditionError, match="holds snapshots, and the record of their store is gone"):
        Snapshotter.create(root)


@pytest.mark.parametrize("step", range(7))
def test_half_made(step: int, btrfs: Path) -> None:
    """
    What a maker that was killed left behind is not a store, and is completed by the next one.
    """
    root = btrfs / "root"
    subvolume.create(root)
    for made in [
        lambda: root.chmod(0o700),
        lambda: (root / "lock").touch(0o600),
        lambda: (root / "store").mkdir(),
        lambda: (root / "snapshots").mkdir(),
        lambda: subvolume.create(root / "empty"),
        lambda: subvolume.set_read_only(root / "empty"),
    ][:step]:
        made()
    if step < 6:
        (root / "empty").exists() and (root / "empty").chmod(0o700)
    with pytest.raises(FailedPreconditionError, match="root' is not a store: make one with"):
        Snapshotter(root)
    works(Snapshotter.create(root))
    assert subvolume.get_read_only(root / "empty")
    assert mode(root / "empty") == 0o755


def test_two_makers(btrfs: Path) -> None:
    """
    Of two who make one store at once, the second is refused and harms neither the store nor its maker.
    """
    inside, go_on = threading.Event(), threading.Event()

    class Slow(BtrfsVolumes):
        def make_empty(self, root_fd: int) -> None:
            inside.set()
            assert go_on.wait(10)
            super().make_empty(root_fd)

    stores: list[Snapshotter] = []
    first = threading.Thread(target=lambda: stores.append(Snapshotter.create(btrfs / "root", volumes=Slow)))
    first.start()
    assert inside.wait(10)
    with pytest.raises(StoreHeldError, match=f"held by process {os.getpid()}"):
        Snapshotter.create(btrfs / "root")
    go_on.set()
    first.join()
    works(stores[0])


def test_overtaken_maker(btrfs: Path) -> None:
    """
    Who made the root, but was overtaken in making the store, leaves it to the other.
    """

    class Overtaken(BtrfsVolumes):
        @staticmethod
        def make_root(path: str) -> None:
            BtrfsVolumes.make_root(path)
            works(Snapshotter.create(path))

    with pytest.raises(AlreadyExistsError):
        Snapshotter.create(btrfs / "root", volumes=Overtaken)
    with Snapshotter(btrfs / "root") as opened:
        assert opened.stat("base")


# Opening one


def test_not_a_store(btrfs: Path, tmpfs: Path) -> None:
    """
    What is no store is refused with what it is, and the cure.
    """
    (btrfs / "file").touch()
    (btrfs / "odd").mkdir()
    (btrfs / "odd" / "store").touch()
    (btrfs / "link").mkdir()
    (btrfs / "link" / "store").symlink_to("/")
    for root, error, text in [
        (btrfs, FailedPreconditionError, "is not a store: make one with `snapshotter init`"),
        (btrfs / "missing", NotFoundError, "missing' does not exist: make it with `snapshotter init`"),
        (btrfs / "file", FailedPreconditionError, "file'.*: Not a directory"),
        (btrfs / "odd", FailedPreconditionError, "odd'.*: Not a directory"),
        (btrfs / "link", FailedPreconditionError, "link'.*: Not a directory"),
        (tmpfs, FailedPreconditionError, "is not on btrfs"),
    ]:
        with pytest.raises(error, match=text):
            Snapshotter(root)


def test_damaged_header(btrfs: Path) -> None:
    """
    A store whose own record is damaged, or another's, is not opened.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    header = os.getxattr(root / "store", XATTR)
    damages = [header[:-1], header.replace(b"local", b"lokal"), b"", records.seal({"id": 1}), records.seal({})]
    for damage in damages:
        os.setxattr(root / "store", XATTR, damage)
        with pytest.raises(DataLossError, match=r"the record of store .*root' is damaged"):
            Snapshotter(root)
    os.setxattr(root / "store", XATTR, header)
    Snapshotter(root).close()


def test_newer_store(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A newer release's store is refused with both numbers, and not changed.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    monkeypatch.setattr(records, "FORMAT", 7)
    newer = records.seal({"place": "elsewhere"})
    monkeypatch.undo()
    os.setxattr(root / "store", XATTR, newer)
    with pytest.raises(
        FailedPreconditionError, match="format 7 was written by a newer release; this one reads up to 1"
    ):
        Snapshotter(root)
    assert os.getxattr(root / "store", XATTR) == newer


def test_read_only_filesystem(btrfs_mount: Callable[..., Path]) -> None:
    """
    On a filesystem mounted read-only a store can be read, and says why it cannot be opened otherwise.
    """
    root = btrfs_mount()
    works(Snapshotter.create(root))
    syscall.mount("", root, "", syscall.MS_REMOUNT | syscall.MS_RDONLY)
    with pytest.raises(Exception, match=r"cannot open store .*: Read-only file system"):
        Snapshotter(root)
    with Snapshotter(root, read_only=True) as reader:
        assert reader.stat("base")


def test_loosened(btrfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    A root that somebody opened to others is closed, and that is said, by who opens it for changes only.
    """
    root = btrfs / "root"
    Snapshotter.create(root).close()
    root.chmod(0o2755)
    Snapshotter(root, read_only=True).close()
    assert (mode(root), caplog.text) == (0o2755, "")
    Snapshotter(root).close()
    assert mode(root) == 0o700
    assert f'tightened root={root} error="its mode was 2755"' in caplog.text
    caplog.clear()
    Snapshotter(root).close()
    assert caplog.text == ""


# The lock

HOLD = """
import os, sys
from snapshotter import Snapshotter
with Snapshotter(sys.argv[1]) as store:
    print("ready", flush=True)
    for expression in sys.stdin:
        print(eval(expression), flush=True)
"""


@contextmanager
def holder(root: Path, *arguments: str) -> Iterator[Callable[[str], str]]:
    """
    Another process that has the store open; gives a function to have it evaluate something.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout

    def ask(expression: str) -> str:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{expression}\n")
        process.stdin.flush()
        return process.stdout.readline()

    try:
        assert process.stdout.readline() == "ready\n"
        yield ask
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.fixture
def root(btrfs: Path) -> Path:
    """
    A store with the layer "base" and two views.
    """
    works(Snapshotter.create(btrfs / "root"))
    return btrfs / "root"


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


# Ids


def ids(root: Path) -> set[int]:
    return {int(name) for name in os.listdir(root / "snapshots")}


def test_ids_are_never_used_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    No id is given out twice: not after a removal, a failure, another opening, nor when the process was killed.
    """
    monkeypatch.setattr(store, "ID_BLOCK", 3)
    seen = ids(root)
    for number in range(4):
        with Snapshotter(root) as opened:
            for repetition in range(5):
                opened.prepare("k", "base" if repetition % 2 else "")
                new = ids(root) - seen
                assert len(new) == 1
                assert min(new) > max(seen)
                seen |= new
                opened.remove("k")
                with pytest.raises(InvalidArgumentError):
                    opened.prepare("k", labels={f"{key}": "x" * 4000 for key in range(9)})
            opened.cleanup()
        with holder(root) as ask:
            ask(f"store.prepare('{number}')")
            new = ids(root) - seen
            assert min(new) > max(seen)
            seen |= new
            os.kill(int(ask("os.getpid()")), signal.SIGKILL)


# Copies


def everything(root: Path) -> dict[str, object]:
    return {
        str(path.relative_to(root)): os.getxattr(path, XATTR) if XATTR in os.listxattr(path) else None
        for path in root.rglob("*")
    }


CHANGES: dict[str, Callable[[Snapshotter], object]] = {
    "prepare": lambda copy: copy.prepare("new"),
    "view": lambda copy: copy.view("new", "base"),
    "commit": lambda copy: copy.commit("c", "active"),
    "fork": lambda copy: copy.fork("active", "new"),
    "update": lambda copy: copy.update(copy.stat("base")),
    "remove": lambda copy: copy.remove("view"),
    "cleanup": lambda copy: copy.cleanup(),
}


def copied(root: Path, how: str) -> Path:
    """
    Copy the store, or the whole directory around it, and say where the copy is.
    """
    copy = root.parent / "copy"
    if how == "cp":
        subprocess.run(["cp", "-a", root, copy], check=True)
    elif how == "rollback":
        subvolume.snapshot(root, copy)
        subvolume.delete(root, recursive=True)
        copy.rename(root)
        return root
    elif how == "around":
        subvolume.create(root.parent / "around")
        inside = root.parent / "around" / "root"
        with Snapshotter(root) as store:
            assert not store.why_read_only
        inside.mkdir()
        works(Snapshotter.create(inside))
        with Snapshotter(inside) as store:
            store.prepare("active", "base")
            settle(store)
        subvolume.snapshot(root.parent / "around", copy)
        return copy / "root"
    else:
        subvolume.snapshot(root, copy, read_only=how == "read-only snapshot")
    return copy


@pytest.mark.parametrize("how", ["snapshot", "read-only snapshot", "cp", "rollback", "around"])
def test_copy(how: str, root: Path) -> None:
    """
    A copy of the records without the subvolumes can be read and says so, and nothing in it is ever changed: all its
    snapshots seem lost.
    """
    with Snapshotter(root) as opened:
        opened.prepare("active", "base")
        settle(opened)
    copy = copied(root, how)
    before = everything(copy)
    with Snapshotter(copy) as opened:
        assert opened.why_read_only == "it is a copy of a store: make it a store with `snapshotter init --adopt`"
        assert {info.name for info in opened.walk()} == {"base", "active", "view", "nothing"}
        for change in CHANGES.values():
            with pytest.raises(FailedPreconditionError, match=r"copy.*adopt|root.*adopt"):
                change(opened)
        assert {problem.subject for problem in opened.problems()} == {"base", "active", str(copy)}
    with pytest.raises(FailedPreconditionError, match=r"none of the 2 subvolumes are in .*bring the subvolumes too"):
        Snapshotter.adopt(copy)
    assert everything(copy) == before
    with Snapshotter(copy) as opened, ExitStack() as stack:
        if how != "rollback":
            stack.enter_context(Snapshotter(root)).prepare("new", "base")


@pytest.mark.parametrize("empty", ["moved", "left behind"])
def test_adopt(empty: str, root: Path) -> None:
    """
    A store that was moved with its subvolumes becomes one again, once it is adopted; what did not come along is
    quarantined.
    """
    with Snapshotter(root) as opened:
        for key in ("active", "lost"):
            opened.prepare(key, "base")
        settle(opened)
    copy = copied(root, "snapshot")
    moved = ["snapshots/1/layer", "snapshots/1025/fs", *(["empty"] if empty == "moved" else [])]
    for name in moved:
        read_only = subvolume.get_read_only(root / name)
        subvolume.set_read_only(root / name, False)
        (copy / name).rmdir()
        (root / name).rename(copy / name)
        subvolume.set_read_only(copy / name, read_only)
    with Snapshotter.adopt(copy) as adopted:
        assert adopted.why_read_only == ""
        assert [problem.subject for problem in adopted.problems()] == ["lost"]
        adopted.commit("grown", "active")
        adopted.view("another view", "grown")
        adopted.view("another nothing")
        adopted.prepare("new", "grown")
        adopted.remove("lost")
    with Snapshotter(copy) as opened:
        assert opened.mounts("another nothing")
        assert opened.mounts("nothing")


def test_renamed(root: Path) -> None:
    """
    A store that was only renamed is still the same.
    """
    root.rename(root.parent / "new")
    with Snapshotter(root.parent / "new") as opened:
        assert not opened.why_read_only
        opened.prepare("k", "base")
    with Snapshotter.adopt(root.parent / "new") as opened:
        opened.remove("k")


# Whose it is


def test_client(btrfs: Path) -> None:
    """
    The first snapshot binds a store to its client; another one's changes are refused with the cure, and change nothing,
    until the store is empty.
    """
    root = btrfs / "root"
    with Snapshotter.create(root, client="nobody yet") as opened:
        opened.cleanup()
    with Snapshotter(root, client="containerd") as opened:
        opened.prepare("active")
        opened.commit("base", "active")
        opened.prepare("active", "base")
        opened.view("view", "base")
        opened.cleanup()
    before = everything(root)
    with Snapshotter(root, client="auto") as opened:
        for change in CHANGES.values():
            with pytest.raises(
                FailedPreconditionError,
                match="holds the snapshots of client 'containerd', and 'auto' would delete them: make a second store",
            ):
                change(opened)
        assert opened.stat("active").parent == "base"
        assert opened.mounts("active")
        assert everything(root).keys() == before.keys()
    with Snapshotter(root, client="containerd") as opened:
        for key in ("active", "view", "base"):
            opened.remove(key)
    with Snapshotter(root, client="auto") as opened:
        opened.view("view")
    with (
        Snapshotter(root, client="containerd") as opened,
        pytest.raises(FailedPreconditionError, match="of client 'auto'"),
    ):
        opened.remove("view")


def test_two_clients_cannot_both_be_first(tmp_path: Path) -> None:
    """
    While the first snapshot of an empty store is being made, another client's changes are refused already.
    """
    begun, go = threading.Event(), threading.Event()

    class Slow(DirectoryVolumes):
        def create(self, directory: Directory) -> None:
            begun.set()
            go.wait()
            super().create(directory)

    with Snapshotter.create(tmp_path / "root", volumes=Slow) as opened, ThreadPoolExecutor(1) as pool:
        try:
            making = pool.submit(opened.bound_to("first").prepare, "k")
            begun.wait()
            with pytest.raises(FailedPreconditionError, match="of client 'first'"):
                opened.bound_to("second").prepare("k2")
        finally:
            go.set()
        assert making.result()
        assert [info.name for info in opened.walk()] == ["k"]


def test_bound_to(tmp_path: Path) -> None:
    """
    Another client's view of an open store is the same store: what one makes the other sees, and closing closes both.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes) as opened:
        with pytest.raises(InvalidArgumentError, match="client is empty"):
            opened.bound_to("")
        bound = opened.bound_to("client")
        bound.prepare("k")
        assert (bound.client, opened.client) == ("client", "local")
        assert list(bound.walk()) == list(opened.walk())
        with pytest.raises(FailedPreconditionError, match="of client 'client'"):
            opened.remove("k")
    with pytest.raises(FailedPreconditionError, match="closed"):
        bound.stat("k")


def test_header_is_complete(root: Path) -> None:
    """
    What the store says of itself, for the next release to read.
    """
    header = json.loads(os.getxattr(root / "store", XATTR))
    assert set(header) == {"crc", "format", "uuid", "identity", "client", "id_limit", "suspect"}
    assert (header["client"], header["id_limit"], header["suspect"]) == ("local", 1025, 0)
    assert set(header["identity"]) == {"fsid", "subvolume", "inode"}


def test_unprivileged(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user gets a plain refusal where he has no access.
    """
    works(Snapshotter.create(btrfs / "root"))

    def attempt(call: Callable[[Path], object], name: str) -> str:
        try:
            call(btrfs / name)
        except FailedPreconditionError as error:
            return str(error)
        return "no error"

    assert "Permission denied" in unprivileged(attempt, Snapshotter, "root")
    assert "Permission denied" in unprivileged(attempt, Snapshotter.create, "new")
    assert not shutil.which("snapshotter", path=btrfs)
