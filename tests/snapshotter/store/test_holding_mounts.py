"""
The description of mounts that hold a subvolume.
"""

import os

import pytest

from pybtrfs import mountinfo
from pybtrfs.mountinfo import Keeper, MountPoint
from snapshotter.store.holding_mounts import HoldingMount, locate

OWN = os.stat("/proc/self/ns/mnt").st_ino


def test_locate() -> None:
    """
    Each mount is found once, with a process of its mount namespace.
    """
    mount = MountPoint(256, "/mnt", True, OWN)
    [found] = locate([mount, mount])
    assert (found.subvolid, found.path, found.read_only) == (256, "/mnt", True)
    assert found.namespace == f"/proc/{found.pid}/ns/mnt"


@pytest.mark.parametrize(
    ("keeper", "text", "cure"),
    [
        (
            Keeper("/proc/7/ns/mnt", 7),
            "/a b in the mount namespace of process 7 (/proc/7/ns/mnt)",
            "nsenter --mount=/proc/7/ns/mnt umount '/a b'",
        ),
        (
            Keeper("/run/x y", None),
            "/a b in the mount namespace (/run/x y)",
            "nsenter --mount='/run/x y' umount '/a b'",
        ),
        (None, "/a b in a mount namespace that no visible process or file keeps", "umount '/a b'"),
    ],
)
def test_texts(keeper: Keeper | None, text: str, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The mount is named with whatever leads to its mount namespace, and so is the command that unmounts it.
    """
    monkeypatch.setattr(mountinfo, "keepers", lambda _: {1: keeper} if keeper else {})
    [found] = locate([MountPoint(None, "/a b", False, 1)])
    assert found == HoldingMount(None, "/a b", *((keeper.pid, keeper.path) if keeper else (None, "")), read_only=False)
    assert (found.text, found.cure) == (text, cure)
