"""
A rollback of the root of a store, or of the subvolume above it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter
from snapshotter.errors import UnavailableError
from tests.snapshotter.cli.commands import Run

pytestmark = pytest.mark.btrfs


def rolled_back(path: Path) -> Path:
    """
    Replace the subvolume *path* by a snapshot of itself, and return the path of the original.
    """
    former = path.with_name(f"{path.name}.former")
    os.rename(path, former)
    subvolume.snapshot(former, path)
    return former


def test_mounts(btrfs: Path) -> None:
    """
    In bind mode no mount leads to another place than the open store.
    """
    for above in (btrfs / "root", btrfs / "above"):
        root = above if above.name == "root" else above / "root"
        if above != root:
            subvolume.create(above)
        with Snapshotter.create(root, mount_mode="bind") as store:
            [mount] = store.prepare("a")
            assert Path(mount.source).is_dir()
            former = rolled_back(above)
            for call in (lambda: store.mounts("a"), lambda: store.view("v")):
                with pytest.raises(UnavailableError, match="no longer leads to the open store"):
                    call()
            os.rename(above, btrfs / f"{above.name}.rolled")
            os.rename(former, above)
            assert store.mounts("a") == (mount,)
            assert [info.name for info in store.walk()] == ["a"]


def test_placeholder(btrfs: Path, tmp_path: Path, run: Run) -> None:
    """
    On the empty directory that a rollback leaves, commands say where the store is and how to get it back.
    """
    above = btrfs / "above"
    root = above / "root"
    subvolume.create(above)
    Snapshotter.create(root).close()
    former = rolled_back(above)
    for command, *extra in (["ls"], ["init"], ["doctor"], ["serve", "--address", str(tmp_path / "s.sock")]):
        ran = subprocess.run(
            [sys.executable, "-m", "snapshotter", command, "--root", root, *extra], stderr=subprocess.PIPE, text=True
        )
        assert ran.returncode == 1, command
        assert "the store is in the subvolume that was rolled away" in ran.stderr
    root.rmdir()
    os.rename(former / "root", root)
    assert run("ls", "--root", str(root)).code == 0
