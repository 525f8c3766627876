"""
The daemon killed while it answers many calls.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.client import Client
from snapshotter.errors import NotFoundError, UnavailableError
from tests.faults.workload import STORE, Workload, verify
from tests.snapshotter.daemon.running import PATIENCE, Daemon

pytestmark = pytest.mark.btrfs


class Remote(Client):
    def fork(self, key: str, new_key: str) -> None:
        raise NotFoundError("containerd's RPCs have no fork")


def killed_at(acknowledgements: int, daemon: Daemon, patch: str = "") -> list[str]:
    """
    Kill the daemon once *acknowledgements* calls of 24 clients were acknowledged, and return the markers of all calls.
    """
    daemon.ready("--mount-mode", "bind", patch=patch)
    marks: list[str] = []
    left = iter(range(1, acknowledgements))

    def mark(text: str) -> None:
        marks.append(text)
        if '"end"' in text and next(left, None) is None:
            daemon.send(signal.SIGKILL)

    with Remote(daemon.address, timeout=PATIENCE) as client, pytest.raises(UnavailableError):
        Workload(client, mark).run(threads=24, steps=10_000, seed=acknowledgements)
    daemon.ended()
    return marks


@pytest.mark.parametrize("acknowledgements", [1, 30, 100, 300, 700])
def test_killed(make_daemon: Callable[..., Daemon], btrfs_mount: Callable[..., Path], acknowledgements: int) -> None:
    """
    kill -9 with many calls in flight loses no acknowledged call and leaves no call half done, also when the next daemon
    is killed as soon as it is ready.
    """
    mount = btrfs_mount(1 << 30)
    daemon = make_daemon(mount / STORE)
    marks = killed_at(acknowledgements, daemon)
    daemon.ready("--mount-mode", "bind")
    with daemon.client() as client:
        there = {info.name: info for info in client.walk()}
    daemon.stop(signal.SIGKILL)
    assert verify(str(mount), marks) == []
    with Snapshotter(daemon.root, read_only=True) as store:
        assert {info.name: info for info in store.walk()} == there


def test_a_lost_change_is_found(make_daemon: Callable[..., Daemon], btrfs_mount: Callable[..., Path]) -> None:
    """
    The same check reports a daemon that acknowledges a change without making it.
    """
    mount = btrfs_mount(1 << 30)
    forget = "from snapshotter import Snapshotter; Snapshotter.update = lambda self, info, *paths: info; "
    marks = killed_at(100, make_daemon(mount / STORE), patch=forget)
    assert any("promised was" in problem for problem in verify(str(mount), marks))
