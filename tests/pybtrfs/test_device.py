"""
Devices of a filesystem, on real btrfs.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, filesystem, image, ioctl
from tests import multidevice


@pytest.mark.btrfs
def test_iterate(btrfs_mount: Callable[..., Path]) -> None:
    """
    The only device of an image is listed, and another devid is ENODEV.
    """
    top = btrfs_mount(256 << 20)
    (info,) = device.iterate(top)
    assert info == device.get_info(top, 1)
    assert info.path.startswith("/dev/loop")
    assert info.total_bytes == 256 << 20
    assert 0 < info.bytes_used < info.total_bytes
    assert info.uuid.bytes == info.uuid_bytes
    for call in (device.get_info, device.get_stats):
        with pytest.raises(OSError) as caught:
            call(top, 2)
        assert caught.value.errno == errno.ENODEV
        assert caught.value.filename == top


@pytest.mark.btrfs
def test_removed_devices_are_skipped(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Unused devids are skipped.
    """
    info = ioctl.fs_info
    monkeypatch.setattr(ioctl, "fs_info", lambda fd: info(fd)._replace(max_id=3))
    assert [info.devid for info in device.iterate(btrfs)] == [1]


@pytest.mark.btrfs
def test_get_stats(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    The counters of a healthy device are 0. Reading needs no privilege, resetting CAP_SYS_ADMIN.
    """
    top = btrfs_mount()
    assert device.get_stats(top) == (0, 0, 0, 0, 0)
    assert unprivileged(device.get_stats, top, 1) == (0, 0, 0, 0, 0)
    with pytest.raises(PermissionError) as caught:
        unprivileged(lambda: device.get_stats(top, reset=True))
    assert caught.value.__notes__ == ["BTRFS_IOC_GET_DEV_STATS", "needs CAP_SYS_ADMIN"]
    assert device.get_stats(top, reset=True).write_errs == 0


@pytest.mark.btrfs
def test_corruption_is_counted(btrfs_mount: Callable[..., Path]) -> None:
    """
    A block with a wrong checksum makes read(2) fail, and is counted until the counters are reset.
    """
    top = btrfs_mount()
    content = os.urandom(4096)
    (top / "file").write_bytes(content)
    filesystem.sync(top)
    disk = os.open(next(device.iterate(top)).path, os.O_RDWR)
    try:
        position = 0
        while (block := os.pread(disk, 4096, position)) != content:
            assert block
            position += 4096
        os.pwrite(disk, bytes(4096), position)
        os.fsync(disk)
    finally:
        os.close(disk)
    with open(top / "file", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError) as caught:
            file.read()
    assert caught.value.errno == errno.EIO
    assert device.get_stats(top, reset=True).corruption_errs > 0
    assert device.get_stats(top).corruption_errs == 0


@pytest.mark.btrfs
def test_the_only_device(tmp_path: Path) -> None:
    """
    Without a devid, the only device is meant, whatever its devid; an image grows on it, at its mount and mounted.
    """
    path, target = multidevice.moved(tmp_path), tmp_path / "mount"
    os.truncate(path, 2 * multidevice.SIZE)
    with image.mount(path, target):
        assert [(each.devid, each.total_bytes) for each in device.iterate(target)] == [(2, 2 * multidevice.SIZE)]
        assert device.get_stats(target) == device.get_stats(target, 2)
        filesystem.resize(target, multidevice.SIZE)
        assert device.get_info(target, 2).total_bytes == multidevice.SIZE
        image.grow(path, 3 * multidevice.SIZE, sparse=True)
        assert device.get_info(target, 2).total_bytes == 3 * multidevice.SIZE


@pytest.mark.btrfs
def test_several_devices(tmp_path: Path) -> None:
    """
    If the filesystem has several devices, one must be chosen, and the error names all.
    """
    paths = multidevice.make(tmp_path, 2, "raid1")
    with (
        multidevice.attached(*paths) as loops,
        multidevice.mounted(tmp_path / "mount", *(loop.path for loop in loops)) as root,
    ):
        for call in (device.get_stats, lambda target: filesystem.resize(target, "max")):
            with pytest.raises(ValueError, match="has the devices 1, 2: choose one as devid"):
                call(root)
        filesystem.resize(root, "max", devid=2)
        assert device.get_stats(root, 2) == (0, 0, 0, 0, 0)
