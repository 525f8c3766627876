"""
Root of a user namespace, such as a container without privileges: permitted calls, and the errors of refused calls.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pybtrfs import device, filesystem, inode, ioctl, subvolume, syscall, tree_search
from tests.pybtrfs.subvolume.common import NOBODY, below, contained, open_directory


@pytest.fixture
def owned(base: Path) -> Path:
    """
    A subvolume that the user owns.
    """
    os.chown(base, NOBODY, NOBODY)
    return base


@pytest.mark.btrfs
def test_what_works(owned: Path) -> None:
    """
    Root of a user namespace creates, snapshots, lists, describes, freezes and deletes subvolumes, and syncs the
    filesystem.
    """

    def use() -> list[str]:
        subvolume.create(owned / "a")
        subvolume.create(owned / "a/b")
        inode.set_compression(owned / "a", "zstd")
        subvolume.snapshot(owned / "a", owned / "c", recursive=True)
        subvolume.snapshot(owned / "a", owned / "frozen", read_only=True)
        subvolume.set_read_only(owned / "frozen", read_only=False)
        with subvolume.batch() as batch:
            batch.create(owned / "d")
        filesystem.wait_sync(owned, filesystem.start_sync(owned))
        filesystem.sync(owned)
        subvolume.delete(owned / "frozen")
        subvolume.delete(owned / "a/b")
        subvolume.delete(owned / "a")
        assert subvolume.get_info(owned / "c").parent_id == subvolume.get_id(owned)
        assert filesystem.get_info(owned).fsid
        assert [device.devid for device in device.iterate(owned)] == [1]
        return below(owned)

    assert contained(use) == ["c", "c/b", "d"]


def quota(base: Path) -> None:
    with open_directory(base) as fd:
        ioctl.quota_ctl(fd, ioctl.QUOTA_CTL_ENABLE)


def by_handle(base: Path) -> None:
    with open_directory(base) as fd:
        syscall.open_by_handle_at(fd, 5, 256, 0, os.O_RDONLY)


REFUSED: dict[str, Callable[[Path], object]] = {
    "search": lambda base: list(tree_search.search(base)),
    "list all": lambda base: list(subvolume.iterate(base)),
    "path": lambda base: subvolume.get_path(base, 256),
    "uuid": lambda base: subvolume.find_uuid(base, bytes(16)),
    "deleted": lambda base: list(subvolume.iterate_deleted(base)),
    "default": lambda base: subvolume.set_default(base, 5),
    "what is nested": lambda base: subvolume.delete(base, recursive=True),
    "counters": lambda base: device.get_stats(base, reset=True),
    "resize": lambda base: filesystem.resize(base, "max"),
    "quota": quota,
    "mount": lambda base: syscall.mount("/dev/null", base, "btrfs"),
    "unmount": lambda base: syscall.umount2(base.parent.parent),
    "handle": by_handle,
}


@pytest.mark.btrfs
@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(owned: Path, call: Callable[[Path], object]) -> None:
    """
    A call that needs a privilege over the whole filesystem is a PermissionError that names it.
    """
    with pytest.raises(PermissionError) as caught:
        contained(call, owned)
    assert caught.value.__notes__[1].startswith("needs CAP_")


def test_the_suite_runs() -> None:
    """
    Tests that need no btrfs run there. For all other tests, the summary names the requirement.
    """
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run([*command, "tests/pybtrfs/test_syscall.py"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "needs CAP_SYS_ADMIN outside of every user namespace" in ran.stdout
