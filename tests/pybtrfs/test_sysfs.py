"""
Files in /sys.
"""

import os
from pathlib import Path

import pytest

from pybtrfs import filesystem, sysfs


def test_directory() -> None:
    """
    The directory of a filesystem is named after its identity.
    """
    assert sysfs.directory(bytes(range(16))) == "/sys/fs/btrfs/00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_read(tmp_path: Path) -> None:
    """
    A file is read without its final newline, whatever its bytes; an unreadable one is empty.
    """
    (tmp_path / "file").write_bytes(b"a\n\xff \n")
    assert sysfs.read(f"{tmp_path}/file") == "a\n\udcff "
    assert sysfs.read(f"{tmp_path}/none") == ""
    assert sysfs.read(str(tmp_path)) == ""


@pytest.mark.btrfs
def test_count_commits(btrfs: Path) -> None:
    """
    Each commit counts, and nothing else does; the number of an unknown filesystem is missing.
    """
    filesystem.sync(btrfs)
    fsid = filesystem.get_info(btrfs).fsid_bytes
    before = sysfs.count_commits(fsid)
    if before is None and not os.path.exists(f"{sysfs.directory(fsid)}/commit_stats"):
        pytest.skip("the kernel does not count commits")
    assert before is not None
    (btrfs / "file").write_bytes(b"content")
    filesystem.sync(btrfs)
    after = sysfs.count_commits(fsid)
    assert after is not None
    assert after > before
    assert sysfs.count_commits(bytes(16)) is None
