"""
Mounts of subvolumes in any mount namespace.
"""

import errno
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import image, mountinfo, processes, subvolume, syscall
from pybtrfs.mountinfo import Keeper, MountPoint, MountTable
from tests.namespaces import held_namespace, other_namespace, pinned_namespace, source, thread_namespace

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


Read = Callable[[], MountTable]


def refuse(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    """
    Let the kernel, or a sandbox, refuse to list mount namespaces.
    """

    def refused() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscall, "mount_namespaces", refused)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MountTable]:
    """
    A reader of FIXTURE as the mountinfo of the only mount namespace.
    """
    refuse(monkeypatch)

    def open_(path: str, mode: str) -> Any:
        return io.BytesIO(FIXTURE) if path.endswith("/mountinfo") else open(path, mode)

    def read(device: tuple[int, int] | None, root: str, path: bytes | None = None) -> MountTable:
        own = mountinfo._own(0)._replace(device=device, path=path)
        monkeypatch.setattr(mountinfo, "_own", lambda fd: own)
        monkeypatch.setattr(processes, "pids", lambda: ["self"])
        monkeypatch.setattr(mountinfo, "_with_threads", lambda pid: ["/proc/self"])
        try:
            return mountinfo.read(0, root)
        finally:
            monkeypatch.setattr(mountinfo, "_own", _own)

    _own = mountinfo._own
    monkeypatch.setattr(mountinfo, "open", open_, raising=False)
    return read


def test_subvolids(table: Callable[..., MountTable]) -> None:
    """
    Only subvolumes of the device count, whatever optional fields and names contain.
    """
    assert table((0, 44), "/").subvolids == {5, 258, 2**64 - 1}
    assert table((0, 50), "/").subvolids == {300}
    assert table((0, 99), "/") == MountTable(points=table(None, "/").points)


def test_unknown_device(table: Callable[..., MountTable]) -> None:
    """
    If the device is unknown, every btrfs counts, so that no mount is missed.
    """
    assert table(None, "/").subvolids == {5, 258, 300, 2**64 - 1}


def test_mounts(table: Callable[..., MountTable]) -> None:
    """
    Each mount of the device is listed with its path, its namespace, and whether it is read-only.
    """
    namespace = os.stat("/proc/self/ns/mnt").st_ino
    assert table((0, 44), "/").mounts == (
        MountPoint(5, "/mnt", False, namespace),
        MountPoint(258, "/mnt/with space\ttab\\back\nline", True, namespace),
        MountPoint(2**64 - 1, "/mnt/last", False, namespace),
        MountPoint(None, "/mnt/nosubvolid", False, namespace),
    )


def test_points(table: Callable[..., MountTable]) -> None:
    """
    Only mount points below the root are listed; spaces, tabs and bytes that are not UTF-8 are unescaped.
    """
    assert table((0, 44), "/mnt").points == (
        "/mnt/with space\ttab\\back\nline",
        "/mnt/other",
        "/mnt/last",
        "/mnt/named subvolid=7 - btrfs x",
        "/mnt/nosubvolid",
    )
    assert table((0, 44), "/srv").points == (os.fsdecode("/srv/é".encode() + b"\xff"),)
    assert table((0, 44), "/mn").points == ()


def test_points_by_filesystem(table: Callable[..., MountTable]) -> None:
    """
    A mount on a directory of the filesystem is listed below the root, however the directory was reached.
    """
    found = table((0, 44), "/store", b"/")
    assert "/store/other" in found.points
    [mount] = [mount for mount in found.mounts if mount.path == "/mnt/other"]
    assert (mount.subvolid, mount.covers) == (None, "/store/other")
    assert found.of((), "/store/other") == (mount,)
    assert table((0, 44), "/store", b"/oth").points == ()
    assert table((0, 50), "/store", b"/").points == ()


@pytest.mark.btrfs
def test_own(tmp_path: Path) -> None:
    """
    A descriptor leads to its mount: the mount point, unescaped, and the options of the moment, until it is detached.
    """
    directory = tmp_path / "a directory"
    directory.mkdir()
    with image.temporary(image.MINIMUM_SIZE, directory=directory, options="nossd") as target:
        subvolume.create(target / "volume")
        fd = os.open(target / "volume", os.O_RDONLY)
        own = mountinfo.own(fd)
        assert own is not None
        assert own.point == str(target)
        assert {"rw", "subvolid=5"} <= own.options
        assert "ssd" not in own.options
        syscall.mount("", target, "", syscall.MS_REMOUNT, "ssd")
        remounted = mountinfo.own(fd)
        assert remounted is not None
        assert "ssd" in remounted.options
    try:
        assert mountinfo.own(fd) is None
    finally:
        os.close(fd)


