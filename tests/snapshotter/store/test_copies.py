"""
Copies of a store: told from the store, read, and adopted.
"""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter
from snapshotter.errors import (
    FailedPreconditionError,
)
from snapshotter.testing import settle
from tests.snapshotter.store.stores import CHANGES, everything, works

pytestmark = pytest.mark.btrfs


def copied(root: Path, how: str) -> Path:
    """
    Copy the store, or the whole directory around it, and say where the copy is.
    """
    copy = root.parent / "copy"
    if how == "cp":
        subprocess.run(["cp", "-a", root, copy], check=True)
    elif how == "rollback":
        subvolume.snapshot(root, copy)
        subvolume.delete(root, recursive=True)
        copy.rename(root)
        return root
    elif how == "around":
        subvolume.create(root.parent / "around")
        inside = root.parent / "around" / "root"
        with Snapshotter(root) as store:
            assert not store.why_read_only
        inside.mkdir()
        works(Snapshotter.create(inside))
        with Snapshotter(inside) as store:
            store.prepare("active", "base")
            settle(store)
        subvolume.snapshot(root.parent / "around", copy)
        return copy / "root"
    else:
        subvolume.snapshot(root, copy, read_only=how == "read-only snapshot")
    return copy


@pytest.mark.parametrize("how", ["snapshot", "read-only snapshot", "cp", "rollback", "around"])
def test_copy(how: str, root: Path) -> None:
    """
    A copy of the records without the subvolumes can be read and says so, and nothing in it is ever changed: all its
    snapshots seem lost.
    """
    with Snapshotter(root) as opened:
        opened.prepare("active", "base")
        settle(opened)
    copy = copied(root, how)
    before = everything(copy)
    with Snapshotter(copy) as opened:
        assert opened.why_read_only == "it is a copy of a store: make it a store with `snapshotter init --adopt`"
        assert {info.name for info in opened.walk()} == {"base", "active", "view", "nothing"}
        for change in CHANGES.values():
            with pytest.raises(FailedPreconditionError, match=r"copy.*adopt|root.*adopt"):
                change(opened)
        assert {problem.subject for problem in opened.problems()} == {"base", "active", str(copy)}
    with pytest.raises(FailedPreconditionError, match=r"none of the 2 subvolumes are in .*bring the subvolumes too"):
        Snapshotter.adopt(copy)
    assert everything(copy) == before
    with Snapshotter(copy) as opened, ExitStack() as stack:
        if how != "rollback":
            stack.enter_context(Snapshotter(root)).prepare("new", "base")


@pytest.mark.parametrize("empty", ["moved", "left behind"])
def test_adopt(empty: str, root: Path) -> None:
    """
    A store that was moved with its subvolumes becomes one again, once it is adopted; what did not come along is
    quarantined.
    """
    with Snapshotter(root) as opened:
        for key in ("active", "lost"):
            opened.prepare(key, "base")
        settle(opened)
    copy = copied(root, "snapshot")
    moved = ["snapshots/1/layer", "snapshots/1025/fs", *(["empty"] if empty == "moved" else [])]
    for name in moved:
        read_only = subvolume.get_read_only(root / name)
        subvolume.set_read_only(root / name, read_only=False)
        (copy / name).rmdir()
        (root / name).rename(copy / name)
        subvolume.set_read_only(copy / name, read_only=read_only)
    with Snapshotter.adopt(copy) as adopted:
        assert adopted.why_read_only == ""
        assert [problem.subject for problem in adopted.problems()] == ["lost"]
        adopted.commit("grown", "active")
        adopted.view("another view", "grown")
        adopted.view("another nothing")
        adopted.prepare("new", "grown")
        adopted.remove("lost")
    with Snapshotter(copy) as opened:
        assert opened.mounts("another nothing")
        assert opened.mounts("nothing")


def test_renamed(root: Path) -> None:
    """
    A store that was only renamed is still the same.
    """
    root.rename(root.parent / "new")
    with Snapshotter(root.parent / "new") as opened:
        assert not opened.why_read_only
        opened.prepare("k", "base")
    with Snapshotter.adopt(root.parent / "new") as opened:
        opened.remove("k")
