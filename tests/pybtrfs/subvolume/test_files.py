"""
The files of a subvolume, from its tree and from its directories.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, subvolume
from pybtrfs.subvolume.files import Tree, WalkedTree
from tests.pybtrfs.subvolume.common import make, open_directory

pytestmark = pytest.mark.btrfs

DEPTH = 1201  # more than Python recurses, and than most processes may open files


def paths(tree: Tree | WalkedTree) -> dict[int, list[bytes | None]]:
    """
    Return the paths of each inode.
    """
    return {number: sorted(map(tree.path, tree.names(number))) for number, _ in tree.changed(0)}  # type: ignore[type-var]


def walked(path: Path) -> dict[int, list[bytes | None]]:
    with open_directory(path) as fd:
        return paths(WalkedTree(fd))


def searched(path: Path) -> dict[int, list[bytes | None]]:
    filesystem.sync(path)
    with open_directory(path) as fd:
        return paths(Tree(fd, subvolume.get_id(fd)))


def test_both_trees(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A walk finds the same files as the tree, without nested subvolumes, and needs no privilege.
    """
    make(base, "directory/nested")
    for name in ("file", "directory/file", os.fsdecode(b"directory/\xff")):
        (base / name).touch()
    (base / "directory/nested/inside").touch()
    os.link(base / "file", base / "directory/link")
    (base / "symlink").symlink_to("directory")
    found = searched(base)
    assert walked(base) == unprivileged(walked, base) == found
    assert found[(base / "file").stat().st_ino] == [b"directory/link", b"file"]
    (base / "directory").chmod(0)
    assert set(unprivileged(walked, base)) == {number for number, names in found.items() if b"file" in names} | {
        (base / name).lstat().st_ino for name in ("", "directory", "symlink")
    }


def test_any_number_of_directories(base: Path) -> None:
    """
    Directories in each other are walked, however many there are.
    """
    fd = os.open(base, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    found = walked(base)
    assert found == searched(base)
    assert max(len(path) for [path] in found.values()) == 2 * DEPTH - 1
