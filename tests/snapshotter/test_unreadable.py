"""
A snapshot whose metadata cannot be read stops nothing but itself.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybtrfs import image, subvolume, syscall, tree_search
from snapshotter import Kind, Snapshotter
from snapshotter.analysis import inventory, space
from snapshotter.errors import DataLossError
from snapshotter.maintenance import doctor, quarantine, repair
from snapshotter.store.record_storage import Xattrs
from snapshotter.testing import settle
from tests.damage import damage
from tests.faults.mounts import mounted
from tests.snapshotter.cli.commands import Run

pytestmark = pytest.mark.btrfs

KEYS = {"good", "bad", "on good", "on bad"}


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "image"
    image.create(path, 256 << 20)
    return str(path)


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "mount"
    path.mkdir()
    return str(path)


@contextlib.contextmanager
def broken(base: str, target: str, *, inside: bool) -> Iterator[str]:
    """
    Mount a store in which the layer of "bad" cannot be read, and yield its root.
    """
    root = f"{target}/store"
    with image.attach(base) as device, mounted(device.path, target, "ssd"), Snapshotter.create(root) as store:
        for key in ("good", "bad"):
            store.prepare("build")
            for number in range(400):
                Path(store.subvolume("build"), f"file-{number}").write_bytes(bytes(100))
            store.commit(key, "build")
            store.prepare(f"on {key}", key)
        settle(store)
        store.cleanup()  # or the kernel meets the damage when it cleans a former subvolume
        subvolid = subvolume.get_id(store.subvolume("bad"))
    damage(base, subvolid, inside=inside)
    with image.attach(base) as device, mounted(device.path, target, "ssd"):
        yield root


def is_alive(root: str) -> bool:
    return not os.statvfs(root).f_flag & syscall.MS_RDONLY


def test_opening(base: str, target: str) -> None:
    """
    The snapshot is quarantined under its key, and every other one works.
    """
    with broken(base, target, inside=False) as root:
        with Snapshotter(root) as store:
            assert {info.name for info in store.walk()} == KEYS
            assert store.stat("bad").kind is Kind.COMMITTED
            [problem] = store.problems()
            assert problem.subject == "bad"
            assert problem.what == "its subvolume cannot be read: Input/output error"
            with pytest.raises(DataLossError, match="'bad' cannot be used: its subvolume cannot be read"):
                store.prepare("new", "bad")
            store.prepare("new", "good")
            store.commit("newer", "new")
            store.commit("newest", "on bad")
        assert doctor.examine(root) == [problem]
        assert repair.fix(root) == []


def test_looking(base: str, target: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Commands that look show the error on the snapshot's line, count it, and go on.
    """
    with broken(base, target, inside=True) as root, Snapshotter(root, read_only=True) as store:
        assert store.problems() == []
        assert store.usage("bad")  # recorded
    with broken_active(base, target) as root:
        monkeypatch.setenv("SNAPSHOTTER_ROOT", root)
        ran = run("ls", "--columns=key,size,problem")
        lines = {line.split("  ")[0]: line for line in ran.out.splitlines()}
        assert "lost" in lines["torn"]
        assert "its subvolume cannot be read" in lines["torn"]
        assert "lost" not in lines["good"]
        ran = run("tree")
        assert ran.code == 0
        assert "broken" in next(line for line in ran.out.splitlines() if "torn" in line)
        assert "snapshots that cannot be used or measured: 1" in run("df").out
        assert run("report").code == 0
        ran = run("usage", "torn", "good")
        assert ran.code == 1
        assert ran.out.splitlines()[1].startswith("good")
        assert ran.err.startswith("snapshotter: cannot measure snapshot 'torn'")
        assert "problem" in run("info", "torn").out
        for command in ("ls", "tree", "df"):
            assert run(command, "--json").code == 0


