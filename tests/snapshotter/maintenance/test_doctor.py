import fcntl
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybtrfs import image, subvolume, syscall
from snapshotter import Problem, Snapshotter
from snapshotter.errors import FailedPreconditionError, NotFoundError
from snapshotter.maintenance import doctor, rotation
from snapshotter.maintenance.rotation import Rotation
from snapshotter.store import records
from snapshotter.store.counters import Counters
from snapshotter.testing import settle
from snapshotter.transport import library
from tests import multidevice
from tests.namespaces import other_namespace

pytestmark = pytest.mark.btrfs

BTRFS_IOC_QUOTA_CTL = 0xC0109428
QUOTA_CTL_ENABLE, QUOTA_CTL_DISABLE = 1, 2


@pytest.fixture
def mount(btrfs_mount: Callable[..., Path]) -> Path:
    """
    A store, mounted from a preallocated image.
    """
    path = btrfs_mount(256 << 20, sparse=False)
    Snapshotter.create(path).close()
    return path


def only(problems: list[Problem]) -> Problem:
    [problem] = problems
    return problem


def test_healthy(mount: Path) -> None:
    """
    A healthy store has no problems, even while another process holds it.
    """
    with Snapshotter(mount) as store:
        store.prepare("a")
        assert doctor.examine(mount) == []


