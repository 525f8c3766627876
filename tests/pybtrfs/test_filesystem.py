"""
Filesystems as a whole, on real btrfs.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from pybtrfs import device, filesystem, space, subvolume, syscall
from pybtrfs.errors import NotBtrfsError

FORMS: list[Callable[[Path], Any]] = [str, os.fsencode, Path, subvolume.Subvolume]


@pytest.mark.btrfs
@pytest.mark.parametrize("form", FORMS)
def test_get_info(btrfs_mount: Callable[..., Path], form: Callable[[Path], Any]) -> None:
    """
    Any file of the filesystem, in any form, leads to the same info.
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
    The generation is that of the running transaction, before its commit.
    """
    subvolume.create(btrfs / "new")
    assert filesystem.get_info(btrfs).generation >= subvolume.get_info(btrfs / "new").generation


@pytest.mark.btrfs
def test_syncs(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Starting, waiting for and forcing commits needs no privilege; a future transaction is refused.
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
    A filesystem shrinks and grows to a size or to the whole device, which needs CAP_SYS_ADMIN.
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


@pytest.mark.btrfs
@pytest.mark.parametrize(("size", "devid"), [(1 << 20, 1), ("max", 0), ("max", -1)])
def test_resize_refused(btrfs: Path, size: int | Literal["max"], devid: int) -> None:
    """
    A size below the kernel's minimum, and a wrong devid, are EINVAL with a note that has both rules.
    """
    with pytest.raises(OSError) as caught:
        filesystem.resize(btrfs, size, devid=devid)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, btrfs)
    assert caught.value.__notes__[-1] == (
        f"'{devid}:{size}' must have a devid of at least 1, and a size of at least 256 MiB"
    )


@pytest.mark.parametrize("size", [0, -1, "1g", "cancel", 1.5, None])
def test_a_wrong_size_is_refused(tmp_path: Path, size: Any) -> None:
    """
    A size that is neither positive bytes nor "max" is refused before any call.
    """
    with pytest.raises(ValueError, match="neither a size"):
        filesystem.resize(tmp_path, size)


@pytest.mark.btrfs
def test_elsewhere(tmp_path: Path) -> None:
    """
    On another filesystem every function raises NotBtrfsError, for every kind of file.
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
    btrfs has its own magic number.
    """
    fd = os.open(btrfs, os.O_RDONLY)
    try:
        assert syscall.fstatfs_type(fd) == syscall.BTRFS_SUPER_MAGIC
    finally:
        os.close(fd)
