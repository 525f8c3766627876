"""
A full disk: opening, removing and cleaning up need no space, whichever call finds the disk or a quota full.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter
from snapshotter.store import records, worker
from snapshotter.store.record_storage import XATTR
from snapshotter.store.records import Commitment, Record, State
from snapshotter.testing import settle

from .failpoints import Points, fail, stopped
from .operations import store
from .workload import STORE

pytestmark = pytest.mark.btrfs

FULL = pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT"])
STICKY = pytest.mark.parametrize("sticky", [False, True])


def each_point(number: str, *, sticky: bool) -> Iterator[Points]:
    """
    Yield the points to fail at, until a round passes fewer.
    """
    at = 1
    while True:
        points = Points(at, fail(number), sticky, filling=True)
        yield points
        if not points.hit:
            return
        at += 1


def keys(root: str) -> set[str]:
    with Snapshotter(root, read_only=True) as snapshotter:
        return {info.name for info in snapshotter.walk()}


def ids(root: str) -> list[str]:
    return os.listdir(os.path.join(root, "snapshots"))


@FULL
@STICKY
@pytest.mark.parametrize("key", ["active", "view", "lone layer", "large"])
def test_remove(btrfs: Path, monkeypatch: pytest.MonkeyPatch, number: str, key: str, *, sticky: bool) -> None:
    """
    A removal, and the cleanup after it, succeed for good.
    """
    monkeypatch.setattr(worker, "TASK_SECONDS", 0.0)
    root = str(btrfs / STORE)
    rounds = 0
    for points in each_point(number, sticky=sticky):
        rounds += 1
        with store(str(btrfs)):
            before = len(ids(root))
            with Snapshotter(root) as snapshotter, stopped(points):
                snapshotter.remove(key)
                snapshotter.cleanup()
            assert key not in keys(root), points.hit
            Snapshotter(root).close()
            assert len(ids(root)) == before - 1, points.hit
    assert rounds > 4


def interrupt(root: str) -> None:
    """
    Leave in a store every state of a snapshot that an opening finishes or rolls back.
    """
    with (
        mock.patch.object(worker.Worker, "destroy"),
        mock.patch.object(worker.Worker, "submit"),
        Snapshotter(root) as snapshotter,
    ):
        snapshotter.prepare("new", "base")
        snapshotter.fork("active", "fork")
        snapshotter.commit("committed", "fork")
        snapshotter.remove("view")
        snapshotter.remove("lone layer")
        active = os.path.dirname(snapshotter.subvolume("active"))
    # A creation that stopped before its subvolume, and a commit that stopped before its verification.
    half_made = os.path.join(root, "snapshots", "900")
    os.mkdir(half_made)
    os.setxattr(half_made, XATTR, records.encode(Record(900, State.PREPARING, "half-made")))
    subvolume.snapshot(f"{active}/fs", f"{active}/layer", read_only=True)
    record = records.decode(os.getxattr(active, XATTR), int(os.path.basename(active)))
    committing = record._replace(state=State.COMMITTING, commitment=Commitment("half-committed", {}, record.updated))
    os.setxattr(active, XATTR, records.encode(committing))


@FULL
@STICKY
def test_open(btrfs: Path, monkeypatch: pytest.MonkeyPatch, number: str, *, sticky: bool) -> None:
    """
    An opening finishes and rolls back what was interrupted, or leaves it to the next opening, and cleaning up works.
    """
    monkeypatch.setattr(worker, "TASK_SECONDS", 0.0)
    root = str(btrfs / STORE)
    expected = {"base", "active", "large", "new", "committed"}
    rounds = 0
    for points in each_point(number, sticky=sticky):
        rounds += 1
        with store(str(btrfs)):
            interrupt(root)
            os.chmod(root, 0o755)
            with stopped(points), Snapshotter(root) as snapshotter:
                assert {info.name for info in snapshotter.walk()} == expected, points.hit
                snapshotter.cleanup()
                settle(snapshotter)
            assert keys(root) == expected, points.hit
            with Snapshotter(root) as snapshotter:
                snapshotter.cleanup()
                settle(snapshotter)
                assert not snapshotter.opened.problems(), points.hit
            assert len(ids(root)) == len(expected), points.hit
            assert os.stat(root).st_mode & 0o777 == 0o700
    assert rounds > 4