def test_without_libnghttp2(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A missing libnghttp2 is reported with its packages, if the daemon's extra is installed.
    """
    monkeypatch.setattr(library, "SONAME", "libnone.so.1")
    # Not by clearing the cache of `load`, which would close the library under sessions that are open.
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    problem = only(doctor.examine(mount))
    assert problem.subject == "libnone.so.1"
    assert "the daemon and its clients cannot start" in problem.what
    assert problem.cure.startswith("install libnghttp2-14 (Debian")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor.examine(mount) == []


def test_quarantined(mount: Path) -> None:
    """
    A snapshot without its subvolume is reported.
    """
    with Snapshotter(mount) as store:
        store.prepare("a")
        while b'"preparing"' in os.getxattr(mount / "snapshots/1", "user.snapshotter"):
            time.sleep(0.01)
    subvolume.delete(mount / "snapshots/1/fs")
    problem = only(doctor.examine(mount))
    assert (problem.subject, problem.what) == ("a", "its subvolume is missing")


def test_held(mount: Path) -> None:
    """
    A removed snapshot that is mounted is named, with the mount and the command that unmounts it.
    """
    with Snapshotter(mount) as store:
        store.prepare("a")
        (source,) = store.mounts("a")
        with other_namespace('mount -t btrfs -o "$1" "$2" /mnt', source.options[0], source.source) as pid:
            store.remove("a")
            store.cleanup()
            problem = only(doctor.examine(mount))
        assert problem.subject == str(mount / "snapshots/1/fs")
        place = f"/mnt in the mount namespace of process {pid} (/proc/{pid}/ns/mnt)"
        assert problem.what == f"snapshot 'a' is removed, but its space is held by the mount at {place}"
        assert problem.cure == f"nsenter --mount=/proc/{pid}/ns/mnt umount /mnt, then `snapshotter cleanup`"
        store.cleanup()
    assert doctor.examine(mount) == []


def test_without_record(mount: Path) -> None:
    """
    A subvolume that belongs to no snapshot is reported and left alone.
    """
    subvolume.create(mount / "snapshots/stranger")
    assert only(doctor.examine(mount)).subject == str(mount / "snapshots/stranger")
    assert (mount / "snapshots/stranger").exists()


def test_copy(mount: Path) -> None:
    """
    A copy of a store is reported as a copy.
    """
    original = mount / "original"
    Snapshotter.create(original).close()
    subvolume.snapshot(original, mount / "copy")
    problem = only(doctor.examine(mount / "copy"))
    assert problem.what == "it is a copy of a store, and can only be read"
    assert "--adopt" in problem.cure


def test_mode(mount: Path) -> None:
    """
    A root that other users can enter is reported.
    """
    mount.chmod(0o755)
    problem = only(doctor.examine(mount))
    assert problem == Problem(
        str(mount), "its mode is 0755: other users can reach into snapshots", f"chmod 0700 {mount}"
    )


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (syscall.MS_NOSUID, "nosuid"),
        (syscall.MS_NODEV, "nodev"),
        (syscall.MS_NOEXEC, "noexec"),
        (syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, "nosuid,nodev,noexec"),
    ],
)
def test_inherited_flags(mount: Path, flags: int, names: str) -> None:
    """
    Mount flags that bind mounts inherit are reported.
    """
    syscall.mount("", mount, "", syscall.MS_REMOUNT | syscall.MS_BIND | flags)
    problem = only(doctor.examine(mount))
    assert problem.what.startswith(f"it is mounted {names},")
    assert problem.cure == f"mount it without {names}"


def test_read_only(mount: Path) -> None:
    """
    A read-only filesystem is reported.
    """
    syscall.mount("", mount, "", syscall.MS_REMOUNT | syscall.MS_BIND | syscall.MS_RDONLY)
    assert only(doctor.examine(mount)).what == "its filesystem is read-only"


def test_sparse_image(btrfs_mount: Callable[..., Path]) -> None:
    """
    An image whose space is not reserved is reported, and the cure works.
    """
    path = btrfs_mount(256 << 20, sparse=True)
    Snapshotter.create(path).close()
    problem = only(doctor.examine(path))
    assert problem.subject == str(path.parent / "image")
    assert problem.cure == f"fallocate --length {256 << 20} {path.parent / 'image'}"
    fd = os.open(path.parent / "image", os.O_RDWR)
    os.posix_fallocate(fd, 0, 256 << 20)
    os.close(fd)
    assert doctor.examine(path) == []


@pytest.mark.parametrize(
    ("rotates", "doubt"),
    [(Rotation.NONE, ""), (Rotation.CLAIMED, "if the disk is no hard disk, "), (Rotation.POSSIBLE, None)],
)
def test_without_ssd(mount: Path, rotates: Rotation, doubt: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A mount without ``ssd`` is reported unless a disk may rotate, and the cure works.
    """
    monkeypatch.setattr(rotation, "of", lambda _: rotates)
    syscall.mount("", mount, "", syscall.MS_REMOUNT, "nossd")
    if doubt is None:
        assert doctor.examine(mount) == []
        return
    problem = only(doctor.examine(mount))
    assert problem.what == "it is mounted without the option ssd, so concurrent changes wait for each other"
    command = f"mount -o remount,ssd {mount}"
    assert problem.cure == f"{doubt}run `{command}`, and add ssd to its options in /etc/fstab or in its mount unit"
    subprocess.run(command.split(), check=True)
    assert doctor.examine(mount) == []


def test_qgroups(mount: Path) -> None:
    """
    Full qgroups are reported while they are enabled.
    """
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, BTRFS_IOC_QUOTA_CTL, struct.pack("QQ", QUOTA_CTL_ENABLE, 0))
        problem = only(doctor.examine(mount))
        assert problem.what.startswith("full qgroups are enabled")
        assert problem.cure == f"btrfs quota disable {mount}"
        fcntl.ioctl(fd, BTRFS_IOC_QUOTA_CTL, struct.pack("QQ", QUOTA_CTL_DISABLE, 0))
        assert doctor.examine(mount) == []
    finally:
        os.close(fd)


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """
    A mounted btrfs, and a function that makes its disk refuse all further writes, by sealing the memory of the disk.
    """
    disk = os.memfd_create("disk", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    image.create(tmp_path / "image", 200 << 20, sparse=True)
    with open(tmp_path / "image", "rb") as source, open(disk, "wb", closefd=False) as target:
        shutil.copyfileobj(source, target)
    (tmp_path / "mount").mkdir()
    try:
        with image.mount(f"/proc/self/fd/{disk}", tmp_path / "mount"):
            yield tmp_path / "mount", lambda: fcntl.fcntl(disk, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE) and None
    finally:
        os.close(disk)


def test_write_errors(failing: tuple[Path, Callable[[], None]]) -> None:
    """
    A disk that refuses writes is reported, and so is the filesystem that became read-only.
    """
    path, fail = failing
    Snapshotter.create(path).close()
    assert doctor.examine(path) == []
    fail()
    with pytest.raises(OSError, match="Input/output error"):  # any of the three may be the first refused
        subvolume.create(path / "x")
        os.sync()
        os.mkdir(path / "y")
    found: dict[str, list[str]] = {}
    for problem in doctor.examine(path):
        found.setdefault(problem.subject, []).append(problem.what)
    [device] = found.keys() - {str(path)}
    assert device.startswith("/dev/loop")
    assert re.fullmatch(r"[1-9]\d* writes to it have failed", found[device][0])
    assert "its filesystem is read-only" in found[str(path)]


@pytest.mark.parametrize("lost", [1, 2])
def test_missing_device(tmp_path: Path, lost: int) -> None:
    """
    A missing device is named by its number, and its cures.
    """
    with multidevice.degraded(tmp_path, lost) as root:
        Snapshotter.create(root / "store").close()
        problem, _sparse_image = doctor.examine(root / "store") if lost == 1 else doctor.examine(root / "store")[::-1]
        assert (problem.subject, problem.what) == (str(root / "store"), f"device {lost} of its filesystem is missing")
        assert f"`btrfs replace start {lost} DEVICE {root}/store`" in problem.cure


def test_changed_counters(mount: Path) -> None:
    """
    Active snapshots whose record has other counters than the devices are named, by the reason for the difference.
    """
    with Snapshotter(mount) as store:
        for key in "abcd":
            store.prepare(key)
        settle(store)
    changed = {"a": Counters(1), "b": Counters(2, {1: 2}), "c": Counters(2, {1: 2}), "d": Counters(0, {1: 0, 2: 0})}
    for number, (key, counters) in enumerate(changed.items(), 1):
        path = mount / "snapshots" / str(number)
        record = records.decode(os.getxattr(path, "user.snapshotter"), number)
        assert record.key == key
        os.setxattr(path, "user.snapshotter", records.encode(record._replace(write_errors=counters)))
    effect = "so the disk may have refused data, and they cannot be committed after the next opening of the store"
    reset = "the counter of refused writes of device 1 went from 2 to 0, which is a reset that hides later errors,"
    assert [problem.what for problem in doctor.examine(mount)] == [
        f"the counters of refused writes went from 1 to 0 in all since snapshot 'a' began, {effect}",
        f"{reset} since snapshot 'b' and 1 more active snapshots began, {effect}",
        f"device 2 was removed since snapshot 'd' began, {effect}",
    ]
    Snapshotter(mount).close()
    (problem,) = doctor.examine(mount)
    assert problem.what == (
        "the disk may have refused data of snapshot 'a' and 3 more active snapshots, which cannot be committed any more"
    )


def test_damaged(mount: Path) -> None:
    """
    A damaged record of the store is reported, together with all other problems.
    """
    os.setxattr(mount / "store", "user.snapshotter", b"{}")
    mount.chmod(0o755)
    damaged, mode = doctor.examine(mount)
    assert "damaged" in damaged.what
    assert mode.what.startswith("its mode is 0755")


def test_not_a_store(btrfs: Path) -> None:
    """
    A directory that is not a store is an error, not a problem.
    """
    with pytest.raises(FailedPreconditionError):
        doctor.examine(btrfs)
    with pytest.raises(NotFoundError):
        doctor.examine(btrfs / "missing")