@contextlib.contextmanager
def broken_active(base: str, target: str) -> Iterator[str]:
    """
    Mount the store with an active snapshot "torn", which opens, but cannot be measured.
    """
    root = f"{target}/store"
    with image.attach(base) as device, mounted(device.path, target, "ssd"), Snapshotter(root) as store:
        store.prepare("torn")
        for number in range(400):
            Path(store.subvolume("torn"), f"file-{number}").write_bytes(bytes(100))
        settle(store)
        subvolid = subvolume.get_id(store.subvolume("torn"))
    damage(base, subvolid, inside=True)
    with image.attach(base) as device, mounted(device.path, target, "ssd"):
        yield root


@pytest.mark.parametrize("inside", [False, True])
def test_removing(inside: bool, base: str, target: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Remove answers as always, and the subvolume is kept, because destroying it would end the whole filesystem.
    """
    with broken(base, target, inside=inside) as root:
        monkeypatch.setenv("SNAPSHOTTER_ROOT", root)
        ran = run("rm", "on bad", "bad")
        assert ran.code == 0
        assert "'bad' stays in the quarantine, because a subvolume cannot be read" in ran.err
        [kept] = quarantine.quarantined(root)
        assert quarantine.damage(kept) == "Input/output error"
        assert is_alive(root)
        with Snapshotter(root) as store:
            store.cleanup()
            assert {info.name for info in store.walk()} == {"good", "on good"}
            taken = inventory.take(store)
            assert [f"{root}/{volume.path}" for volume in taken.orphaned] == [f"{kept}/layer"]
            assert space.of_store(store, taken)["orphaned"].count == 1
        [problem] = doctor.examine(root)
        assert "cannot be read: Input/output error" in problem.what
        assert "read-only" in problem.cure
        assert repair.fix(root) == []
        ran = run("purge", "--dry-run")
        assert "it cannot be read (Input/output error): deleting it may turn the filesystem read-only" in ran.out
        assert is_alive(root)
        ran = run("purge", "--yes")
        if inside:
            assert quarantine.quarantined(root) == []
        else:
            assert ran.code == 1
            assert "the kernel cannot read, and so cannot delete" in ran.err
            assert quarantine.quarantined(root) == [kept]


def test_unreadable_record(base: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A directory that cannot be read is reported, and every other snapshot works.
    """
    with image.attach(base) as device, mounted(device.path, target, "ssd"):
        root = f"{target}/store"
        with Snapshotter.create(root) as store:
            store.prepare("a")
            store.commit("layer", "a")
            store.prepare("b", "layer")
            settle(store)
        read_directory = syscall.read_directory

        def failing(dir_fd: int, name: str, *args: object) -> object:
            if name == "1":
                raise OSError(errno.EIO, os.strerror(errno.EIO), name)
            return read_directory(dir_fd, name, *args)  # type: ignore[arg-type]

        read = Xattrs.read

        def no_record(self: Xattrs, fd: int) -> bytes | None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/snapshots/1"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(self, fd)

        monkeypatch.setattr(syscall, "read_directory", failing)
        monkeypatch.setattr(Xattrs, "read", no_record)
        with Snapshotter(root) as store:
            assert store.stat("b").parent == "(snapshot 1, which is lost)"
            [problem] = store.problems()
            assert (problem.subject, problem.what) == (f"{root}/snapshots/1", "it cannot be read: Input/output error")
            store.prepare("c")
        [moved] = repair.fix(root)
        assert moved.what == "it cannot be read: Input/output error: moved to the quarantine"


def test_reading_a_tree(base: str, target: str) -> None:
    """
    Every changed leaf is read, and a damaged one is an error; leaves of an older generation are skipped.
    """
    with broken(base, target, inside=True) as root, Snapshotter(root, read_only=True) as store:
        tree_search.read(store.subvolume("good"))
        with pytest.raises(OSError, match="Input/output error"):
            tree_search.read(store.subvolume("bad"))
        info = subvolume.get_info(store.subvolume("bad"))
        tree_search.read(store.subvolume("bad"), min_transid=info.generation + 1)
