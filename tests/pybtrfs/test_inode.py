"""
Compression and copy-on-write of files and directories, on real btrfs.
"""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import inode, ioctl, subvolume
from pybtrfs.errors import NotBtrfsError
from pybtrfs.path import opened

pytestmark = pytest.mark.btrfs

NOBODY = 65534

# The version decides here, because the tests are about the rules of newer kernels; 6.1 is the next tested version.
LINUX = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
not_on_5_10 = pytest.mark.skipif(LINUX < (6, 1), reason="Linux 5.10 has other rules for compression")


@pytest.mark.parametrize("algorithm", ["zlib", "lzo", "zstd", pytest.param("none", marks=not_on_5_10)])
def test_compression(btrfs: Path, algorithm: str) -> None:
    """
    New files and snapshots inherit the compression of a directory, until None leaves it to the mount options.
    """
    subvolume.create(btrfs / "base")
    assert inode.get_compression(btrfs / "base") is None
    inode.set_compression(btrfs / "base", None)
    inode.set_compression(btrfs / "base", algorithm)
    (btrfs / "base/file").touch()
    subvolume.snapshot(btrfs / "base", btrfs / "copy")
    assert inode.get_compression(btrfs / "base") == inode.get_compression(btrfs / "copy") == algorithm
    with open(btrfs / "base/file") as file:
        if algorithm == "none":
            assert ioctl.getflags(file.fileno()) & ioctl.FS_NOCOMP_FL
        else:
            assert inode.get_compression(file) == algorithm
    for path in (btrfs / "base", btrfs / "base/file"):
        inode.set_compression(path, None)
        assert inode.get_compression(path) is None
        with opened(path) as fd:
            assert not ioctl.getflags(fd) & ioctl.FS_NOCOMP_FL


def test_compression_in_any_form(btrfs: Path) -> None:
    """
    The target may be a path in any form, or an open file.
    """
    with open(btrfs / "file", "wb") as file:
        for target in (btrfs / "file", str(btrfs / "file"), os.fsencode(btrfs / "file"), file, file.fileno()):
            inode.set_compression(target, "zstd")
            assert inode.get_compression(target) == "zstd"
            inode.set_nodatacow(target, nodatacow=False)
            assert inode.get_nodatacow(target) is False


def test_compression_that_the_kernel_does_not_know(btrfs: Path) -> None:
    """
    An unknown algorithm is EINVAL.
    """
    with pytest.raises(OSError) as caught:
        inode.set_compression(btrfs, "brotli")
    assert caught.value.errno == errno.EINVAL
    assert caught.value.__notes__ == ["the kernel does not know 'brotli', or the file is nodatacow"]
    assert caught.value.filename == btrfs


def test_overwriting_of_what_is_compressed(btrfs: Path) -> None:
    """
    A compressed file cannot become nodatacow.
    """
    (btrfs / "file").touch()
    inode.set_compression(btrfs / "file", "zstd")
    with pytest.raises(OSError) as caught:
        inode.set_nodatacow(btrfs / "file")
    assert caught.value.errno == errno.EINVAL


@not_on_5_10
def test_compression_of_what_is_not_copied_on_write(btrfs: Path) -> None:
    """
    A nodatacow file cannot become compressed.
    """
    (btrfs / "other").touch()
    inode.set_nodatacow(btrfs / "other")
    with pytest.raises(OSError) as caught:
        inode.set_compression(btrfs / "other", "zstd")
    assert caught.value.errno == errno.EINVAL


def test_nodatacow(btrfs: Path) -> None:
    """
    New files inherit nodatacow from their directory; a file with data cannot change it.
    """
    (btrfs / "old").write_text("content")
    assert not inode.get_nodatacow(btrfs)
    inode.set_nodatacow(btrfs)
    assert inode.get_nodatacow(btrfs)
    (btrfs / "new").touch()
    assert inode.get_nodatacow(btrfs / "new")
    with pytest.raises(OSError, match="cannot change nodatacow of a file with data") as caught:
        inode.set_nodatacow(btrfs / "old")
    assert caught.value.errno == errno.EINVAL
    (btrfs / "new").write_text("content")
    with pytest.raises(OSError, match="cannot change nodatacow of a file with data"):
        inode.set_nodatacow(btrfs / "new", nodatacow=False)
    inode.set_nodatacow(btrfs, nodatacow=False)
    (btrfs / "newer").touch()
    assert not inode.get_nodatacow(btrfs / "newer")


def test_of_a_read_only_subvolume(btrfs: Path) -> None:
    """
    In a read-only subvolume both can be read but not set.
    """
    subvolume.create(btrfs / "base")
    subvolume.set_read_only(btrfs / "base")
    assert inode.get_compression(btrfs / "base") is None
    assert not inode.get_nodatacow(btrfs / "base")
    for call in (lambda: inode.set_compression(btrfs / "base", "zstd"), lambda: inode.set_nodatacow(btrfs / "base")):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS


def test_unprivileged(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user reads both, and sets both for files he owns.
    """
    (btrfs / "file").touch()
    assert unprivileged(inode.get_compression, btrfs / "file") is None
    assert unprivileged(inode.get_nodatacow, btrfs / "file") is False
    for call in (
        lambda: inode.set_compression(btrfs / "file", "zstd"),
        lambda: inode.set_nodatacow(btrfs / "file"),
    ):
        with pytest.raises(PermissionError) as caught:
            unprivileged(call)
        assert caught.value.filename == btrfs / "file"
    os.chown(btrfs / "file", NOBODY, NOBODY)
    unprivileged(inode.set_compression, btrfs / "file", "zstd")
    unprivileged(inode.set_compression, btrfs / "file", None)
    unprivileged(inode.set_nodatacow, btrfs / "file")


def test_elsewhere(tmp_path: Path) -> None:
    """
    On another filesystem every call raises NotBtrfsError.
    """
    for call in (
        lambda: inode.get_compression(tmp_path),
        lambda: inode.set_compression(tmp_path, "zstd"),
        lambda: inode.get_nodatacow(tmp_path),
        lambda: inode.set_nodatacow(tmp_path),
    ):
        with pytest.raises(NotBtrfsError):
            call()
