"""
Data that the disk refused is never committed, and a broken disk loses no acknowledged snapshot.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, image, syscall
from snapshotter import Info, Kind, Snapshotter
from snapshotter.errors import DataLossError, Error, UnavailableError
from snapshotter.maintenance import doctor
from tests import multidevice

from .disk import Disk
from .failpoints import in_child
from .power import sweep
from .workload import STORE, digest

pytestmark = pytest.mark.btrfs

MEBIBYTE = bytes(1 << 20)


@pytest.fixture
def disk(base: str) -> Iterator[Disk]:
    with Disk(base) as disk:
        yield disk


@contextlib.contextmanager
def opened(disk: Disk) -> Iterator[Snapshotter]:
    """
    Open the store on the disk, or make it if it is missing.
    """
    with disk.mounted() as mount:
        root = os.path.join(mount, STORE)
        opening = Snapshotter if os.path.exists(root) else Snapshotter.create
        with opening(root, mount_mode="bind") as snapshotter:
            yield snapshotter


def path_of(snapshotter: Snapshotter, key: str) -> str:
    (mount,) = snapshotter.mounts(key)
    return mount.source


def write(snapshotter: Snapshotter, key: str, data: bytes) -> None:
    with open(os.path.join(path_of(snapshotter, key), "file"), "wb") as file:
        file.write(data)


def kinds(snapshotter: Snapshotter) -> dict[str, Kind]:
    return {info.name: info.kind for info in snapshotter.walk()}


def committed_content(snapshotter: Snapshotter, name: str) -> bytes:
    snapshotter.view("look", name)
    content = Path(path_of(snapshotter, "look"), "file").read_bytes()
    snapshotter.remove("look")
    return content


def in_background(path: str) -> None:
    """
    Start writeback of the file, without asking for its result.
    """
    with open(os.path.join(path, "file"), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fsynced(path: str) -> None:
    """
    Write the file back, and ignore the error that the writer gets.
    """
    with open(os.path.join(path, "file"), "rb") as file, contextlib.suppress(OSError):
        os.fsync(file.fileno())


def nothing(path: str) -> None:
    """
    Leave writeback to the snapshot.
    """


@pytest.mark.parametrize("before", [nothing, in_background, fsynced])
@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
def test_refused_data_is_not_committed(disk: Disk, number: str, before: Callable[[str], None]) -> None:
    """
    Commit raises DataLossError and changes nothing. The active snapshot is never committed, not even after a restart.
    """
    with opened(disk) as snapshotter:
        for key in ("victim", "bystander", "healthy"):
            snapshotter.prepare(key)
        write(snapshotter, "healthy", MEBIBYTE)
        snapshotter.commit("base", "healthy")
        snapshotter.prepare("on base", "base")
        disk.refuse(f"data {number}")
        write(snapshotter, "victim", MEBIBYTE)
        before(path_of(snapshotter, "victim"))
        with pytest.raises(DataLossError, match="'victim'"):
            snapshotter.commit("layer", "victim")
        disk.refuse()
        actives = dict.fromkeys(("victim", "bystander", "on base"), Kind.ACTIVE)
        assert kinds(snapshotter) == {"base": Kind.COMMITTED, **actives}
        snapshotter.fork("victim", "fork")
        for key in (*actives, "fork"):
            with pytest.raises(DataLossError):
                snapshotter.commit("layer", key)
        snapshotter.prepare("new", "base")
        write(snapshotter, "new", b"new")
        snapshotter.commit("new layer", "new")
    with opened(disk) as snapshotter:
        assert snapshotter.problems() == []
        expected = {"base": Kind.COMMITTED, "new layer": Kind.COMMITTED, "fork": Kind.ACTIVE, **actives}
        assert kinds(snapshotter) == expected
        for key in (*actives, "fork"):
            with pytest.raises(DataLossError):
                snapshotter.commit("layer", key)
            snapshotter.remove(key)
        assert committed_content(snapshotter, "base") == MEBIBYTE
        assert committed_content(snapshotter, "new layer") == b"new"


@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
def test_power_failure_after_refused_data(disk: Disk, base: str, number: str) -> None:
    """
    A commit of refused data does not happen, wherever the power fails in it or afterwards.
    """
    with opened(disk) as snapshotter:
        snapshotter.prepare("victim")
        disk.refuse(f"data {number}")
        disk.mark("start")
        write(snapshotter, "victim", MEBIBYTE)
        with pytest.raises(DataLossError):
            snapshotter.commit("layer", "victim")
        disk.refuse()
        snapshotter.prepare("later")
    log = disk.log()

    def verify(mount: str, marks: list[str]) -> list[str]:
        with Snapshotter(os.path.join(mount, STORE), mount_mode="bind") as snapshotter:
            found = kinds(snapshotter)
            if found.get("victim") is not Kind.ACTIVE or "layer" in found:
                return [f"found {found}"]
        return []

    assert not sweep(log, base, verify, points=60, seed=0, start=log.marks[0] + 1).violations


@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
def test_kill_after_refused_data(disk: Disk, number: str) -> None:
    """
    A commit of refused data does not happen, wherever the process is killed in it.
    """
    killed = True
    at = 0
    while killed:
        at += 1
        with opened(disk) as snapshotter:
            root = snapshotter.root
            snapshotter.prepare("victim")
            disk.refuse(f"data {number}")
            write(snapshotter, "victim", MEBIBYTE)
            snapshotter.close()

            def commit(acknowledge: Callable[[], object], root: str = root) -> None:
                with Snapshotter(root, mount_mode="bind") as snapshotter, pytest.raises(DataLossError):
                    snapshotter.commit("layer", "victim")

            killed, _ = in_child(at, commit)
            disk.refuse()
            with Snapshotter(root, mount_mode="bind") as snapshotter:
                assert kinds(snapshotter) == {"victim": Kind.ACTIVE}
                snapshotter.remove("victim")
    assert at > 20


def lose(disk: Disk, key: str) -> None:
    """
    Prepare *key*, and lose data of it which nobody is told of before the store is closed.
    """
    with opened(disk) as snapshotter:
        snapshotter.prepare(key)
        disk.refuse("data EIO")
        write(snapshotter, key, MEBIBYTE)
        fsynced(path_of(snapshotter, key))
        disk.refuse()


def reset(disk: Disk) -> int:
    """
    Reset the counters of the devices, and return the number of writes that were refused.
    """
    with disk.mounted() as mount:
        errors = device.get_stats(mount, reset=True).write_errs
        os.mkdir(os.path.join(mount, "x"))  # the kernel writes the counters with the next transaction
        os.rmdir(os.path.join(mount, "x"))
        return errors


def findings(snapshotter: Snapshotter) -> list[str]:
    return [problem.what for problem in doctor.of_store(snapshotter) if problem.subject == snapshotter.root]


def test_reset_after_loss(disk: Disk) -> None:
    """
    Once the store was open after a loss, the loss is on record: a reset of the counters makes nothing healthy.
    """
    with opened(disk) as snapshotter:
        snapshotter.prepare("healthy")
        snapshotter.commit("base", "healthy")
    lose(disk, "victim")
    with opened(disk) as snapshotter:
        assert findings(snapshotter) == [
            "the disk may have refused data of snapshot 'victim', which cannot be committed any more"
        ]
        snapshotter.prepare("new", "base")
    assert reset(disk) > 0
    with opened(disk) as snapshotter:
        for key in ("victim", "new"):
            with pytest.raises(DataLossError, match=f"data of snapshot '{key}'"):
                snapshotter.commit("layer", key)
        snapshotter.prepare("after the reset", "base")
    with opened(disk) as snapshotter:
        snapshotter.commit("layer", "after the reset")


def test_reset_counters(disk: Disk) -> None:
    """
    After a reset nobody knows whether more writes were refused before it. The doctor says so, and how to commit anyway.
    """
    with opened(disk) as snapshotter:
        snapshotter.prepare("first")
    lose(disk, "victim")
    with opened(disk) as snapshotter:
        snapshotter.prepare("between")
        snapshotter.remove("victim")
        snapshotter.remove("first")
    errors = reset(disk)
    with disk.mounted() as mount, Snapshotter(os.path.join(mount, STORE), read_only=True) as snapshotter:
        (problem,) = (each for each in doctor.of_store(snapshotter) if each.subject == snapshotter.root)
        assert problem.what == (
            f"the counter of refused writes of device 1 went from {errors} to 0, which is a reset that hides later "
            "errors, since snapshot 'between' began, so the disk may have refused data, and they cannot be committed "
            "after the next opening of the store"
        )
        assert "`snapshotter serve --verify=false`" in problem.cure
    with opened(disk) as snapshotter:
        for _ in range(2):
            with pytest.raises(DataLossError, match=r"data of snapshot 'between'.*`snapshotter doctor` explains"):
                snapshotter.commit("layer", "between")
        root = snapshotter.root
        snapshotter.close()
        with Snapshotter(root, mount_mode="bind", verify=False) as knowing:
            knowing.commit("layer", "between")


@contextlib.contextmanager
def mirror(directory: Path, profile: str = "raid1", count: int = 2) -> Iterator[list[Disk]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Disk(str(path))) for path in multidevice.make(directory, count, profile)]


@contextlib.contextmanager
def on_mirror(disks: list[Disk], directory: Path, options: str = "") -> Iterator[Snapshotter]:
    """
    Open the store on *disks*, or make it if it is missing.
    """
    paths = [Path(disk.directory, "fuse/disk") for disk in disks]
    with (
        multidevice.attached(*paths) as loops,
        multidevice.mounted(directory / "mount", *(loop.path for loop in loops), options=options) as mount,
    ):
        root = mount / STORE
        opening = Snapshotter if root.exists() else Snapshotter.create
        with opening(root, mount_mode="bind") as snapshotter:
            yield snapshotter


def refuse_on(disk: Disk, snapshotter: Snapshotter, key: str) -> None:
    """
    Write to *key* while *disk* refuses data.
    """
    disk.refuse("data EIO")
    write(snapshotter, key, os.urandom(1 << 20))
    fsynced(path_of(snapshotter, key))
    disk.refuse()


def test_failing_mirror(tmp_path: Path) -> None:
    """
    On RAID1 the refusals of one disk are harmless: snapshots from before the restart, and forks, can be committed.

    When the other disk refuses as well, they cannot.
    """
    with mirror(tmp_path) as disks:
        with on_mirror(disks, tmp_path) as snapshotter:
            for key in ("a", "b", "c"):
                snapshotter.prepare(key)
            refuse_on(disks[1], snapshotter, "a")
            content = Path(path_of(snapshotter, "a"), "file").read_bytes()
        with on_mirror(disks, tmp_path) as snapshotter:
            multidevice.progs("btrfs", "scrub", "start", "-B", snapshotter.root)
            assert findings(snapshotter) == []
            snapshotter.fork("a", "fork")
            snapshotter.commit("layer of a", "a")
            snapshotter.commit("layer of the fork", "fork")
            assert committed_content(snapshotter, "layer of a") == content
            assert device.get_stats(snapshotter.root, 2).write_errs > 0
            refuse_on(disks[0], snapshotter, "b")
        with on_mirror(disks, tmp_path) as snapshotter:
            assert len(findings(snapshotter)) == 1
            with pytest.raises(DataLossError, match="repair the disk, then prepare the snapshot again"):
                snapshotter.commit("layer of b", "b")


def test_missing_mirror(tmp_path: Path) -> None:
    """
    A mirror that refused writes and is then missing is harmless too, and the doctor names it.
    """
    with mirror(tmp_path) as disks:
        with on_mirror(disks, tmp_path) as snapshotter:
            snapshotter.prepare("a")
            refuse_on(disks[1], snapshotter, "a")
        with on_mirror(disks[:1], tmp_path, "degraded") as snapshotter:
            assert findings(snapshotter) == ["device 2 of its filesystem is missing"]
            snapshotter.commit("layer of a", "a")


@pytest.mark.parametrize("profile", ["single", "raid0"])
def test_failing_disk_of_several(tmp_path: Path, profile: str) -> None:
    """
    Where a block is on one disk only, a disk that refused a write is never harmless, not even once it is removed.
    """
    with mirror(tmp_path, profile, 3) as disks, on_mirror(disks, tmp_path) as snapshotter:
        for key in ("a", "b"):
            snapshotter.prepare(key)
        for disk in disks:
            disk.refuse("data EIO")
        write(snapshotter, "a", os.urandom(4 << 20))
        fsynced(path_of(snapshotter, "a"))
        for disk in disks:
            disk.refuse()
        root = snapshotter.root
        snapshotter.close()
        failed = next(each.devid for each in device.iterate(root) if device.get_stats(root, each.devid).write_errs)
        multidevice.progs("btrfs", "device", "remove", failed, root)
        for each in device.iterate(root):
            device.get_stats(root, each.devid, reset=True)
        with Snapshotter(root, mount_mode="bind") as again:
            for key in ("a", "b"):
                with pytest.raises(DataLossError):
                    again.commit("layer", key)


@pytest.mark.parametrize("full", [False, True])
def test_loss_during_a_fork(btrfs: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """
    A loss that is reported before the fork's id is taken is the fork's, too; also before its second id on a full disk.
    """
    with Snapshotter.create(btrfs / STORE, mount_mode="bind") as snapshotter:
        snapshotter.prepare("source")
        opened = snapshotter.opened
        store, make = opened.operations._store, opened.operations._make
        take_id, taken = store.take_id, []

        def take() -> int:
            if len(taken) == full:
                store.suspect_all()
            taken.append(take_id())
            return taken[-1]

        def make_once_full(*arguments: Any, **options: Any) -> None:
            if full and len(taken) == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            make(*arguments, **options)

        monkeypatch.setattr(store, "take_id", take)
        monkeypatch.setattr(opened.operations, "_make", make_once_full)
        snapshotter.fork("source", "fork")
        assert len(taken) == 1 + full
        with pytest.raises(DataLossError, match="'fork'"):
            snapshotter.commit("layer", "fork")
    with Snapshotter(btrfs / STORE, mount_mode="bind") as snapshotter, pytest.raises(DataLossError, match="'fork'"):
        snapshotter.commit("layer", "fork")


def test_full_host(tmp_path: Path) -> None:
    """
    On a sparse image on a full host, only complete data is committed.
    """
    host, target = tmp_path / "host", tmp_path / "mount"
    host.mkdir()
    target.mkdir()
    syscall.mount("tmpfs", host, "tmpfs", 0, "size=32m")
    try:
        image.create(host / "image", 256 << 20, sparse=True)
        with (
            image.mount(host / "image", target),
            Snapshotter.create(target / STORE, mount_mode="bind") as snapshotter,
        ):
            snapshotter.prepare("before")
            write(snapshotter, "before", MEBIBYTE)
            snapshotter.commit("base", "before")
            snapshotter.prepare("victim", "base")
            write(snapshotter, "victim", os.urandom(64 << 20))
            with pytest.raises(Error):
                snapshotter.commit("layer", "victim")
        syscall.mount("tmpfs", host, "tmpfs", syscall.MS_REMOUNT, "size=512m")
        with image.mount(host / "image", target), Snapshotter(target / STORE, mount_mode="bind") as snapshotter:
            assert snapshotter.problems() == []
            assert kinds(snapshotter) == {"base": Kind.COMMITTED, "victim": Kind.ACTIVE}
            assert committed_content(snapshotter, "base") == MEBIBYTE
    finally:
        syscall.umount2(host)


CHANGES: dict[str, Callable[[Snapshotter], object]] = {
    "prepare": lambda s: s.prepare("new", "base"),
    "prepare empty": lambda s: s.prepare("new"),
    "view": lambda s: s.view("new", "base"),
    "fork": lambda s: s.fork("active", "new"),
    "commit": lambda s: s.commit("new", "active"),
    "update": lambda s: s.update(Info(Kind.COMMITTED, "base", labels={"a": "b"})),
    "remove": lambda s: s.remove("active"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rule", ["write EIO", "flush EIO"])
def test_broken_disk(disk: Disk, rule: str, change: str) -> None:
    """
    Once the disk refuses metadata, no change is acknowledged, and reads are still answered from memory.

    After a repair of the disk all acknowledged snapshots are there.
    """
    with opened(disk) as snapshotter:
        for key in ("healthy", "active"):
            snapshotter.prepare(key)
            write(snapshotter, key, MEBIBYTE)
        snapshotter.commit("base", "healthy", labels={"x": "y"})
        snapshotter.update(Info(Kind.ACTIVE, "active", labels={"x": "z"}))
        snapshotter.view("view", "base")
        before = {info.name: info for info in snapshotter.walk()}
        content = digest(path_of(snapshotter, "view"))
        disk.refuse(rule)
        with pytest.raises(UnavailableError):
            CHANGES[change](snapshotter)
        for other in CHANGES.values():
            with pytest.raises(UnavailableError):
                other(snapshotter)
        assert {info.name: info for info in snapshotter.walk()} == before
        assert snapshotter.stat("base") == before["base"]
        disk.refuse()
    with opened(disk) as snapshotter:
        assert snapshotter.problems() == []
        assert {info.name: info for info in snapshotter.walk()} == before
        assert digest(path_of(snapshotter, "view")) == content
        for name in ("prepare", "update", "remove"):
            CHANGES[name](snapshotter)
