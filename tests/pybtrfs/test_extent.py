import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import extent, filesystem, items, subvolume, tree_search
from pybtrfs.extent import ExtentReference
from pybtrfs.items import FileExtent

pytestmark = pytest.mark.btrfs

FICLONERANGE = 0x4020940D


def bytenr(path: Path) -> int:
    """
    Where the first extent of a file is.
    """
    key = items.Key(path.stat().st_ino, items.EXTENT_DATA_KEY, 0)
    [item] = tree_search.search(path, min_key=key, max_key=key)
    found = items.extent_data(item.data)
    assert isinstance(found, FileExtent)
    return found.disk_bytenr


@pytest.fixture
def file(btrfs: Path) -> Path:
    """
    A file of 1 MiB in a subvolume, on disk.
    """
    path = btrfs / "volume" / "file"
    subvolume.create(path.parent)
    path.write_bytes(os.urandom(1 << 20))
    filesystem.sync(btrfs)
    return path


def test_references(file: Path, btrfs: Path) -> None:
    """
    Every file that has a part of an extent refers to it: in snapshots, as clones, and in what is overwritten elsewhere.
    """
    inode, own = file.stat().st_ino, subvolume.get_id(file)
    where = bytenr(file)
    assert extent.get_references(btrfs, where) == (ExtentReference(inode, 0, own),)
    subvolume.snapshot(file.parent, btrfs / "copy")
    with open(file, "r+b") as changed:
        changed.write(bytes(4096))
    filesystem.sync(btrfs)
    copy = subvolume.get_id(btrfs / "copy")
    assert sorted(extent.get_references(btrfs, where)) == [
        ExtentReference(inode, 0, copy),
        ExtentReference(inode, 4096, own),
    ]


def test_many(file: Path, btrfs: Path) -> None:
    """
    More references than the first answer has room for are all found.
    """
    with open(file, "rb") as source, open(btrfs / "clones", "wb") as clones:
        for number in range(300):
            fcntl.ioctl(clones, FICLONERANGE, struct.pack("=q3Q", source.fileno(), 0, 4096, number * 4096))
    found = extent.get_references(file, bytenr(file))
    assert {reference.offset for reference in found} == {number * 4096 for number in range(300)}
    assert len(found) == 301


def test_nothing(file: Path) -> None:
    """
    Where no extent is, nothing refers to it.
    """
    assert extent.get_references(file, 1 << 60) == ()


def test_unprivileged(file: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user is refused.
    """
    with pytest.raises(PermissionError, match="CAP_SYS_ADMIN"):
        unprivileged(extent.get_references, file, 0)
