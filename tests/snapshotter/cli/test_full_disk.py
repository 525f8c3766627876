"""
Every command that an operator needs, on a disk with neither data nor metadata left, and on a full quota.
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pybtrfs import filesystem, image, ioctl, qgroup, subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from snapshotter.store.record_storage import XATTR
from snapshotter.testing import settle
from tests import multidevice
from tests.snapshotter.cli.commands import Ran, Run, infos
from tests.snapshotter.daemon.running import Daemon

pytestmark = pytest.mark.btrfs

SIZE = 192 << 20
ATTEMPTS = 5  # of a call, each after a sync, before the disk counts as full


@pytest.fixture(params=["separate", "mixed"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """
    A small btrfs with separate or mixed block groups for data and metadata.
    """
    path, point = tmp_path / "image", tmp_path / "mount"
    with path.open("wb") as file:
        file.truncate(SIZE)
    point.mkdir()
    mixed = ["--mixed"] if request.param == "mixed" else []
    subprocess.run(["mkfs.btrfs", "--quiet", *mixed, path], check=True, capture_output=True)
    with image.attach(path) as device:
        syscall.mount(device.path, point, "btrfs")
        yield point
        syscall.umount2(point)


def fill(directory: Path) -> None:
    """
    Fill the disk with data by files, and with metadata by attributes and names, until nothing works any more.
    """
    steps: list[Callable[[Path], object]] = [partial(write, size) for size in (32 << 20, 1 << 20, 4096)]
    steps += [*(partial(attribute, size) for size in (14_000, 2000, 200)), Path.mkdir]
    number = 0
    for step in steps:
        failed = 0
        while failed < ATTEMPTS:
            number += 1
            try:
                step(directory / str(number))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failed += 1
                filesystem.sync(directory)


@contextlib.contextmanager
def open_fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def write(size: int, path: Path) -> None:
    with path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())


def attribute(size: int, path: Path) -> None:
    path.touch()
    os.setxattr(path, "user.x", bytes(size))


def keys(run: Run) -> set[str]:
    return {name for name, *_ in infos(run)}


def test_full_disk(mount: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each command has its effect. A repair that needs space waits for it, and a Prepare works after a removal.
    """
    root = mount / "store"
    monkeypatch.setenv("SNAPSHOTTER_ROOT", str(root))
    with Snapshotter.create(root) as store:
        store.prepare("draft")
        store.commit("base", "draft")
        for key in ("a", "b", "flipped", "served", "filled"):
            store.prepare(key, "base")
        store.view("view", "base")
        store.cleanup()
        settle(store)
        filled = Path(store.subvolume("filled"))
        flipped = Path(store.subvolume("flipped")).parent
    record = bytearray(os.getxattr(flipped, XATTR))
    record[9] ^= 4
    os.setxattr(flipped, XATTR, bytes(record))
    (root / "snapshots/stranger").mkdir()
    (root / "quarantine/old").mkdir(parents=True)
    fill(filled)
    with pytest.raises(OSError, match="No space left on device"):
        (filled / "more").mkdir()
    assert keys(run) == {"a", "b", "base", "served", "filled", "view"}
    assert f"{flipped}: its record is damaged" in run("doctor").out
    assert run("doctor", "--fix").code == 5
    assert run("purge", "--yes").code == 0
    assert not (root / "quarantine/old").exists()
    for key in ("a", "view"):
        assert run("rm", key) == Ran(0, "", "")
    assert run("cleanup") == Ran(0, "", "")
    (tmp_path / "daemon").mkdir()
    with contextlib.closing(Daemon(tmp_path / "daemon", root)) as daemon:
        daemon.ready()
        with daemon.client() as client:
            assert client.serving()
            client.remove("served")
            client.cleanup()
        assert daemon.stop() == 0
    with Snapshotter(root) as store:
        store.remove("b")
        store.cleanup()
    assert keys(run) - {"flipped"} == {"base", "filled"}
    assert len(list((root / "snapshots").iterdir())) == 4
    for argv in ("rm filled", "cleanup"):
        assert run(*argv.split()) == Ran(0, "", "")
    assert run("prepare", "new", "base").code == 0
    run("doctor", "--fix")
    assert "not repaired" not in run("doctor", "--fix").out
    assert keys(run) == {"base", "flipped", "new"}
    assert (root / "quarantine/stranger").is_dir()


def test_full_quota(
    btrfs_mount: Callable[..., Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    On a store over the limit of its quota, all works that the kernel allows, and the error of the rest has the cure.
    """
    mount = btrfs_mount()
    root = mount / "store"
    monkeypatch.setenv("SNAPSHOTTER_ROOT", str(root))
    subvolume.create(root)
    group = qgroup.qgroupid(1, 100)
    with open_fd(mount) as fd:
        ioctl.quota_ctl(fd, ioctl.QUOTA_CTL_ENABLE_SIMPLE_QUOTA)
        ioctl.qgroup_create(fd, group)
        # The subvolumes that are created below inherit the group.
        multidevice.progs("btrfs", "qgroup", "assign", f"0/{subvolume.get_id(root)}", "1/100", mount)
        with Snapshotter.create(root) as store:
            store.prepare("draft")
            store.commit("base", "draft")
            for key in ("a", "filled"):
                store.prepare(key, "base")
            store.view("view", "base")
            store.cleanup()
            settle(store)
            (Path(store.subvolume("filled")) / "file").write_bytes(os.urandom(8 << 20))
            filesystem.sync(root)
        ioctl.qgroup_limit(fd, group, (4 << 20, None))
    assert keys(run) == {"a", "base", "filled", "view"}
    assert run("doctor", "--fix").err == ""
    assert run("rm", "view") == Ran(0, "", "")
    assert run("cleanup") == Ran(0, "", "")
    for argv in ("rm a", "prepare new base"):
        refused = run(*argv.split())
        assert refused.code == 1
        assert "Disk quota exceeded: raise the limit with `btrfs qgroup limit`, or mount a snapshot" in refused.err
    (tmp_path / "daemon").mkdir()
    with contextlib.closing(Daemon(tmp_path / "daemon", root)) as daemon:
        daemon.ready()
        with daemon.client() as client:
            client.cleanup()
            with mounted(client.mounts("filled")) as path:
                (Path(path) / "file").unlink()
                filesystem.sync(path)
            client.remove("a")
        assert daemon.stop() == 0
    for argv in ("rm filled", "cleanup"):
        assert run(*argv.split()) == Ran(0, "", "")
    assert run("prepare", "new", "base").code == 0
    assert keys(run) == {"base", "new"}
