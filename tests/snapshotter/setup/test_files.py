"""
Configuration files: replaced as a whole, with a dated copy of the former content.
"""

import os
import re
from pathlib import Path

import pytest

from snapshotter.setup.files import write


def test_new(tmp_path: Path) -> None:
    """
    A new file is readable by everybody, and has no copy.
    """
    path = tmp_path / "new/file"
    assert write(str(path), "text") == ""
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["file"]


def test_copy(tmp_path: Path) -> None:
    """
    The former content is in a dated copy; mode and owner stay.
    """
    path = tmp_path / "file"
    path.write_bytes(b"old \xff")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    before = path.stat()
    copy = Path(write(str(path), "new"))
    assert re.fullmatch(r"file\.\d{4}-\d\d-\d\d-\d{6}", copy.name)
    assert copy.read_bytes() == b"old \xff"
    assert path.read_text() == "new"
    for each in (path, copy):
        status = each.stat()
        assert (status.st_mode, status.st_uid, status.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, copy.name])


def test_same(tmp_path: Path) -> None:
    """
    A file with the same content is left alone.
    """
    path = tmp_path / "file"
    path.write_text("text")
    before = path.stat()
    assert write(str(path), "text") == ""
    assert path.stat() == before
    assert os.listdir(tmp_path) == ["file"]


def test_link(tmp_path: Path) -> None:
    """
    Behind a symbolic link, the file is replaced, and the link stays.
    """
    path = tmp_path / "elsewhere/file"
    path.parent.mkdir()
    path.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(path)
    write(str(link), "new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the replacement fails, the file has its former content, and no other file is left but the copy.
    """
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(5, "refused")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="refused"):
        write(str(path), "new")
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
