"""
The calls of the kernel that a test can replace.
"""

import os
from typing import Any

import pytest

from pybtrfs import ioctl, kernel, syscall


class Recorder:
    """
    A kernel that records its calls and returns 7.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def info_ioctl(self, fd: int, name: str, subvolume: Any) -> None:
        self.calls.append(("info_ioctl", fd, name))
        subvolume.treeid = 7

    def __getattr__(self, name: str) -> Any:
        def answer(*arguments: Any) -> int:
            self.calls.append((name, *(argument for argument in arguments if isinstance(argument, int | str | bytes))))
            return 7

        return answer


def test_the_current_kernel_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Ioctls, and the system calls that recognise and open subvolumes, reach the kernel in `current`, and no other.
    """
    recorder = Recorder()
    monkeypatch.setattr(kernel, "current", recorder)
    ioctl.sync(-1)
    assert ioctl.loop_ctl_add(-1, 5) == 7
    ioctl.subvol_create_v2(-1, b"new")
    ioctl.snap_create_v2(-2, -1, b"new", ioctl.SUBVOL_RDONLY)
    ioctl.snap_destroy(-1, b"new")
    assert ioctl.get_subvol_info(-1).treeid == 7
    assert ioctl.subvol_getflags(-1) == ioctl.ino_lookup_treeid(-2) == ioctl.start_sync(-1) == 7
    assert syscall.fstat_ino(-1) == syscall.fstatfs_type(-1) == 7
    assert syscall.open_by_handle_at(-1, 256, 257, 1, os.O_RDONLY) == 7
    assert recorder.calls == [
        ("ioctl", -1, "BTRFS_IOC_SYNC"),
        ("ioctl", -1, "LOOP_CTL_ADD", 5),
        ("vol_ioctl", -1, "BTRFS_IOC_SUBVOL_CREATE_V2", b"new", 0, 0),
        ("vol_ioctl", -1, "BTRFS_IOC_SNAP_CREATE_V2", b"new", -2, ioctl.SUBVOL_RDONLY),
        ("vol_ioctl", -1, "BTRFS_IOC_SNAP_DESTROY", b"new"),
        ("info_ioctl", -1, "BTRFS_IOC_GET_SUBVOL_INFO"),
        ("value_ioctl", -1, "BTRFS_IOC_SUBVOL_GETFLAGS"),
        ("value_ioctl", -2, "BTRFS_IOC_INO_LOOKUP"),
        ("value_ioctl", -1, "BTRFS_IOC_START_SYNC"),
        ("fstat_ino", -1),
        ("fstatfs_type", -1),
        ("open_by_handle_at", -1, os.O_RDONLY | os.O_CLOEXEC),
    ]


def test_a_request_has_the_number_of_its_ioctl() -> None:
    """
    Requests are found by the kernel's names, of btrfs, file attributes and loop devices.
    """
    assert kernel.request("BTRFS_IOC_SYNC") == 0x9408
    assert kernel.request("LOOP_CTL_GET_FREE") == 0x4C82
    assert kernel.request("FS_IOC_GETFLAGS") & 0xFFFF == 0x6601
