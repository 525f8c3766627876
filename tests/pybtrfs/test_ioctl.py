"""
Every ioctl of the raw floor against the kernel, with and without privileges.
"""

import errno
import inspect
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pybtrfs import ioctl
from tests.pybtrfs.subvolume.common import needing

pytestmark = pytest.mark.btrfs

NOBODY = 65534
U64 = (1 << 64) - 1
SEARCH = ioctl.SearchKey(0, 256, 256, 0, U64, 0, U64, 1, 255, 100)

ROOTS = ioctl.SearchKey(1, 5, U64 - 255, 0, U64, 0, U64, 132, 144, 100)


class Case:
    """
    An ioctl, a check of its result, and the errno with which it refuses an ordinary user, or None.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Any], Any],
        holds: Callable[[Any, Any], Any] = lambda e, result: result is None,
        refused: int | None = None,
        label: str = "",
    ) -> None:
        self.name, self.call, self.holds, self.refused = name, call, holds, refused
        self.label = f"{name} {label}".strip()


def _send(e: Any) -> bytes:
    """
    Return the stream, in version 2, of a subvolume that fits into a pipe.
    """
    reader, writer = os.pipe()
    with open(reader, "rb") as stream, open(writer, "wb") as output:
        ioctl.subvol_setflags(e.mine, ioctl.SUBVOL_RDONLY)
        ioctl.send(e.mine, output.fileno(), [e.mine_id], 0, ioctl.SEND_FLAG_VERSION, 2)
        output.close()
        return stream.read()


CASES = [
    Case("subvol_create_v2", lambda e: ioctl.subvol_create_v2(e.open, b"\xffnew")),
    Case("subvol_create_v2", lambda e: ioctl.subvol_create_v2(e.theirs, b"new"), refused=errno.EACCES, label="theirs"),
    Case("snap_create_v2", lambda e: ioctl.snap_create_v2(e.mine, e.open, b"new", ioctl.SUBVOL_RDONLY)),
    Case(
        "snap_create_v2",
        lambda e: ioctl.snap_create_v2(e.theirs, e.open, b"new"),
        refused=errno.EPERM,
        label="theirs",
    ),
    Case(
        "snap_create_v2_in",
        lambda e: ioctl.snap_create_v2_in(e.open, b"mine", e.open, b"dir", 0o700, b"user.a", b"value", b"new"),
    ),
    Case(
        "snap_create_v2_in",
        lambda e: ioctl.snap_create_v2_in(e.theirs, b"nested", e.open, b"dir", 0o700, b"user.a", b"value", b"new"),
        refused=errno.EPERM,
        label="theirs",
    ),
    # Images are mounted with user_subvol_rm_allowed.
    Case("snap_destroy", lambda e: ioctl.snap_destroy(e.open, b"mine")),
    Case("snap_destroy", lambda e: ioctl.snap_destroy(e.theirs, b"nested"), refused=errno.EACCES, label="theirs"),
    Case("snap_destroy_v2_by_id", lambda e: ioctl.snap_destroy_v2_by_id(e.open, e.mine_id)),
    Case(
        "snap_destroy_v2_by_id",
        lambda e: ioctl.snap_destroy_v2_by_id(e.open, e.nested_id),
        refused=errno.EACCES,
        label="theirs",
    ),
    Case("subvol_getflags", lambda e: ioctl.subvol_getflags(e.theirs), lambda e, flags: flags == 0),
    Case("subvol_setflags", lambda e: ioctl.subvol_setflags(e.mine, ioctl.SUBVOL_RDONLY)),
    Case("subvol_setflags", lambda e: ioctl.subvol_setflags(e.theirs, 0), refused=errno.EPERM, label="theirs"),
    Case("default_subvol", lambda e: ioctl.default_subvol(e.open, 5), refused=errno.EPERM),
    Case(
        "get_subvol_info",
        lambda e: ioctl.get_subvol_info(e.mine),
        lambda e, info: (info.treeid, info.name, info.dirid) == (e.mine_id, b"mine", os.fstat(e.open).st_ino),
    ),
    Case(
        "get_subvol_rootref",
        lambda e: ioctl.get_subvol_rootref(e.theirs),
        lambda e, found: found == ([(e.nested_id, 256)], None),
    ),
    Case(
        "set_received_subvol",
        lambda e: ioctl.set_received_subvol(e.mine, bytes(range(16)), 7, 1_500_000_000_000_000_001),
        lambda e, result: (
            result[0] > 0
            and result[1] > 10**18
            and ioctl.get_subvol_info(e.mine).received_uuid == bytes(range(16))
            and ioctl.get_subvol_info(e.mine).stime == 1_500_000_000_000_000_001
        ),
    ),
    Case(
        "set_received_subvol",
        lambda e: ioctl.set_received_subvol(e.theirs, bytes(16)),
        lambda e, result: result,
        errno.EPERM,
        "theirs",
    ),
    Case(
        "subvol_sync_wait",
        lambda e: ioctl.subvol_sync_wait(e.open, 0, ioctl.SUBVOL_SYNC_COUNT),
        lambda e, result: result[1] >= 0,
    ),
    Case("send", _send, lambda e, stream: stream.startswith(b"btrfs-stream\0\2"), errno.EPERM),
    Case("tree_search", lambda e: ioctl.tree_search(e.mine, SEARCH), lambda e, found: found[0] > 0, errno.EPERM),
    Case(
        "tree_search_v2",
        lambda e: ioctl.tree_search_v2(e.mine, SEARCH, 8192),
        lambda e, found: found[0] > 0 and len(found[1]) == 8192,
        errno.EPERM,
    ),
    Case(
        "tree_search_v2_changed",
        lambda e: ioctl.tree_search_v2_changed(e.mine, SEARCH, 8192, 0),
        lambda e, found: found[0] > 0 and found[1] and found[2][0] >= 256,
        errno.EPERM,
    ),
    Case(
        "tree_search_v2_changed",
        lambda e: ioctl.tree_search_v2_changed(e.mine, SEARCH, 1 << 18, 0),
        lambda e, found: found[0] > 0 and found[1] and found[2] is None,
        errno.EPERM,
    ),
    Case(
        "tree_search_v2_changed",
        lambda e: ioctl.tree_search_v2_changed(e.mine, SEARCH, 8192, 1 << 60),
        lambda e, found: found[:2] == (0, b"") and found[2][0] >= 256,
        errno.EPERM,
        label="nothing",
    ),
    Case(
        "tree_search_v2_sum",
        lambda e: ioctl.tree_search_v2_sum(e.mine, ioctl.ChangedTree(SEARCH, 0)),
        lambda e, found: found[1] > 0 and found[1:3] == (found[1], found[1]),
        errno.EPERM,
    ),
    Case(
        "tree_search_v2_sum",
        lambda e: ioctl.tree_search_v2_sum(
            e.mine, ioctl.ChangedTree(SEARCH, 1 << 60), [ioctl.ChangedTree(SEARCH._replace(tree_id=1 << 40), 0)]
        ),
        lambda e, found: found == (0, 0, 0, 0),
        errno.EPERM,
        label="nothing",
    ),
    Case(
        "tree_search_v2_subvolumes",
        lambda e: ioctl.tree_search_v2_subvolumes(e.mine, ROOTS, 8192),
        lambda e, found: next(found[0])[0] == 5 and found[1][0] >= 5,
        errno.EPERM,
    ),
    Case("ino_lookup", lambda e: ioctl.ino_lookup(e.mine, 0, 256), lambda e, found: found == (e.mine_id, b"")),
    Case(
        "ino_lookup",
        lambda e: ioctl.ino_lookup(e.mine, 0, 257),
        lambda e, found: found == (e.mine_id, b"file/"),
        errno.EPERM,
        "of a file",
    ),
    Case("ino_lookup_treeid", lambda e: ioctl.ino_lookup_treeid(e.mine), lambda e, found: found == e.mine_id),
    Case(
        "ino_lookup_user",
        lambda e: ioctl.ino_lookup_user(e.theirs, 256, e.nested_id),
        lambda e, found: found == (b"nested", b""),
    ),
    Case(
        "logical_ino_v2",
        lambda e: ioctl.logical_ino_v2(e.mine, e.extent, 24, ioctl.LOGICAL_INO_ARGS_IGNORE_OFFSET),
        lambda e, found: found == ([(258, 0, e.mine_id)], 0),
        errno.EPERM,
    ),
    Case("getflags", lambda e: ioctl.getflags(e.theirs), lambda e, flags: flags == 0),
    Case("setflags", lambda e: ioctl.setflags(e.mine, 0x40)),  # no dump
    Case("setflags", lambda e: ioctl.setflags(e.theirs, 0), refused=errno.EPERM, label="theirs"),
    Case("sync", lambda e: ioctl.sync(e.open)),
    Case("start_sync", lambda e: ioctl.start_sync(e.open), lambda e, transid: transid > 0),
    Case("wait_sync", lambda e: ioctl.wait_sync(e.open, 1)),
    Case("fs_info", lambda e: ioctl.fs_info(e.open), lambda e, info: info.num_devices == 1 and any(info.fsid)),
    Case("dev_info", lambda e: ioctl.dev_info(e.open, 1), lambda e, info: info.path.startswith(b"/dev/loop")),
    Case("get_dev_stats", lambda e: ioctl.get_dev_stats(e.open, 1), lambda e, stats: len(stats) == 5),
    Case(
        "get_dev_stats",
        lambda e: ioctl.get_dev_stats(e.open, 1, ioctl.DEV_STATS_RESET),
        lambda e, stats: len(stats) == 5,
        errno.EPERM,
        "reset",
    ),
    Case("space_info", lambda e: ioctl.space_info(e.open, 0), lambda e, found: found[0] > 2 and found[1] == []),
    Case("resize", lambda e: ioctl.resize(e.open, b"1:max"), refused=errno.EPERM),
]

QUOTA_CASES = [
    Case("quota_rescan_wait", lambda e: ioctl.quota_rescan_wait(e.quota), refused=errno.EPERM),
    Case("quota_ctl", lambda e: ioctl.quota_ctl(e.quota, ioctl.QUOTA_CTL_DISABLE), refused=errno.EPERM),
    Case("qgroup_create", lambda e: ioctl.qgroup_create(e.quota, 1 << 48 | 7), refused=errno.EPERM),
    Case("qgroup_limit", lambda e: ioctl.qgroup_limit(e.quota, 5, (1 << 30, None)), refused=errno.EPERM),
]


@pytest.fixture
def there(btrfs: Path) -> Iterator[SimpleNamespace]:
    """
    A directory that is open to all, with a subvolume of an ordinary user and one of root that contains another.
    """
    btrfs.chmod(0o777)
    with ExitStack() as stack:

        def opened(path: Path) -> int:
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            return fd

        e = SimpleNamespace(open=opened(btrfs))
        for name in ("mine", "theirs"):
            ioctl.subvol_create_v2(e.open, name.encode())
            setattr(e, name, opened(btrfs / name))
            os.chmod(btrfs / name, 0o755)
        (btrfs / "mine/file").write_text("content")
        with open(btrfs / "mine/data", "wb", buffering=0) as data:
            data.write(bytes(4096))
            os.fsync(data)
        found = ioctl.tree_search_v2(e.mine, ioctl.SearchKey(0, 258, 258, 0, 0, 0, U64, 108, 108, 1), 4096)[1]
        (e.extent,) = struct.unpack_from("<Q", found, 32 + 21)  # disk_bytenr, behind the header of the item
        os.chown(btrfs / "mine", NOBODY, NOBODY)
        ioctl.subvol_create_v2(e.theirs, b"nested")
        e.mine_id, _ = ioctl.ino_lookup(e.mine, 0, 256)
        e.nested_id, _ = ioctl.ino_lookup(opened(btrfs / "theirs/nested"), 0, 256)
        yield e


@pytest.fixture
def quota(btrfs_mount: Callable[..., Path]) -> Iterator[SimpleNamespace]:
    """
    A separate filesystem with simple quotas.
    """
    fd = os.open(btrfs_mount(), os.O_RDONLY)
    try:
        with needing("simple quotas", refusal=errno.EINVAL):
            ioctl.quota_ctl(fd, ioctl.QUOTA_CTL_ENABLE_SIMPLE_QUOTA)
        yield SimpleNamespace(quota=fd)
    finally:
        os.close(fd)


def refuses(case: Case, e: SimpleNamespace, unprivileged: Callable[..., Any]) -> None:
    with pytest.raises(OSError) as caught:
        unprivileged(case.call, e)
    assert caught.value.errno == case.refused
    notes = caught.value.__notes__
    own_name = re.sub("_(in|by_id|changed|subvolumes|sum)$", "", case.name)
    assert notes[0].removeprefix("BTRFS_IOC_").removeprefix("FS_IOC_").lower() in (case.name, own_name)
    if case.refused == errno.EPERM:
        assert notes[1].startswith("needs ")
        assert "CAP_" in notes[1]


def test_names_that_no_struct_can_hold(there: SimpleNamespace) -> None:
    """
    A name with a NUL byte is a ValueError. A name that is too long for the struct is refused like a name of 256 bytes.
    No name is cut.
    """
    calls = (
        lambda name: ioctl.subvol_create_v2(there.open, name),
        lambda name: ioctl.snap_create_v2(there.mine, there.open, name),
        lambda name: ioctl.snap_destroy(there.open, name),
    )
    for call in calls:
        with pytest.raises(ValueError, match="embedded null byte"):
            call(b"mine\0b")
        for size in (256, 4039, 4040, 4087, 4088, 1 << 20):
            with pytest.raises(OSError) as caught:
                call(b"n" * size)
            assert caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_privileged(there: SimpleNamespace, case: Case) -> None:
    """
    As root, each ioctl works.
    """
    with needing(f"BTRFS_IOC_{case.name.upper()}", refusal=errno.ENOTTY):
        assert case.holds(there, case.call(there))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_unprivileged(there: SimpleNamespace, unprivileged: Callable[..., Any], case: Case) -> None:
    """
    An ordinary user may issue the ioctl, or gets the errno, the ioctl's name and the missing privilege.
    """
    if case.refused:
        refuses(case, there, unprivileged)
        return
    with needing(f"BTRFS_IOC_{case.name.upper()}", refusal=errno.ENOTTY):
        assert unprivileged(lambda: bool(case.holds(there, case.call(there))))


@pytest.mark.parametrize("case", QUOTA_CASES, ids=lambda case: case.label)
def test_quota(quota: SimpleNamespace, unprivileged: Callable[..., Any], case: Case) -> None:
    """
    Only root may use quotas.
    """
    refuses(case, quota, unprivileged)
    assert case.holds(quota, case.call(quota))


def test_loop_devices(tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A file is attached, described, grown and detached. An ordinary user cannot open the device.
    """
    backing = os.open(tmp_path / "backing", os.O_RDWR | os.O_CREAT)
    control = os.open("/dev/loop-control", os.O_RDWR)
    with pytest.raises(PermissionError):
        unprivileged(os.open, "/dev/loop-control", os.O_RDWR)
    device = -1
    try:
        os.truncate(backing, 4 << 20)
        while device < 0:  # another process may take the free one first
            number = ioctl.loop_ctl_get_free(control)
            device = os.open(f"/dev/loop{number}", os.O_RDWR)
            try:
                name = os.fsencode(tmp_path / "backing")
                ioctl.loop_configure(device, backing, flags=ioctl.LO_FLAGS_AUTOCLEAR, offset=4096, file_name=name)
            except OSError as error:
                assert error.errno == errno.EBUSY
                os.close(device)
                device = -1
        with pytest.raises(FileExistsError):
            ioctl.loop_ctl_add(control, number)
        status = ioctl.loop_get_status64(device)
        assert (status.lo_number, status.lo_offset, status.lo_inode) == (number, 4096, os.fstat(backing).st_ino)
        assert status.lo_file_name == name[:63]
        assert status.lo_flags & ioctl.LO_FLAGS_AUTOCLEAR
        os.truncate(backing, 8 << 20)
        ioctl.loop_set_capacity(device)
        assert os.lseek(device, 0, os.SEEK_END) == (8 << 20) - 4096
        ioctl.loop_set_direct_io(device, enable=False)
        ioctl.loop_clr_fd(device)
    finally:
        for fd in (device, control, backing):
            if fd >= 0:
                os.close(fd)


