"""
Clients of a store: the first snapshot binds it to one of them, and the others are refused.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
)
from snapshotter.store.layout import Directory
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.store.stores import CHANGES, everything

pytestmark = pytest.mark.btrfs


def test_client(btrfs: Path) -> None:
    """
    The first snapshot binds a store to its client; another one's changes are refused with the cure, and change nothing,
    until the store is empty.
    """
    root = btrfs / "root"
    with Snapshotter.create(root, client="nobody yet") as opened:
        opened.cleanup()
    with Snapshotter(root, client="containerd") as opened:
        opened.prepare("active")
        opened.commit("base", "active")
        opened.prepare("active", "base")
        opened.view("view", "base")
        opened.cleanup()
    before = everything(root)
    with Snapshotter(root, client="auto") as opened:
        for change in CHANGES.values():
            with pytest.raises(
                FailedPreconditionError,
                match="holds the snapshots of client 'containerd', and 'auto' would delete them: make a second store",
            ):
                change(opened)
        assert opened.stat("active").parent == "base"
        assert opened.mounts("active")
        assert everything(root).keys() == before.keys()
    with Snapshotter(root, client="containerd") as opened:
        for key in ("active", "view", "base"):
            opened.remove(key)
    with Snapshotter(root, client="auto") as opened:
        opened.view("view")
    with (
        Snapshotter(root, client="containerd") as opened,
        pytest.raises(FailedPreconditionError, match="of client 'auto'"),
    ):
        opened.remove("view")


def test_two_clients_cannot_both_be_first(tmp_path: Path) -> None:
    """
    While the first snapshot of an empty store is being made, another client's changes are refused already.
    """
    begun, go = threading.Event(), threading.Event()

    class Slow(DirectoryVolumes):
        def create(self, directory: Directory) -> None:
            begun.set()
            go.wait()
            super().create(directory)

    with Snapshotter.create(tmp_path / "root", volumes=Slow) as opened, ThreadPoolExecutor(1) as pool:
        try:
            making = pool.submit(opened.bound_to("first").prepare, "k")
            begun.wait()
            with pytest.raises(FailedPreconditionError, match="of client 'first'"):
                opened.bound_to("second").prepare("k2")
        finally:
            go.set()
        assert making.result()
        assert [info.name for info in opened.walk()] == ["k"]


def test_bound_to(tmp_path: Path) -> None:
    """
    Another client of an open store has the same store: each sees the other's changes, and only the first can close it.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes) as opened:
        with pytest.raises(InvalidArgumentError, match="client is empty"):
            opened.bound_to("")
        bound = opened.bound_to("client")
        bound.prepare("k")
        assert (bound.client, opened.client) == ("client", "local")
        assert list(bound.walk()) == list(opened.walk())
        with pytest.raises(FailedPreconditionError, match="of client 'client'"):
            opened.remove("k")
        bound.close()
        assert opened.stat("k") == bound.stat("k")
    with pytest.raises(FailedPreconditionError, match="closed"):
        bound.stat("k")
