"""
The rotation of disks, read from trees as sysfs has them.
"""

import os
from pathlib import Path

import pytest

from snapshotter.maintenance import rotation
from snapshotter.maintenance.rotation import Rotation

SDA = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda"
NVME = "pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1"
VDA = "pci0000:00/0000:00:02.0/virtio1/block/vda"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """
    A directory with the disks of several machines below "devices", and without devices of a filesystem below "fs".
    """
    for path, rotational in (
        (SDA, 1),
        (NVME, 0),
        (VDA, 1),
        ("pci0000:00/0000:00:03.0/virtio2/host2/target2:0:0/2:0:0:0/block/sdb", 1),
        ("vbd-51712/block/xvda", 1),
        ("LNXSYSTM:00/VMBUS:01/fd1d2cbd/host1/target1:0:0/1:0:0:0/block/sdc", 1),
        ("pci0000:00/0000:00:1f.2/ata2/host3/target3:0:0/3:0:0:0/block/sdd", 1),
    ):
        add(tmp_path, path, rotational)
    partition = tmp_path / "devices" / VDA / "vda2"
    partition.mkdir()
    (partition / "partition").write_text("2\n")
    emulated = tmp_path / "devices/pci0000:00/0000:00:1f.2/ata2/host3/target3:0:0/3:0:0:0/block/sdd/device"
    emulated.mkdir()
    (emulated / "model").write_text("QEMU HARDDISK   \n")
    (tmp_path / "fs").mkdir()
    (tmp_path / "numbers").mkdir()
    return tmp_path


def add(tree: Path, path: str, rotational: int, *below: str) -> None:
    """
    Add a block device, on the devices *below*.
    """
    device = tree / "devices" / path
    (device / "queue").mkdir(parents=True)
    (device / "queue/rotational").write_text(f"{rotational}\n")
    (device / "slaves").mkdir()
    for each in below:
        (device / "slaves" / each.rpartition("/")[2]).symlink_to(tree / "devices" / each)


def rotates(tree: Path, *paths: str) -> Rotation:
    """
    Return the rotation of a filesystem on the devices *paths*.
    """
    for path in paths:
        (tree / "fs" / path.rpartition("/")[2]).symlink_to(tree / "devices" / path)
    return rotation.of(str(tree / "fs"), by_number=str(tree / "numbers"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (SDA, Rotation.POSSIBLE),
        (NVME, Rotation.NONE),
        (VDA, Rotation.CLAIMED),
        (f"{VDA}/vda2", Rotation.CLAIMED),
        ("pci0000:00/0000:00:03.0/virtio2/host2/target2:0:0/2:0:0:0/block/sdb", Rotation.CLAIMED),
        ("vbd-51712/block/xvda", Rotation.CLAIMED),
        ("LNXSYSTM:00/VMBUS:01/fd1d2cbd/host1/target1:0:0/1:0:0:0/block/sdc", Rotation.CLAIMED),
        ("pci0000:00/0000:00:1f.2/ata2/host3/target3:0:0/3:0:0:0/block/sdd", Rotation.CLAIMED),
    ],
)
def test_one_disk(tree: Path, path: str, expected: Rotation) -> None:
    """
    A hard disk, a solid-state disk, and the disks and partitions of several hypervisors are told apart.
    """
    assert rotates(tree, path) is expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((NVME, VDA), Rotation.CLAIMED),
        ((NVME, SDA), Rotation.POSSIBLE),
        ((VDA, SDA), Rotation.POSSIBLE),
        ((), Rotation.POSSIBLE),
    ],
)
def test_several_disks(tree: Path, paths: tuple[str, ...], expected: Rotation) -> None:
    """
    A single disk that may rotate decides. Without any known disk, a disk may rotate.
    """
    assert rotates(tree, *paths) is expected


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ((NVME,), Rotation.NONE),
        ((f"{VDA}/vda2",), Rotation.CLAIMED),
        ((NVME, SDA), Rotation.POSSIBLE),
    ],
)
def test_mapped(tree: Path, below: tuple[str, ...], expected: Rotation) -> None:
    """
    The disks below the device mapper and below an array decide, on any level.
    """
    add(tree, "virtual/block/md0", 1, *below)
    add(tree, "virtual/block/dm-0", 1, "virtual/block/md0")
    assert rotates(tree, "virtual/block/dm-0") is expected


@pytest.mark.parametrize(("own", "expected"), [(0, Rotation.NONE), (1, Rotation.POSSIBLE)])
def test_loop_device(tree: Path, tmp_path: Path, own: int, expected: Rotation) -> None:
    """
    The disk below the image of a loop device decides, or the loop device itself if the disk is unknown.
    """
    add(tree, "virtual/block/loop0", own)
    (tree / "devices/virtual/block/loop0/loop").mkdir()
    file = tree / "devices/virtual/block/loop0/loop/backing_file"
    file.write_text(f"{tmp_path}/image\n")
    assert rotates(tree, "virtual/block/loop0") is expected
    (tmp_path / "image").touch()
    assert rotates(tree) is expected
    number = os.stat(tmp_path / "image").st_dev
    (tree / "numbers" / f"{os.major(number)}:{os.minor(number)}").symlink_to(tree / "devices" / VDA)
    assert rotates(tree) is Rotation.CLAIMED


def test_without_sysfs(tmp_path: Path) -> None:
    """
    Without sysfs, a disk may rotate.
    """
    assert rotation.of(str(tmp_path / "none")) is Rotation.POSSIBLE
