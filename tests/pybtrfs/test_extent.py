"""
Extents and their references, on real btrfs.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import extent, filesystem, items, subvolume, tree_search
from pybtrfs.extent import Extent, ExtentReference
from pybtrfs.items import FileExtent

pytestmark = pytest.mark.btrfs

FICLONERANGE = 0x4020940D


def bytenr(path: Path) -> int:
    """
    Return the address of the first extent of a file.
    """
    key = items.Key(path.stat().st_ino, items.EXTENT_DATA_KEY, 0)
    [item] = tree_search.search(path, min_key=key, max_key=key)
    found = items.extent_data(item.data)
    assert isinstance(found, FileExtent)
    return found.disk_bytenr


@pytest.fixture
def file(btrfs: Path) -> Path:
    """
    A file of 1 MiB in a subvolume, written back.
    """
    path = btrfs / "volume" / "file"
    subvolume.create(path.parent)
    path.write_bytes(os.urandom(1 << 20))
    filesystem.sync(btrfs)
    return path


def test_references(file: Path, btrfs: Path) -> None:
    """
    Every file that has a part of an extent references it: in a snapshot, and after a partial overwrite.
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
    All references are found, even if they do not fit into the first buffer.
    """
    with open(file, "rb") as source, open(btrfs / "clones", "wb") as clones:
        for number in range(300):
            fcntl.ioctl(clones, FICLONERANGE, struct.pack("=q3Q", source.fileno(), 0, 4096, number * 4096))
    found = extent.get_references(file, bytenr(file))
    assert {reference.offset for reference in found} == {number * 4096 for number in range(300)}
    assert len(found) == 301


def test_nothing(file: Path) -> None:
    """
    A free address has no references.
    """
    assert extent.get_references(file, 1 << 60) == ()


def test_unprivileged(file: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A caller without CAP_SYS_ADMIN is refused.
    """
    with pytest.raises(PermissionError, match="CAP_SYS_ADMIN"):
        unprivileged(extent.get_references, file, 0)


def first(path: Path) -> Extent:
    """
    Return the first extent of the subvolume at *path*.
    """
    return next(extent.iterate(path, subvolume.get_id(path)))


def test_iterate(file: Path, btrfs: Path) -> None:
    """
    The extents of a subvolume are listed once for each reference, without inline data; with a base, only those that the
    base does not have at the same offset.
    """
    (file.parent / "small").write_text("inline")
    base = btrfs / "base"
    subvolume.snapshot(file.parent, base, read_only=True)
    with open(file, "r+b") as changed:
        changed.seek(8192)
        changed.write(bytes(4096))
    filesystem.sync(btrfs)
    subvolid, info = subvolume.get_id(file), subvolume.get_info(base)
    found = list(extent.iterate(btrfs, subvolid))
    assert [each.offset for each in found] == [0, 8192, 12288]
    assert (found[0].bytenr, found[0].size, found[0].inum) == (bytenr(file), 1 << 20, file.stat().st_ino)
    assert list(extent.iterate(btrfs, subvolid, info)) == found[1:]
    assert list(extent.iterate(btrfs, info.id)) == found[:1]
    assert list(extent.iterate(btrfs, 1 << 40)) == []


def test_has_reference(file: Path, btrfs: Path) -> None:
    """
    A snapshot references an extent at the same offset until it is overwritten there; a missing subvolume references
    nothing.
    """
    subvolume.snapshot(file.parent, btrfs / "copy")
    found, copy = first(file.parent), subvolume.get_id(btrfs / "copy")
    assert extent.has_reference(btrfs, copy, found)
    assert not extent.has_reference(btrfs, copy, found._replace(offset=4096))
    (btrfs / "copy/file").write_bytes(os.urandom(1 << 20))
    filesystem.sync(btrfs)
    assert not extent.has_reference(btrfs, copy, found)
    assert not extent.has_reference(btrfs, 1 << 40, found)


def test_unshared(file: Path, btrfs: Path) -> None:
    """
    An extent is unshared if only its owners reference it; a deleted subvolume that is still open does not count.
    """
    found, own = first(file.parent), subvolume.get_id(file)
    assert extent.unshared(btrfs, [found, found], {own}) == {found.bytenr: 1 << 20}
    subvolume.snapshot(file.parent, btrfs / "copy")
    filesystem.sync(btrfs)
    with subvolume.Subvolume(btrfs / "copy") as copy:
        assert extent.unshared(btrfs, [found], {own}) == {}
        assert extent.unshared(btrfs, [found], {own, subvolume.get_id(copy)}) == {found.bytenr: 1 << 20}
        subvolume.delete(btrfs / "copy")
        filesystem.sync(btrfs)
        assert extent.unshared(btrfs, [found], {own}) == {found.bytenr: 1 << 20}
