"""
The daemon after the death of its filesystem: it lets the filesystem go, and reopens the same store, or ends.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybtrfs import image, subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.client import Client
from snapshotter.daemon import process
from snapshotter.daemon.config import Config
from snapshotter.errors import FailedPreconditionError, UnavailableError
from tests.faults.disk import Disk
from tests.faults.mounts import mounted
from tests.snapshotter.daemon.running import PATIENCE, Daemon, names

pytestmark = pytest.mark.btrfs

IMPATIENT = "from snapshotter.daemon import process\nprocess.REOPEN_SECONDS = 1.0\n"
REFUSED = ("write EIO", "flush EIO")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = str(tmp_path / "base")
    image.create(path, 256 << 20, sparse=True)
    with Disk(path) as disk:
        yield disk


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.05)


def kill_filesystem(disk: Disk, client: Client) -> None:
    disk.refuse(*REFUSED)
    with pytest.raises(UnavailableError):
        client.prepare("lost")


def test_reopened(disk: Disk, make_daemon: Callable[..., Daemon]) -> None:
    """
    Until the filesystem is back, health says NOT_SERVING, the watchdog gets nothing, and no store is made.
    """
    daemon = make_daemon(Path(disk.target, "store"))
    with disk.mounted():
        daemon.ready(WATCHDOG_USEC="300000")
        daemon.notified("WATCHDOG=1")
        client = daemon.client()
        with client:
            client.prepare("kept")
            kill_filesystem(disk, client)
            assert not client.serving()
            assert names(client) == {"kept"}
            daemon.notified(f"STATUS=waiting for the filesystem of {daemon.root}")
            threading.Event().wait(1.0)
            daemon.manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                daemon.manager.recv(1000)
            daemon.manager.settimeout(PATIENCE)
    # The filesystem could be unmounted, so nothing held it. The directory below stays as it is.
    disk.refuse()
    threading.Event().wait(1.5)
    assert os.listdir(disk.target) == []
    with disk.mounted(), daemon.client() as client:
        until(client.serving)
        daemon.notified("WATCHDOG=1")
        assert names(client) == {"kept"}
        client.prepare("new")
        assert daemon.stop() == 0
        with Snapshotter(daemon.root) as store:
            assert {info.name for info in store.walk()} == {"kept", "new"}


def test_gone(disk: Disk, make_daemon: Callable[..., Daemon]) -> None:
    """
    If the filesystem does not come back, the daemon ends with code 1.
    """
    daemon = make_daemon(Path(disk.target, "store"))
    with disk.mounted():
        daemon.ready(patch=IMPATIENT)
        with daemon.client() as client:
            kill_filesystem(disk, client)
        assert daemon.ended() == 1
    assert "the store was not back within 1 s" in daemon.log.read_text().splitlines()[-1]


def test_another_store_below(disk: Disk, btrfs: Path, make_daemon: Callable[..., Daemon]) -> None:
    """
    Below a missing mount no store is made, and another store that is there is not served.
    """
    mount = btrfs / "mount"
    mount.mkdir()
    subvolume.create(mount / "store")
    daemon = make_daemon(mount / "store")
    with attached(disk, mount):
        daemon.ready(patch="from snapshotter.daemon import process\nprocess.REOPEN_SECONDS = 4.0\n")
        with daemon.client() as client:
            kill_filesystem(disk, client)
        daemon.notified(f"STATUS=waiting for the filesystem of {daemon.root}")
    threading.Event().wait(1.5)
    assert os.listdir(daemon.root) == []
    Snapshotter.create(daemon.root).close()
    assert daemon.ended() == 1
    assert "it is another store than before" in daemon.log.read_text().splitlines()[-1]


@contextlib.contextmanager
def attached(disk: Disk, mount: Path) -> Iterator[None]:
    with image.attach(f"{disk.directory}/fuse/disk") as device, mounted(device.path, str(mount)):
        yield


def test_dead_filesystem_is_left_alone(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    As long as the filesystem is read-only, no file of it is opened, so that it can be unmounted at any moment.
    """
    with Snapshotter.create(daemon.root) as store:
        former = store
    flags = [syscall.ST_RDONLY, syscall.ST_RDONLY, 0]
    opened = []

    def statvfs(_: str) -> os.statvfs_result:
        return os.statvfs_result((0,) * 8 + (flags.pop(0), 255))

    def open_(*_: object, **options: object) -> Snapshotter:
        opened.append(len(flags))
        return former

    monkeypatch.setattr(process, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.delattr(os, "ST_RDONLY", raising=False)  # as on PyPy
    monkeypatch.setattr(process, "_open", open_)
    config = Config(root=str(daemon.root), address=str(daemon.address))
    with ThreadPoolExecutor() as pool:
        assert asyncio.run(process._reopened(config, config.address, former, pool)) is former
    assert opened == [0]


def test_another_store(daemon: Daemon) -> None:
    """
    Only the same store is reopened.
    """
    with Snapshotter.create(daemon.root) as store:
        uuid = store.opened.uuid
    config = Config(root=str(daemon.root), address=str(daemon.address))
    process._open(config, config.address, create=False, uuid=uuid).close()
    os.rename(daemon.root, f"{daemon.root}.former")
    Snapshotter.create(daemon.root).close()
    with pytest.raises(FailedPreconditionError, match="it is another store than before"):
        process._open(config, config.address, create=False, uuid=uuid)


def test_no_create(daemon: Daemon) -> None:
    """
    With --no-create neither a missing nor an empty root becomes a store.
    """
    code, error = daemon.refused("--no-create")
    assert (code, "does not exist" in error) == (4, True)
    daemon.root.mkdir()
    code, error = daemon.refused("--no-create")
    assert (code, "is not a store" in error) == (1, True)
    assert os.listdir(daemon.root) == []
    daemon.root.rmdir()
    Snapshotter.create(daemon.root).close()
    daemon.ready("--no-create")
    assert daemon.stop() == 0


def test_read_only_for_a_while(daemon: Daemon) -> None:
    """
    A root made read-only for a moment, as for a send, refuses changes only for that moment.
    """
    daemon.ready()
    with daemon.client() as client:
        client.prepare("a")
        subvolume.set_read_only(daemon.root)
        with pytest.raises(UnavailableError, match="Read-only file system"):
            client.prepare("b")
        assert client.serving()
        subvolume.set_read_only(daemon.root, read_only=False)
        client.prepare("b")
        assert names(client) == {"a", "b"}
    assert daemon.stop() == 0