def test_a_loop_device_in_two_steps(tmp_path: Path) -> None:
    """
    The two ioctls that kernels without LOOP_CONFIGURE need do the same.
    """
    backing = os.open(tmp_path / "backing", os.O_RDWR | os.O_CREAT)
    control = os.open("/dev/loop-control", os.O_RDWR)
    device = -1
    try:
        os.truncate(backing, 4 << 20)
        while device < 0:
            device = os.open(f"/dev/loop{ioctl.loop_ctl_get_free(control)}", os.O_RDWR)
            try:
                ioctl.loop_set_fd(device, backing)
            except OSError as error:
                assert error.errno == errno.EBUSY
                os.close(device)
                device = -1
        ioctl.loop_set_status64(device, ioctl.LO_FLAGS_AUTOCLEAR)
        assert ioctl.loop_get_status64(device).lo_flags & ioctl.LO_FLAGS_AUTOCLEAR
    finally:
        for fd in (device, control, backing):
            if fd >= 0:
                os.close(fd)


def test_every_ioctl_is_tested() -> None:
    """
    No function of the raw floor is missing above.
    """
    functions = {name for name in ioctl.__all__ if inspect.isfunction(getattr(ioctl, name))}
    tested = {case.name for case in CASES + QUOTA_CASES} | {name for name in functions if name.startswith("loop_")}
    assert functions == tested


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_a_bad_file_descriptor(fd: int) -> None:
    """
    The kernel's errno is raised.
    """
    with pytest.raises(OSError) as caught:
        ioctl.sync(fd)
    assert caught.value.errno == errno.EBADF
    assert caught.value.__notes__ == ["BTRFS_IOC_SYNC"]