def test_mounted_from(table: Callable[..., MountTable]) -> None:
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


@pytest.fixture(params=["kernel", "proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    The source of the mount namespaces: the list of the kernel, or the processes and threads in ``/proc``.
    """
    if request.param == "proc":
        refuse(monkeypatch)
    return str(request.param)


@pytest.fixture
def mounts(btrfs: Path) -> Iterator[Read]:
    """
    A function that reads the mounts of the btrfs.
    """
    fd = os.open(btrfs, os.O_RDONLY)
    yield lambda: mountinfo.read(fd, str(btrfs))
    os.close(fd)


@pytest.fixture
def hidden(btrfs: Path) -> tuple[str, int, str]:
    """
    A script that mounts a subvolume, with its arguments: the id of the subvolume and the device.
    """
    subvolume.create(btrfs / "hidden")
    return 'mount -t btrfs -o subvolid="$1" "$2" /mnt', subvolume.get_id(btrfs / "hidden"), source(btrfs)


@pytest.mark.btrfs
def test_seen_in_any_namespace(way: str, btrfs: Path, mounts: Read, hidden: tuple[str, int, str]) -> None:
    """
    A mounted subvolume is found in this and in another mount namespace, until it is unmounted.
    """
    here, point = btrfs / "here", btrfs / "a point"
    subvolume.create(here)
    point.mkdir()
    ids = {subvolume.get_id(here), hidden[1]}
    assert not mounts().subvolids & ids
    syscall.mount(source(btrfs), point, "btrfs", 0, f"subvolid={subvolume.get_id(here)}")
    try:
        found = mounts()
        assert found.subvolids & ids == {subvolume.get_id(here)}
        assert found.points == (str(point),)
        assert found.has_mount_below(str(point))
        assert {mount.path for mount in found.of((), str(point))} == {str(point)}
    finally:
        syscall.umount2(point)
    with other_namespace(*hidden) as pid:
        found = mounts()
        assert found.subvolids & ids == {hidden[1]}
        assert found.points == ()
        [mount] = found.of(ids, "/none")
        assert (mount.path, mount.read_only) == ("/mnt", False)
        assert mountinfo.keepers({mount.namespace}) == {mount.namespace: Keeper(f"/proc/{pid}/ns/mnt", pid)}
    assert not mounts().subvolids & ids


@pytest.mark.btrfs
def test_seen_in_the_namespace_of_a_thread(way: str, mounts: Read, hidden: tuple[str, int, str]) -> None:
    """
    A mount is found in the mount namespace of a single thread, which the process does not share.
    """
    _, subvolid, device = hidden
    with thread_namespace(lambda: syscall.mount(device, "/mnt", "btrfs", 0, f"subvolid={subvolid}")) as thread:
        [mount] = mounts().of({subvolid}, "/none")
        assert mountinfo.keepers({mount.namespace}) == {mount.namespace: Keeper(f"/proc/{thread}/ns/mnt", thread)}
    assert subvolid not in mounts().subvolids


@pytest.mark.btrfs
def test_seen_without_a_process(tmp_path: Path, mounts: Read, hidden: tuple[str, int, str]) -> None:
    """
    A mount is found in a mount namespace that only a descriptor, or only a bind mount of the namespace, keeps.
    """
    if not lists_namespaces():
        pytest.skip("the kernel does not list mount namespaces")
    with held_namespace(*hidden) as fd:
        [mount] = mounts().of({hidden[1]}, "/none")
        [keeper] = mountinfo.keepers({mount.namespace}).values()
        assert keeper == Keeper(f"/proc/{os.getpid()}/fd/{fd}", os.getpid())
    assert hidden[1] not in mounts().subvolids
    with pinned_namespace(tmp_path / "pin", *hidden):
        [mount] = mounts().of({hidden[1]}, "/none")
        assert mountinfo.keepers({mount.namespace}) == {mount.namespace: Keeper(str(tmp_path / "pin"), None)}
    assert hidden[1] not in mounts().subvolids
    assert mountinfo.keepers({mount.namespace}) == {}


def lists_namespaces() -> bool:
    try:
        return bool(syscall.mount_namespaces())
    except OSError:
        return False


@pytest.mark.btrfs
def test_seen_through_another_path(way: str, btrfs: Path, mounts: Read, tmp_path: Path) -> None:
    """
    A mount on a directory below the root is found, though it was made through a bind mount of the root, in this or in
    another namespace.
    """
    inside = btrfs / "inside"
    inside.mkdir()
    syscall.mount(btrfs, tmp_path, "", syscall.MS_BIND)
    try:
        syscall.mount("none", tmp_path / "inside", "tmpfs")
        try:
            found = mounts()
            assert found.points == (str(inside),)
            assert str(tmp_path / "inside") in {mount.path for mount in found.of((), str(btrfs / "inside"))}
        finally:
            syscall.umount2(tmp_path / "inside")
    finally:
        syscall.umount2(tmp_path)
    with other_namespace('mount --bind "$1" /mnt; mount -t tmpfs none /mnt/inside', btrfs):
        assert mounts().points == (str(inside),)
    assert mounts().points == ()


@pytest.mark.btrfs
def test_seen_beside_a_changed_root(
    way: str, mounts: Read, hidden: tuple[str, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A process with another root directory, which sees fewer mounts, does not hide those of its mount namespace.
    """
    script, subvolid, device = hidden
    with other_namespace(script, subvolid, device) as pid:
        inner = subprocess.Popen(
            ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "unshare", "--root=/usr", "/bin/sleep", "60"],
        )
        try:
            while os.readlink(f"/proc/{inner.pid}/root") != "/usr":
                time.sleep(0.01)
            pids = processes.pids()
            for order in (pids, pids[::-1]):
                monkeypatch.setattr(processes, "pids", order.copy)
                assert subvolid in mounts().subvolids
        finally:
            inner.kill()
            inner.wait()


@pytest.mark.btrfs
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_nothing_is_overlooked(number: int, monkeypatch: pytest.MonkeyPatch, mounts: Read) -> None:
    """
    If file descriptors or memory run out, reading fails instead of missing a mount.
    """
    with monkeypatch.context() as patched:
        refuse(patched, number)
        with pytest.raises(OSError, match=os.strerror(number)):
            mounts()
    refuse(monkeypatch)
    with other_namespace("true"):

        def open_(path: str, mode: str) -> Any:
            if path.endswith("mountinfo") and path != "/proc/self/mountinfo":
                raise OSError(number, os.strerror(number))
            return open(path, mode)

        monkeypatch.setattr(mountinfo, "open", open_, raising=False)
        with pytest.raises(OSError, match=os.strerror(number)):
            mounts()


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

    own = f"/proc/{os.getpid()}"
    monkeypatch.setattr(processes, "pids", lambda: [*"12345", str(os.getpid())])
    monkeypatch.setattr(mountinfo, "_with_threads", lambda pid: [own])
    monkeypatch.setattr(mountinfo.os, "readlink", readlink)
    assert list(mountinfo._tables()) == [(1, Path("/proc/self/mountinfo").read_bytes())]
    assert list(mountinfo._with_threads("none")) == [own]
    monkeypatch.undo()
    assert list(mountinfo._with_threads("0")) == []


def test_not_every_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without CAP_SYS_ADMIN in the initial user namespace, the processes in ``/proc`` are read as well.
    """
    monkeypatch.setattr(mountinfo, "_sees_every_namespace", lambda: False)
    monkeypatch.setattr(syscall, "mount_namespaces", list)
    monkeypatch.setattr(mountinfo, "_tables", lambda: iter([(7, FIXTURE)]))
    namespaces = [namespace for namespace, _ in mountinfo._namespaces(None)]
    assert namespaces == [7]


def test_privilege(unprivileged: Callable[..., Any]) -> None:
    """
    Only root outside of containers sees every mount namespace.
    """
    assert not unprivileged(mountinfo._sees_every_namespace)


def test_device_without_a_mount() -> None:
    """
    A file whose mount is not visible has no device.
    """
    reader, writer = os.pipe()
    try:
        assert mountinfo._own(reader)[:2] == (None, None)
    finally:
        os.close(reader)
        os.close(writer)


def mount_point(path: Path) -> str:
    fd = os.open(path, syscall.O_PATH)
    try:
        own = mountinfo.own(fd)
        assert own is not None
        return own.point
    finally:
        os.close(fd)


@pytest.mark.btrfs
def test_mount_point(btrfs_mount: Callable[..., Path], tmp_path: Path) -> None:
    """
    A subvolume is no mount point, a bind mount of a file is, and a name can have a space.
    """
    mount = btrfs_mount()
    subvolume.create(mount / "a")
    (mount / "a" / "file").touch()
    for path in (mount, mount / "a", mount / "a" / "file"):
        assert mount_point(path) == str(mount)
    target = tmp_path / "a b"
    target.touch()
    syscall.mount(mount / "a" / "file", target, "", syscall.MS_BIND)
    try:
        assert mount_point(target) == str(target)
    finally:
        syscall.umount2(target)
