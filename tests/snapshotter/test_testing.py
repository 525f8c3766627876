"""
Test support: a wait for the background work of a store.
"""

import os
import threading
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.store.layout import Directory
from snapshotter.testing import DirectoryVolumes, settle

PATIENCE = 10


def test_settle(tmp_path: Path) -> None:
    """
    Afterwards committed snapshots are measured and removed snapshots destroyed; a closed store has nothing to do.
    """
    with Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes) as store:
        store.prepare("k")
        store.commit("base", "k")
        store.prepare("k", "base")
        store.remove("k")
        settle(store)
        assert [located.usage is None for located in store.opened.locate()] == [False]
        assert os.listdir(tmp_path / "store" / "snapshots") == ["1"]
        assert sorted(os.listdir(tmp_path / "store" / "snapshots" / "1")) == ["layer", "record"]
    settle(store)


def test_settle_is_bounded(tmp_path: Path) -> None:
    """
    If the work takes longer than the given time, TimeoutError says so.
    """
    gate = threading.Event()

    class Slow(DirectoryVolumes):
        def destroy(self, directory: Directory, name: str, mounts: object) -> None:
            assert gate.wait(PATIENCE)

    with Snapshotter.create(tmp_path / "store", volumes=Slow) as store:
        store.prepare("k")
        store.remove("k")
        with pytest.raises(TimeoutError, match=r"the background work of store '.*/store' is not done within 0.01 s"):
            settle(store, seconds=0.01)
        gate.set()
        settle(store)
