import os
import re
import subprocess
from pathlib import Path

import pytest

from pybtrfs import filesystem, subvolume
from snapshotter import Snapshotter
from snapshotter.analysis import directories
from snapshotter.analysis.directories import DirectoryUsage
from snapshotter.mounting import mounted

pytestmark = pytest.mark.btrfs


def counted(path: Path) -> tuple[int, int]:
    """
    Return the exclusive and the shared bytes of *path* as `btrfs filesystem du` counts them.
    """
    command = ["btrfs", "filesystem", "du", "--summarize", "--raw", path]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    total, exclusive = map(int, re.findall(r"\d+", said.splitlines()[-1])[:2])
    return exclusive, total - exclusive


def test_measure(btrfs: Path) -> None:
    """
    Every directory of every snapshot has the bytes that the btrfs command counts and the inodes that a walk finds, and
    so do a view and a fork.
    """
    with Snapshotter.create(btrfs / "store") as store:
        for key, parent in ("base", ""), ("web", "base"):
            store.prepare("build", parent)
            with mounted(store.mounts("build")) as path:
                for directory in (f"{key}/one/deep", f"{key}/two", "both"):
                    Path(path, directory).mkdir(parents=True, exist_ok=True)
                    for number in range(5):
                        Path(path, directory, f"{key}{number}").write_bytes(os.urandom(3000 + 4096 * number))
                Path(path, "both/base0").write_bytes(os.urandom(9000))
                Path(path, f"{key}/link").symlink_to("/etc")
                Path(path, f"{key}/small").write_text("kept with its inode")
            store.commit(key, "build")
        for key in "a", "b":
            store.prepare(key, "web")
            with mounted(store.mounts(key)) as path:
                Path(path, "both/base1").write_bytes(os.urandom(20_000))
                Path(path, "web/two/web2").unlink()
                os.link(f"{path}/base/two/base3", f"{path}/web/linked")
        store.fork("a", "f")
        store.view("v", "base")
        store.cleanup()
        filesystem.sync(btrfs)
        for key in "base", "web", "a", "b", "f", "v":
            root = Path(store.subvolume(key))
            found = directories.measure(store, key, 3)
            assert found[0].path == "."
            assert [each.path for each in found[1:]] == sorted(
                os.path.relpath(path, root) for path, *_ in os.walk(root) if path != str(root)
            )
            for each in found:
                path = root / each.path
                if key != "v" and not any(entry.stat().st_nlink > 1 for entry in path.rglob("*") if entry.is_file()):
                    assert (each.exclusive, each.shared) == counted(path), (key, each)
            inodes = {entry.lstat().st_ino for entry in root.rglob("*")}
            assert found[0].inodes == len(inodes) + 1
        assert directories.measure(store, "v") == directories.measure(store, "base")
        assert [each.path for each in directories.measure(store, "a", 0)] == ["."]
        store.view("nothing")
        assert directories.measure(store, "nothing") == [DirectoryUsage(".", 0, 0, 1)]


def test_nested(btrfs: Path) -> None:
    """
    Nested subvolumes count as directories, at any depth.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        Path(store.subvolume("build"), "base").write_bytes(os.urandom(8192))
        store.commit("base", "build")
        store.prepare("a", "base")
        root = Path(store.subvolume("a"))
        (root / "directory").mkdir()
        for path in root / "directory/nested", root / "directory/nested/inner":
            subvolume.create(path)
            (path / "deep").mkdir()
            (path / "deep/file").write_bytes(os.urandom(1 << 20))
        subvolume.snapshot(root, root / "copy")
        filesystem.sync(btrfs)
        found = {each.path: each for each in directories.measure(store, "a", 9)}
        assert list(found) == [
            ".",
            "copy",
            "copy/directory",
            "directory",
            "directory/nested",
            "directory/nested/deep",
            "directory/nested/inner",
            "directory/nested/inner/deep",
        ]
        assert found["."] == DirectoryUsage(".", 2 << 20, 8192, 12)
        assert found["directory"] == DirectoryUsage("directory", 2 << 20, 0, 7)
        assert found["directory/nested/inner"] == DirectoryUsage("directory/nested/inner", 1 << 20, 0, 3)
        assert found["copy"].inodes == 3