def test_numbers_that_do_not_fit(there: SimpleNamespace) -> None:
    """
    Numbers that the kernel's structs cannot hold are refused before the call.
    """
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError, match=f"{wrong} does not fit"):
            ioctl.default_subvol(there.open, wrong)


def test_rootref_goes_on_where_it_stopped(there: SimpleNamespace) -> None:
    """
    A call returns at most 255 subvolumes, and the next call returns the rest.
    """
    for number in range(300):
        ioctl.subvol_create_v2(there.mine, b"%d" % number)
    first, more = ioctl.get_subvol_rootref(there.mine)
    assert len(first) == 255
    assert more is not None
    second, end = ioctl.get_subvol_rootref(there.mine, more)
    assert end is None
    assert len({treeid for treeid, _ in first + second}) == 300


def test_a_snapshot_in_a_directory_is_whole_or_nothing(there: SimpleNamespace) -> None:
    """
    The new directory has its mode, its attribute and the snapshot. A refused step leaves nothing.
    """

    def make(
        source: bytes = b"../mine", directory: bytes = b"dir", xattr: bytes = b"user.a", name: bytes = b"new"
    ) -> None:
        ioctl.snap_create_v2_in(there.mine, source, there.mine, directory, 0o750, xattr, b"\0value", name)

    os.mkdir("plain", dir_fd=there.mine)
    os.symlink("../mine", "link", dir_fd=there.mine)
    root = Path(f"/proc/self/fd/{there.mine}")
    before = sorted(os.listdir(root))
    for wrong, number in (
        ({"source": b"missing"}, errno.ENOENT),
        ({"source": b"link"}, errno.ENOTDIR),
        ({"directory": b"plain"}, errno.EEXIST),
        ({"xattr": b"no.such.class"}, errno.EOPNOTSUPP),
        ({"name": b"a/b"}, errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            make(**wrong)
        assert (caught.value.errno, caught.value.filename) == (number, wrong.get("directory", b"dir"))
        assert sorted(os.listdir(root)) == before
    make()
    assert stat.S_IMODE((root / "dir").stat().st_mode) == 0o750
    assert os.getxattr(root / "dir", "user.a") == b"\0value"
    assert (root / "dir/new").stat().st_ino == ioctl.FIRST_FREE_OBJECTID


def test_a_search_buffer_is_packed(there: SimpleNamespace) -> None:
    """
    Headers and data follow each other without padding.
    """
    count, buffer = ioctl.tree_search_v2(there.mine, SEARCH, 4096)
    transid, objectid, offset, type_, length = struct.unpack_from("=QQQII", buffer)
    assert (objectid, offset, type_, length) == (256, 0, 1, 160)
    assert count > 1
    assert transid > 0
