"""
A store of a process without CAP_SYS_ADMIN: of root of a user namespace, and of an ordinary user.

Each test runs on a filesystem mounted with ``user_subvol_rm_allowed`` and on one without.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import ioctl, subvolume
from pybtrfs.path import owned
from snapshotter import Snapshotter
from snapshotter.store.volumes import MountMode
from tests.pybtrfs.subvolume.common import UNPRIVILEGED, below, contained_with_users, mounted

CALLERS = {**UNPRIVILEGED, "root of a namespace with users": contained_with_users}

pytestmark = [
    pytest.mark.btrfs,
    pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS),
    pytest.mark.parametrize("mount_mode", ["bind", "btrfs"]),
]

PATIENCE = 60
Caller = Callable[..., Any]


@pytest.fixture(params=["", "user_subvol_rm_allowed"], ids=["no option", "user_subvol_rm_allowed"])
def top(request: pytest.FixtureRequest) -> Iterator[Path]:
    with mounted(request.param) as path:
        yield path


def fill(fs: Path) -> None:
    (fs / "a" / "b").mkdir(parents=True)
    for name in ("file", "a/b/file"):
        (fs / name).write_bytes(os.urandom(10_000))
        with suppress(OSError):  # the namespace has no other user
            os.chown(fs / name, 5, 5)
    (fs / "a" / "b").chmod(0o500)
    fs.chmod(0o555)


def pending(store: Snapshotter) -> int:
    """
    Clean up, and return the number of snapshots that are still to be destroyed.
    """
    store.opened.worker.finish(PATIENCE)
    store.cleanup()
    return store.status().pending


def test_everything_removed_is_destroyed(top: Path, mount_mode: MountMode, caller: Caller) -> None:
    """
    Layers, active snapshots with nested subvolumes, forks and views are removed, and no subvolume is left.
    """
    root = top / "root"

    def use() -> tuple[int, int]:
        with Snapshotter.create(root, mount_mode=mount_mode) as store:
            store.prepare("active")
            fill(Path(store.subvolume("active")))
            store.commit("layer", "active")
            store.prepare("child", "layer")
            child = Path(store.subvolume("child"))
            child.chmod(0o755)
            subvolume.create(child / "nested")
            (child / "nested/file").touch()
            subvolume.set_read_only(child / "nested")
            store.prepare("other", "layer")
            store.fork("other", "fork")
            store.commit("second", "other")
            store.view("view", "second")
            made = len(os.listdir(root / "snapshots"))
            for key in ("view", "second", "fork", "child", "layer"):
                store.remove(key)
            return made, pending(store)

    assert caller(use) == (5, 0)
    assert below(root) == ["empty"]
    assert os.listdir(root / "snapshots") == []


def test_what_fails_half_way(top: Path, mount_mode: MountMode, caller: Caller) -> None:
    """
    A removed snapshot with a file that cannot be deleted stays pending. The next open deletes the rest.
    """
    root = top / "root"

    def prepare() -> str:
        with Snapshotter.create(root, mount_mode=mount_mode) as store:
            store.prepare("active")
            fill(Path(store.subvolume("active")))
            return store.subvolume("active")

    def remove() -> int:
        with Snapshotter(root, mount_mode=mount_mode) as store:
            store.commit("layer", "active")
            store.remove("layer")
            return pending(store)

    def reopen() -> int:
        with Snapshotter(root, mount_mode=mount_mode) as store:
            return pending(store)

    file = Path(caller(prepare), "a/b/file")
    with owned(os.open(file, os.O_RDONLY)) as fd:
        ioctl.setflags(fd, ioctl.FS_IMMUTABLE_FL)
    if caller(remove):
        assert caller(reopen) == 1
        for path in root.glob("snapshots/1/*"):
            subvolume.set_read_only(path, read_only=False)
            with owned(os.open(path / "a/b/file", os.O_RDONLY)) as fd:
                ioctl.setflags(fd, 0)
        assert caller(reopen) == 0
    assert below(root) == ["empty"]
    assert os.listdir(root / "snapshots") == []


def test_mount_mode_of_its_own(top: Path, mount_mode: MountMode, caller: Caller) -> None:
    """
    In a user namespace the mounts are bind mounts unless btrfs is asked for; an ordinary user is in none.
    """

    def prepare() -> list[str]:
        with Snapshotter.create(top / "root") as store:
            return [mount.type for mount in store.prepare("active")]

    assert caller(prepare) == (["btrfs"] if caller is UNPRIVILEGED["user"] else ["bind"])
