"""
Daemons and stores for tests.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.daemon.running import Daemon
from tests.snapshotter.daemon.stores import Hanging


@pytest.fixture
def make_daemon(tmp_path: Path, btrfs: Path) -> Iterator[Callable[..., Daemon]]:
    """
    Return a function that makes a daemon for a root, by default a missing one, and kills it after the test.
    """
    with contextlib.ExitStack() as stack:
        count = 0

        def make_daemon(root: Path = btrfs / "root") -> Daemon:
            nonlocal count
            count += 1
            work = tmp_path / str(count)
            work.mkdir()
            daemon = Daemon(work, root)
            stack.callback(daemon.close)
            return daemon

        yield make_daemon


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon()


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Snapshotter]:
    """
    Return a store with a committed "base" and an active "top", where Prepare on a parent hangs until `Hanging.go` is
    set.
    """
    Hanging.go, Hanging.hanging = threading.Event(), threading.Semaphore(0)
    with Snapshotter.create(tmp_path / "root", volumes=Hanging, client="c") as store:
        store.prepare("key")
        store.commit("base", "key")
        store.prepare("top")
        try:
            yield store
        finally:
            Hanging.go.set()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Snapshotter]:
    """
    Return an empty store on directories.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes, client="c") as store:
        yield store
