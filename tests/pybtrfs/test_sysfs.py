"""
Files in /sys.
"""

from pathlib import Path

from pybtrfs import sysfs


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
