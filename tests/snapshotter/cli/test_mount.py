"""
``snapshotter mount`` and ``umount``.
"""

import os
from pathlib import Path

import pytest

from pybtrfs import subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Run

pytestmark = pytest.mark.btrfs


@pytest.mark.parametrize(("key", "names"), [("web", ["file"]), ("v", ["file"]), ("nothing", [])])
def test_mount(filled: str, run: Run, tmp_path: Path, key: str, names: list[str]) -> None:
    """
    mount shows what is in a snapshot, also beside whoever has the store, and umount ends that.
    """
    with Snapshotter(filled):
        assert run("mount", key, str(tmp_path)) == (0, "", "")
        try:
            assert os.listdir(tmp_path) == names
            assert bool(os.statvfs(tmp_path).f_flag & os.ST_RDONLY) == (key != "web")
        finally:
            assert run("umount", str(tmp_path)) == (0, "", "")
    assert os.listdir(tmp_path) == []
    assert run("umount", str(tmp_path)).code == 1


def test_refused(filled: str, run: Run, tmp_path: Path) -> None:
    """
    Nothing is mounted where it would hide something, and nothing that cannot be mounted.
    """
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "file").mkdir(parents=True)
    (tmp_path / "text").touch()
    for argv, code, text in (
        (["web", "full"], 1, "full' is not empty: a mount would hide 'file'"),
        (["web", "text"], 1, "text' is not a directory"),
        (["web", "none"], 4, "none' does not exist: make it first"),
        (["web", "/proc"], 1, "something is mounted at '/proc' already"),
        (["web", filled], 1, "is in the store"),
        (["web", f"{filled}/snapshots/1"], 1, "is in the store"),
        (["base", "empty"], 1, "not active or view"),
        (["none", "empty"], 4, "'none' does not exist"),
    ):
        refused = run("mount", argv[0], str(tmp_path / argv[1]))
        assert (refused.code, refused.out) == (code, ""), argv
        assert text in refused.err
    assert os.listdir(tmp_path / "empty") == []


def test_umount_refused(filled: str, run: Run, btrfs: Path, tmp_path: Path) -> None:
    """
    umount leaves alone what is no snapshot of the store, another store's too, and what is in use.
    """
    subvolume.create(btrfs / "other")
    with Snapshotter.create(btrfs / "second") as second, mounted(second.prepare("a")) as elsewhere:
        for target, text in (
            ("/proc", "is mounted at '/proc'"),
            (str(btrfs / "other"), "no snapshot of store"),
            (elsewhere, "no snapshot of store"),
            (f"{filled}/snapshots/1/layer", "nothing is mounted"),
            (str(tmp_path), "no snapshot of store"),
        ):
            refused = run("umount", target)
            assert (refused.code, refused.out) == (1, ""), target
            assert text in refused.err
    assert run("umount", str(tmp_path / "none")).code == 4
    with Snapshotter(filled, read_only=True) as store, mounted(store.mounts("web")) as path:
        with open(f"{path}/file"):
            assert "is in use: `snapshotter why KEY`" in run("umount", path).err
        assert run("umount", path).code == 0
        syscall.mount("none", path, "tmpfs")  # for the end of the with
