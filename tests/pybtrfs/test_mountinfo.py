"""
Mounts of subvolumes in any mount namespace.
"""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import mountinfo, subvolume, syscall
from pybtrfs.mountinfo import MountTable, device_of, read
from tests.namespaces import other_namespace, source

FIXTURE = rb"""
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:44 / /mnt rw,relatime shared:5 - btrfs /dev/loop1 rw,space_cache=v2,subvolid=5,subvol=/
31 30 0:44 /a/snapshots/3/fs /mnt/with\040space\011tab\134back\012line ro master:1 - btrfs /dev/loop1 rw,subvolid=258
32 30 0:50 / /mnt/other rw - btrfs /dev/loop2 rw,subvolid=300,subvol=/
33 30 0:44 / /mnt/last rw shared:5 master:2 propagate_from:3 - btrfs /dev/loop1 rw,subvolid=18446744073709551615
34 30 0:44 / /mnt/named\040subvolid=7\040-\040btrfs\040x rw - tmpfs none rw,size=4k
35 30 0:60 / /srv/\303\251\377 rw - tmpfs none rw
36 30 0:44 / /mnt/nosubvolid rw - btrfs /dev/loop1 rw
""".lstrip()


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let every process have FIXTURE as its mountinfo.
    """

    def open_(path: str, mode: str) -> io.BytesIO:
        assert path.endswith("/mountinfo")
        return io.BytesIO(FIXTURE)

    monkeypatch.setattr(mountinfo, "open", open_, raising=False)


def test_subvolids(proc: None) -> None:
    """
    Only subvolumes of the device count, whatever optional fields and names contain.
    """
    assert read(b"0:44", "/").subvolids == {5, 258, 2**64 - 1}
    assert read(b"0:50", "/").subvolids == {300}
    assert read(b"0:99", "/").subvolids == set()


def test_unknown_device(proc: None) -> None:
    """
    If the device is unknown, every btrfs counts, so that no mount is missed.
    """
    assert read(None, "/").subvolids == {5, 258, 300, 2**64 - 1}


def test_mount_points(proc: None) -> None:
    """
    Each mount of the device is listed with its path, a process that sees it, and whether it is read-only.
    """
    found = {(point.subvolid, point.path, point.read_only) for point in mountinfo.mount_points(b"0:44")}
    assert found == {
        (5, "/mnt", False),
        (258, "/mnt/with space\ttab\\back\nline", True),
        (2**64 - 1, "/mnt/last", False),
    }
    assert all(os.path.exists(f"/proc/{point.pid}") for point in mountinfo.mount_points(None))


def test_points(proc: None) -> None:
    """
    Only mount points below the root are listed; spaces, tabs and bytes that are not UTF-8 are unescaped.
    """
    assert read(b"0:44", "/mnt").points == (
        "/mnt/with space\ttab\\back\nline",
        "/mnt/other",
        "/mnt/last",
        "/mnt/named subvolid=7 - btrfs x",
        "/mnt/nosubvolid",
    )
    assert read(b"0:44", "/srv").points == (os.fsdecode("/srv/é".encode() + b"\xff"),)
    assert read(b"0:44", "/mn").points == ()


def test_mounted_from(proc: None) -> None:
    """
    A device node leads to its mount points in this namespace, unescaped.
    """
    assert list(mountinfo.mounted_from("/dev/loop1")) == [
        "/mnt",
        "/mnt/with space\ttab\\back\nline",
        "/mnt/last",
        "/mnt/nosubvolid",
    ]
    assert list(mountinfo.mounted_from("/dev/loop")) == []


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/r/3/fs", True),
        ("/r/3", True),
        ("/r/3/fs/proc", True),
        ("/r/3/fs/pro", False),
        ("/r/3/f", False),
        ("/r/33/fs", False),
        ("/r/4/fs", False),
    ],
)
def test_has_mount_below(path: str, below: bool) -> None:
    """
    Paths are compared by whole components.
    """
    assert MountTable(points=("/r/3/fs/proc", "/elsewhere")).has_mount_below(path) is below


@pytest.fixture
def mounts(btrfs: Path) -> Callable[[], MountTable]:
    """
    A function that reads the mounts of the btrfs.
    """
    fd = os.open(btrfs, os.O_RDONLY)
    device = device_of(fd)
    os.close(fd)
    assert device
    return lambda: read(device, str(btrfs))


@pytest.mark.btrfs
def test_seen_in_any_namespace(btrfs: Path, mounts: Callable[[], MountTable]) -> None:
    """
    A mounted subvolume is found in this and in another mount namespace, until it is unmounted.
    """
    here, there = btrfs / "here", btrfs / "there"
    for path in (here, there):
        subvolume.create(path)
    ids = {subvolume.get_id(here), subvolume.get_id(there)}
    assert not mounts().subvolids & ids
    point = btrfs / "a point"
    point.mkdir()
    syscall.mount(source(btrfs), point, "btrfs", 0, f"subvolid={subvolume.get_id(here)}")
    try:
        assert mounts().subvolids & ids == {subvolume.get_id(here)}
        assert mounts().points == (str(point),)
        assert mounts().has_mount_below(str(point))
    finally:
        syscall.umount2(point)
    with other_namespace('mount -t btrfs -o subvolid="$1" "$2" /mnt', subvolume.get_id(there), source(btrfs)):
        assert mounts().subvolids & ids == {subvolume.get_id(there)}
        assert mounts().points == ()
    assert not mounts().subvolids & ids


@pytest.mark.btrfs
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_nothing_is_overlooked(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If file descriptors or memory run out, reading fails instead of missing a mount.
    """
    with other_namespace("true"):

        def open_(path: str, mode: str) -> Any:
            if path != "/proc/self/mountinfo":
                raise OSError(number, os.strerror(number))
            return open(path, mode)

        monkeypatch.setattr(mountinfo, "open", open_, raising=False)
        with pytest.raises(OSError, match=os.strerror(number)):
            read(None, "/")


def test_processes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A process that ended or is not readable is skipped.
    """
    errors = iter([errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM])

    def readlink(path: str) -> str:
        number = next(errors, 0)
        if number:
            raise OSError(number, os.strerror(number))
        return "mnt:[1]"

    monkeypatch.setattr(mountinfo.os, "listdir", lambda path: ["self", "1", "2", "3", "4", "5", str(os.getpid())])
    monkeypatch.setattr(mountinfo.os, "readlink", readlink)
    assert [data for _, data in mountinfo._tables()] == [Path("/proc/self/mountinfo").read_bytes()]


def test_device_without_a_mount() -> None:
    """
    A file whose mount is not visible has no device.
    """
    reader, writer = os.pipe()
    try:
        assert device_of(reader) is None
    finally:
        os.close(reader)
        os.close(writer)
