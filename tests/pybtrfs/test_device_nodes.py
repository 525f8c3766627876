"""
Devices: which are present, and a node by which the filesystem can be mounted.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pybtrfs import device, space, subvolume, syscall
from pybtrfs.device import DeviceState
from pybtrfs.errors import NotBtrfsError
from tests import multidevice

pytestmark = pytest.mark.btrfs


def mountable(source: str, root: Path, target: Path) -> bool:
    """
    Return whether a mount of *source* shows the filesystem at *root*.
    """
    target.mkdir(exist_ok=True)
    syscall.mount(source, target, "btrfs")
    try:
        return os.stat(target).st_dev == os.stat(root).st_dev
    finally:
        syscall.umount2(target)


def number(path: str) -> int:
    return os.stat(path).st_rdev


def test_single(btrfs_mount: Callable[..., Path], tmp_path: Path) -> None:
    """
    The only device is present, and its node is the one that the kernel names.
    """
    root = btrfs_mount()
    [info] = device.iterate(root)
    assert device.get_state(root, info) == DeviceState(missing=False, seed=False)
    node = device.find_node(root)
    assert node.path == info.path
    assert os.path.islink(node.link)
    assert mountable(node.path, root, tmp_path / "again")
    with pytest.raises(NotBtrfsError):
        device.find_node("/proc")


@pytest.mark.parametrize("lost", [1, 2])
def test_degraded(tmp_path: Path, lost: int) -> None:
    """
    Without one device of a RAID1 that device is missing, and the node is that of the other.
    """
    with multidevice.degraded(tmp_path, lost) as root:
        states = {each.devid: device.get_state(root, each) for each in device.iterate(root)}
        assert states == {
            1: DeviceState(missing=lost == 1, seed=False),
            2: DeviceState(missing=lost == 2, seed=False),
        }
        node = device.find_node(root).path
        assert number(node) == number(device.get_info(root, 3 - lost).path)
        assert mountable(node, root, tmp_path / "again")


def test_seed(tmp_path: Path) -> None:
    """
    A sprouted filesystem is not mounted by its seed, which belongs to another filesystem.
    """
    with multidevice.sprouted(tmp_path) as root:
        assert device.get_state(root, device.get_info(root, 1)) == DeviceState(missing=False, seed=True)
        assert device.get_state(root, device.get_info(root, 2)) == DeviceState(missing=False, seed=False)
        assert device.find_node(root).path == device.get_info(root, 2).path


def test_renamed_node(tmp_path: Path) -> None:
    """
    Where the path that the kernel remembers has gone, or leads to another device, the node is found by its number.
    """
    paths = multidevice.make(tmp_path, 1, "single")
    with multidevice.attached(*paths) as (disk,):
        node = tmp_path / "node"
        os.mknod(node, stat.S_IFBLK | 0o600, number(disk.path))
        with multidevice.mounted(tmp_path / "m", str(node)) as root:
            assert device.find_node(root).path == str(node)
            node.rename(tmp_path / "other")
            assert device.find_node(root).path == disk.path
            os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(7, 250))
            assert device.find_node(root).path == disk.path
            node.unlink()
            node.touch()
            assert device.find_node(root).path == disk.path


def elsewhere(root: Path, *hidden: str) -> str:
    """
    Return the path of the node where the directories *hidden* are empty.
    """
    code = "import sys; from pybtrfs import device; print(device.find_node(sys.argv[1]).path)"
    mounts = " && ".join(f"mount -t tmpfs none {each}" for each in hidden)
    script = f'{mounts} && exec "$0" -c "$1" "$2"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, sys.executable, code, str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_without_disks_in_dev(tmp_path: Path) -> None:
    """
    Where /dev has no disks, as in a sandbox, the kernel's names decide: also for a node that was renamed.
    """
    paths = multidevice.make(tmp_path, 1, "single")
    with multidevice.attached(*paths) as (disk,):
        with multidevice.mounted(tmp_path / "m", disk.path) as root:
            assert elsewhere(root, "/dev") == disk.path
        node = tmp_path / "node"
        os.mknod(node, stat.S_IFBLK | 0o600, number(disk.path))
        with multidevice.mounted(tmp_path / "m", str(node)) as root:
            node.unlink()
            assert elsewhere(root, "/dev") == disk.path


@pytest.mark.parametrize("lost", [1, 2])
def test_without_sysfs(tmp_path: Path, lost: int) -> None:
    """
    Without sysfs the node is the remembered path of a device that is present, even if /dev has no disks either.
    """
    with multidevice.degraded(tmp_path, lost) as root:
        path = device.get_info(root, 3 - lost).path
        assert elsewhere(root, "/sys") == path
        assert elsewhere(root, "/sys", "/dev") == path


@pytest.mark.parametrize(
    ("profile", "devices", "survivable"),
    [
        ("single", 1, 0),
        ("dup", 1, 0),
        ("raid0", 2, 0),
        ("raid1", 2, 1),
        ("raid1c3", 3, 2),
        ("raid1c4", 4, 3),
        ("raid10", 4, 1),
        ("raid5", 3, 0),
        ("raid6", 4, 0),
    ],
)
def test_survivable(tmp_path: Path, profile: str, devices: int, survivable: int) -> None:
    """
    Every block group survives the loss of the copies that its profile has besides the last.
    """
    paths = multidevice.make(tmp_path, devices, profile)
    with multidevice.attached(*paths) as disks, multidevice.mounted(tmp_path / "m", *(d.path for d in disks)) as root:
        assert space.get_survivable(root) == survivable


def test_survivable_of_mixed_profiles(tmp_path: Path) -> None:
    """
    The weakest block group counts, also if its type is metadata.
    """
    paths = multidevice.make(tmp_path, 2, "raid1")
    with multidevice.attached(*paths) as disks, multidevice.mounted(tmp_path / "m", *(d.path for d in disks)) as root:
        subvolume.create(root / "x")
        multidevice.progs("btrfs", "balance", "start", "-f", "-mconvert=dup", "-sconvert=dup", root)
        assert space.get_survivable(root) == 0
