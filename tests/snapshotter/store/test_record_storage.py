"""
Storage of records: atomic replacement, unchanged bytes, and room for every record that is accepted.
"""

import errno
import os
import random
import stat
from pathlib import Path
from unittest.mock import Mock

import pytest

from pybtrfs import filesystem, subvolume
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.record_storage import XATTR, Files, RecordStorage, Xattrs


@pytest.fixture
def record_storage(backend: str) -> RecordStorage:
    return Xattrs() if backend == "btrfs" else Files()


def test_write_and_read(record_storage: RecordStorage, backend: str, work: Path) -> None:
    """
    A record is replaced atomically, in an xattr on btrfs and in a file elsewhere, and leaves no other file.
    """
    fd = os.open(work, os.O_RDONLY)
    try:
        assert record_storage.read(fd) is None
        for data in (b"first", b"a longer one", b"short", bytes(7680)):
            record_storage.write(fd, data)
            assert record_storage.read(fd) == data
        assert os.listdir(work) == ([] if backend == "btrfs" else ["record"])
        (work / "record.new").touch()  # as a killed process leaves it
        assert record_storage.read(fd) == bytes(7680)
        record_storage.delete(fd)
        assert os.listdir(work) == (["record.new"] if backend == "btrfs" else [])
    finally:
        os.close(fd)


def test_make_directory(
    record_storage: RecordStorage, backend: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A directory is created with its record and mode 0700, or not at all; an existing directory is left alone.
    """
    work_fd = os.open(work, os.O_RDONLY)
    try:
        fd = record_storage.make_directory(work_fd, "1", b"first")
        assert record_storage.read(fd) == b"first"
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
        assert not os.get_inheritable(fd)
        with pytest.raises(FileExistsError):
            record_storage.make_directory(work_fd, "1", b"second")
        assert record_storage.read(fd) == b"first"
        os.close(fd)
        if backend == "btrfs":
            with pytest.raises(OSError, match="No space left"):  # as the kernel calls an xattr too large for a node
                record_storage.make_directory(work_fd, "2", bytes(17_000))
        else:
            for call in ("rename", "open"):
                with monkeypatch.context() as patch:
                    patch.setattr(os, call, Mock(side_effect=OSError(errno.ENOSPC, "refused")))
                    with pytest.raises(OSError, match="refused"):
                        record_storage.make_directory(work_fd, "2", b"")
        assert os.listdir(work) == ["1"]
    finally:
        os.close(work_fd)


def test_failed_reading(record_storage: RecordStorage, work: Path) -> None:
    """
    A record that cannot be read is an error, not a missing record.
    """
    fd = os.open(work, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        record_storage.read(fd)


@pytest.mark.btrfs
def test_room(nodes: Path) -> None:
    """
    The kernel accepts every record up to the limit as a replacement of any other, even in a full leaf and beside
    pieces.
    """
    root = nodes
    volumes = BtrfsVolumes(str(root), "btrfs")
    limit = volumes.record_limit
    info = filesystem.get_info(str(root))
    volumes.close()
    assert info.nodesize * 0.4 < limit
    sizes = random.Random(0)
    snapshots = [root / str(number) for number in range(200)]
    written = {}
    for snapshot in snapshots:
        snapshot.mkdir()
        subvolume.create(snapshot / "fs")
        written[snapshot] = sizes.choice([300, limit // 2, limit * 3 // 4, limit])
        os.setxattr(snapshot, XATTR, bytes(written[snapshot]))
    for _ in range(15):
        for snapshot in sizes.sample(snapshots, len(snapshots)):
            grown = min(limit, written[snapshot] + sizes.randrange(120))
            written[snapshot] = grown if sizes.random() < 0.8 else sizes.randrange(200, limit + 1)
            os.setxattr(snapshot, XATTR, bytes(written[snapshot]))
            if sizes.random() < 0.1:
                os.setxattr(snapshot, f"{XATTR}.{sizes.randrange(5)}", bytes(2 * limit))
            for name in os.listxattr(snapshot):
                if name != XATTR and sizes.random() < 0.3:
                    os.removexattr(snapshot, name)
    subvolume.snapshot(snapshots[0] / "fs", snapshots[0] / "layer", read_only=True)
    os.setxattr(snapshots[0], XATTR, bytes(limit))
