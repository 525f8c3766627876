"""
The expected contents of images, and the comparison with them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .images import applied, differences, directory, found, layer, link, member, opaque, whiteout

LOWER = [
    directory("kept"),
    member("kept/file", b"content", xattrs={"user.name": b"value"}),
    link("kept/twin", member("kept/file", b"content", xattrs={"user.name": b"value"})),
    directory("hidden"),
    member("hidden/file"),
    directory("removed"),
    member("removed/file"),
]


def test_layers() -> None:
    """
    A layer adds and replaces files. Whiteouts and opaque directories hide only files of the layers below.
    """
    upper = layer(
        member("new/file"), member("hidden/file"), member("hidden/other"), opaque("hidden"), whiteout("removed")
    )
    first, second = applied([layer(*LOWER)]), applied([layer(*LOWER), upper])
    assert first.keys() == {".", *(item.info.name for item in LOWER)}
    assert second.keys() - first.keys() == {"new", "new/file", "hidden/other"}
    assert first.keys() - second.keys() == {"removed", "removed/file"}
    assert second["kept/file"] is second["kept/twin"]
    assert first["kept"].mtime == second["kept"].mtime
    assert second["hidden"].mtime is None, "a directory that changed has a time of its own"


def touch_back(path: Path) -> None:
    path.write_bytes(b"CONTENT")
    os.utime(path, (1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": touch_back,
    "mode": lambda path: path.chmod(0o600),
    "owner": lambda path: os.chown(path, 1, 0),
    "time": lambda path: os.utime(path, (2, 2)),
    "xattr": lambda path: os.setxattr(path, "user.name", b"other"),
    "missing": lambda path: path.unlink(),
    "surplus": lambda path: path.with_name("surplus").touch(),
    "link": lambda path: shutil.copy2(path, path.with_name("twin")),
}


@pytest.mark.btrfs
@pytest.mark.parametrize("name", CHANGES)
def test_differences(btrfs: Path, name: str) -> None:
    """
    A change of any attribute that a layer sets is a difference.
    """
    path, twin = btrfs / "file", btrfs / "twin"
    path.write_bytes(b"content")
    os.setxattr(path, "user.name", b"value")
    os.utime(path, (1, 1))
    twin.hardlink_to(path)
    expected = found(btrfs)
    expected["."].mtime = None
    assert differences(expected, found(btrfs)) == []
    if name == "link":
        twin.unlink()
    CHANGES[name](path)
    assert differences(expected, found(btrfs)) != []
