"""
Filesystems as a whole, on real btrfs.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, filesystem, ioctl, space, subvolume, syscall
from pybtrfs.errors import NotBtrfsError

FORMS: list[Callable[[Path], Any]] = [str, os.fsencode, Path, subvolume.Subvolume]


@pytest.mark.btrfs
@pytest.mark.parametrize("form", FORMS)
def test_get_info(btrfs_mount: Callable[..., Path], form: Callable[[Path], Any]) -> None:
    """
    A filesystem is described, the same through any of its files in any form.
    """
    top = btrfs_mount()
    target = form(top)
    info = filesystem.get_info(target)
    if isinstance(target, subvolume.Subvolume):
        target.close()
    assert (info.num_devices, info.max_id, info.sectorsize) == (1, 1, 4096)
    assert info.nodesize in (4096, 16384)
    assert info.fsid.bytes == info.fsid_bytes
    assert info.fsid.int != 0
    assert info.metadata_uuid.bytes == info.metadata_uuid_bytes
    assert (info.csum_type, info.csum_size) == (0, 4)
    (top / "file").touch()
    assert filesystem.get_info(top / "file").fsid == info.fsid


@pytest.mark.btrfs
def test_generation(btrfs: Path) -> None:
    """
    The generation is that of the running transaction, before it is committed.
    """
    subvolume.create(btrfs / "new")
    assert filesystem.get_info(btrfs).generation >= subvolume.get_info(btrfs / "new").generation


@pytest.mark.btrfs
def test_get_space(btrfs_mount: Callable[..., Path]) -> None:
    """
    Spaces are told apart by type and profile, and what is written counts as used.
    """
    top = btrfs_mount()
    spaces = {space.type: space for space in space.get(top)}
    assert spaces.keys() == {"data", "metadata", "system", "global reserve"}
    assert {space.profile for space in spaces.values()} <= {"single", "dup"}
    before = spaces["data"].used_bytes
    (top / "file").write_bytes(os.urandom(1 << 20))
    filesystem.sync(top)
    (data,) = (space for space in space.get(top) if space.type == "data")
    assert data.used_bytes - before == 1 << 20
    assert data.total_bytes >= data.used_bytes


@pytest.mark.parametrize(
    ("flags", "type_", "profile"),
    [
        (ioctl.BLOCK_GROUP_DATA, "data", "single"),
        (ioctl.BLOCK_GROUP_SYSTEM | ioctl.BLOCK_GROUP_DUP, "system", "dup"),
        (ioctl.BLOCK_GROUP_METADATA | ioctl.BLOCK_GROUP_RAID1C4, "metadata", "raid1c4"),
        (ioctl.BLOCK_GROUP_DATA | ioctl.BLOCK_GROUP_METADATA | ioctl.BLOCK_GROUP_RAID10, "data+metadata", "raid10"),
        (ioctl.SPACE_INFO_GLOBAL_RSV | ioctl.BLOCK_GROUP_METADATA, "global reserve", "single"),
    ],
)
def test_names_of_space(flags: int, type_: str, profile: str) -> None:
    """
    Types and profiles have the names that btrfs itself uses for them.
    """
    info = space.SpaceInfo(flags, 2, 1)
    assert (info.type, info.profile) == (type_, profile)


@pytest.mark.btrfs
def test_devices(btrfs_mount: Callable[..., Path]) -> None:
    """
    The one device of an image is listed, and no other devid is one.
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
def test_removed_devices_are_left_out(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Gaps between devids are no error.
    """
    info = ioctl.fs_info
    monkeypatch.setattr(ioctl, "fs_info", lambda fd: info(fd)._replace(max_id=3))
    assert [info.devid for info in device.iterate(btrfs)] == [1]


@pytest.mark.btrfs
def test_device_stats(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    The counters of a good device are zero; anybody may read them, and root reset them.
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
    A block that does not match its checksum is an error to the reader, and counted until the counters are reset.
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
def test_syncs(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Transactions are started, waited for and committed by anybody, and a future one is refused.
    """
    for call in (lambda function, *args: function(*args), unprivileged):
        call(filesystem.sync, btrfs)
        transid = call(filesystem.start_sync, btrfs)
        call(filesystem.wait_sync, btrfs, transid)
        call(filesystem.wait_sync, btrfs)
        with pytest.raises(OSError) as caught:
            call(filesystem.wait_sync, btrfs, transid + 1000)
        assert caught.value.errno == errno.EINVAL
        assert caught.value.filename == btrfs


@pytest.mark.btrfs
def test_resize(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    Root shrinks and grows a filesystem, to a size or to the whole device.
    """
    top = btrfs_mount(512 << 20)
    with pytest.raises(PermissionError) as caught:
        unprivileged(filesystem.resize, top, "max")
    assert caught.value.__notes__[-1] == "needs CAP_SYS_ADMIN"
    for size, total in ((300 << 20, 300 << 20), ("max", 512 << 20)):
        filesystem.resize(top, size)
        assert device.get_info(top, 1).total_bytes == total
    with pytest.raises(OSError) as caught:
        filesystem.resize(top, 1 << 30)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(OSError) as caught:
        filesystem.resize(top, "max", devid=2)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("size", [0, -1, "1g", "cancel", 1.5, None])
def test_a_wrong_size_is_refused(tmp_path: Path, size: Any) -> None:
    """
    What is neither a size nor "max" is refused before any call.
    """
    with pytest.raises(ValueError, match="neither a size"):
        filesystem.resize(tmp_path, size)


@pytest.mark.btrfs
def test_elsewhere(tmp_path: Path) -> None:
    """
    What is not btrfs is a NotBtrfsError for every function, whatever kind of file it is.
    """
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for target in (tmp_path, tmp_path / "file", tmp_path / "fifo", "/proc/self", "/dev/null"):
        for call in (
            filesystem.get_info,
            space.get,
            device.get_stats,
            filesystem.sync,
            filesystem.start_sync,
            filesystem.wait_sync,
            lambda target: list(device.iterate(target)),
            lambda target: filesystem.resize(target, "max"),
        ):
            with pytest.raises(NotBtrfsError) as caught:
                call(target)
            assert caught.value.filename is target


@pytest.mark.btrfs
def test_filesystem_type(btrfs: Path) -> None:
    """
    btrfs is recognised by its magic number.
    """
    fd = os.open(btrfs, os.O_RDONLY)
    try:
        assert syscall.fstatfs_type(fd) == syscall.BTRFS_SUPER_MAGIC
    finally:
        os.close(fd)
