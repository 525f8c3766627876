"""
Identity, relations and properties of subvolumes, on real btrfs.
"""

import copy
import errno
import gc
import os
import pickle
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, filesystem, ioctl, kernel, subvolume, syscall
from pybtrfs.errors import NotBtrfsError, NotSubvolumeError
from tests.pybtrfs.subvolume.common import FORMS, NOBODY, calls_of, children, form, make, open_directory, without

pytestmark = pytest.mark.btrfs


# Info


@pytest.mark.fake
@pytest.mark.parametrize("kind", FORMS)
def test_get_info(base: Path, kind: str) -> None:
    """
    A subvolume in any form, or by id, has the same id, place, uuids, transactions and times.
    """
    before = datetime.now(UTC) - timedelta(seconds=1)
    make(base, "directory/new")
    with form(base / "directory/new", kind) as target:
        info = subvolume.get_info(target)
        assert info.id == subvolume.get_id(target)
    filesystem.sync(base)
    info = subvolume.get_info(base / "directory/new")
    assert info == subvolume.get_info(base, info.id)
    assert (info.name, info.parent_id) == ("new", subvolume.get_id(base))
    assert info.dir_id == (base / "directory").stat().st_ino
    assert info.uuid is not None
    assert info.uuid.bytes == info.raw.uuid
    assert (info.parent_uuid, info.received_uuid) == (None, None)
    assert info.generation == info.ctransid == info.otransid > 0
    assert before < info.otime <= info.ctime < datetime.now(UTC)
    assert abs(info.raw.otime - info.otime.timestamp() * 10**9) < 10**6
    assert (info.raw.stime, info.stime) == (0, datetime(1970, 1, 1, tzinfo=UTC))
    assert info.rtime == info.stime


@pytest.mark.fake
def test_info_as_a_dict(base: Path) -> None:
    """
    An info converts to a dict of its public fields, and the raw record to a dict of its own.
    """
    info = subvolume.get_info(base)
    for record, left_out in ((info, {"raw"}), (info.raw, set())):
        public = [name for name in dir(type(record)) if not name.startswith("_") and not hasattr(tuple, name)]
        found = record._asdict()
        assert found == {name: getattr(record, name) for name in public if name not in left_out}
        assert tuple(found) == record._fields
    assert info._asdict()["name"] == "base"


@pytest.mark.fake
def test_get_info_of_the_top_level(base: Path) -> None:
    """
    The top level has no containing subvolume and no name.
    """
    info = subvolume.get_info(base, 5)
    assert (info.id, info.name, info.parent_id, info.dir_id) == (5, "", 0, 0)


@pytest.mark.fake
def test_get_info_of_a_snapshot(base: Path) -> None:
    """
    A snapshot has its parent uuid and its read-only flag, also by id.
    """
    subvolume.snapshot(base, base / "copy", read_only=True)
    filesystem.sync(base)
    info = subvolume.get_info(base / "copy")
    assert info == subvolume.get_info(base, info.id)
    assert info.read_only
    assert info.parent_uuid == subvolume.get_info(base).uuid


@pytest.mark.fake
def test_info_of_what_is_inside(base: Path) -> None:
    """
    A file in a subvolume leads to the info of the subvolume, but is not its root.
    """
    (base / "directory").mkdir()
    (base / "file").touch()
    for target in (base / "directory", base / "file"):
        assert subvolume.get_id(target) == subvolume.get_id(base)
        assert subvolume.get_info(target) == subvolume.get_info(base)
        assert not subvolume.is_subvolume(target)
        with pytest.raises(NotSubvolumeError):
            subvolume.get_read_only(target)
        with pytest.raises(NotSubvolumeError):
            subvolume.set_read_only(target)
        with pytest.raises(NotSubvolumeError):
            subvolume.Subvolume(target)


# The root


@pytest.mark.fake
def test_get_root(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The root of the subvolume that contains a file is found from the file in any form, and from the root itself.
    """
    make(base, "directory/nested")
    (base / "directory/nested/deep").mkdir()
    (base / "directory/nested/deep/file").touch()
    (base / "link").symlink_to("directory/nested/deep")
    for path, root in (("", ""), ("directory", ""), ("directory/nested/deep", "directory/nested")):
        for target in (base / path, os.fsencode(base / path)):
            assert subvolume.get_root(target) == str(base / root)
    assert subvolume.get_root(base / "link/file") == str(base / "directory/nested")
    with (base / "link/file").open() as file:
        assert subvolume.get_root(file) == subvolume.get_root(file.fileno()) == str(base / "directory/nested")
    monkeypatch.chdir(base / "link")
    assert subvolume.get_root("file") == subvolume.get_root(".") == str(base / "directory/nested")


def test_get_root_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user needs permission to search the directories above a file, but none to read them or the file.
    """
    (base / "directory").mkdir()
    (base / "directory/file").touch(mode=0)
    (base / "directory").chmod(0o711)
    base.chmod(0o711)
    assert unprivileged(subvolume.get_root, base / "directory/file") == str(base)


def test_get_root_outside_of_the_mount(base: Path, tmp_path: Path) -> None:
    """
    Where only a directory of a subvolume is mounted, or the file is deleted, there is no root.
    """
    (base / "directory").mkdir()
    (base / "directory/file").touch()
    syscall.mount(base / "directory", tmp_path, "", syscall.MS_BIND)
    try:
        for path in (tmp_path, tmp_path / "file"):
            with pytest.raises(FileNotFoundError, match="not in the mount") as caught:
                subvolume.get_root(path)
            assert caught.value.filename == path
    finally:
        syscall.umount2(tmp_path)
    with (base / "directory/file").open() as file:
        (base / "directory/file").unlink()
        with pytest.raises(FileNotFoundError) as caught:
            subvolume.get_root(file)
        assert caught.value.filename is file


def test_is_subvolume_without_permission(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A subvolume, a directory and a file that the caller may not read are told apart.
    """
    make(base, "new")
    (base / "directory").mkdir(mode=0)
    (base / "file").touch(mode=0)
    (base / "new").chmod(0)
    for name, expected in (("new", True), ("directory", False), ("file", False)):
        assert unprivileged(subvolume.is_subvolume, base / name) == expected
    base.chmod(0)
    with pytest.raises(PermissionError) as caught:
        unprivileged(subvolume.is_subvolume, base / "new")
    assert os.fspath(caught.value.filename) == os.fspath(base / "new")


def test_info_elsewhere(tmp_path: Path) -> None:
    """
    On another filesystem nothing is a subvolume, and other calls raise NotBtrfsError.
    """
    assert not subvolume.is_subvolume(tmp_path)
    for call in (subvolume.get_id, subvolume.get_info, subvolume.get_read_only, subvolume.get_default):
        with pytest.raises(NotBtrfsError):
            call(tmp_path)
    with pytest.raises(NotBtrfsError):
        list(subvolume.iterate(tmp_path))
    with pytest.raises(NotBtrfsError):
        subvolume.delete_by_id(tmp_path, 256)
    with pytest.raises(NotBtrfsError):
        subvolume.wait_deleted(tmp_path, 256)


@pytest.mark.fake
def test_info_of_a_deleted_subvolume(base: Path) -> None:
    """
    A deleted subvolume is a FileNotFoundError, also through a file descriptor that is still open.
    """
    make(base, "new")
    with form(base / "new", "fd") as fd:
        subvolid = subvolume.get_id(fd)
        subvolume.delete(base / "new")
        with pytest.raises(FileNotFoundError):
            subvolume.get_info(fd)
        for call in (subvolume.get_info, subvolume.get_path, subvolume.set_default):
            with pytest.raises(FileNotFoundError) as caught:
                call(base, subvolid)
            assert caught.value.filename == base


def test_asking_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Info of a subvolume and its children needs no privilege; for other calls EPERM names the missing privilege.
    """
    make(base, "directory/deeper/nested")
    with form(base, "fd") as opened:
        subvolid = subvolume.get_id(base)
        assert unprivileged(subvolume.get_id, opened) == subvolid
        assert unprivileged(subvolume.get_info, opened) == subvolume.get_info(base)
        assert unprivileged(subvolume.is_subvolume, opened)
        assert unprivileged(subvolume.get_read_only, opened) is False
        assert unprivileged(lambda: children(base)) == ["directory/deeper/nested"]
        (base / "directory").chmod(0)
        with pytest.raises(PermissionError) as caught:
            unprivileged(lambda: children(base))
        assert caught.value.errno == errno.EACCES
        assert unprivileged(subvolume.get_info, opened, subvolid).id == subvolid
        for call in (
            lambda: subvolume.get_info(opened, 5),
            lambda: subvolume.get_path(opened, subvolid),
            lambda: subvolume.find_uuid(opened, bytes(16)),
            lambda: subvolume.find_received_uuid(opened, bytes(16)),
            lambda: list(subvolume.ancestors(opened)),
            lambda: subvolume.get_default(opened),
            lambda: subvolume.set_default(opened, subvolid),
            lambda: list(subvolume.iterate(opened)),
        ):
            with pytest.raises(PermissionError) as caught:
                unprivileged(call)
            assert "needs CAP_SYS_ADMIN" in caught.value.__notes__


# Read-only and default


@pytest.mark.parametrize("kind", FORMS)
def test_read_only(base: Path, kind: str) -> None:
    """
    A subvolume in any form is made read-only and writable again.
    """
    with form(base, kind) as target:
        subvolume.set_read_only(target)
        assert subvolume.get_read_only(target)
        with pytest.raises(OSError) as caught:
            (base / "file").touch()
        assert caught.value.errno == errno.EROFS
        subvolume.set_read_only(target, read_only=False)
        assert not subvolume.get_read_only(target)
    (base / "file").touch()


def test_read_only_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Only the owner or root can make a subvolume read-only.
    """
    with pytest.raises(PermissionError) as caught:
        unprivileged(subvolume.set_read_only, base)
    assert caught.value.__notes__[-1] == "needs ownership of the subvolume, or CAP_FOWNER"
    os.chown(base, NOBODY, NOBODY)
    unprivileged(subvolume.set_read_only, base)
    assert subvolume.get_read_only(base)


@pytest.mark.fake
def test_a_received_subvolume_stays_read_only(base: Path) -> None:
    """
    A received subvolume becomes writable only with clear_received, which clears its received uuid.
    """
    uuid = bytes(range(16))
    with form(base, "fd") as fd:
        ioctl.set_received_subvol(fd, uuid, 1)
    subvolume.set_read_only(base)
    info = subvolume.get_info(base)
    assert info.received_uuid is not None
    assert info.received_uuid.bytes == uuid
    with pytest.raises(PermissionError, match="received") as caught:
        subvolume.set_read_only(base, read_only=False)
    assert caught.value.filename == base
    assert subvolume.get_read_only(base)
    subvolume.set_read_only(base, read_only=False, clear_received=True)
    assert not subvolume.get_read_only(base)
    assert subvolume.get_info(base).received_uuid is None


def test_default(btrfs_mount: Callable[..., Path], tmp_path: Path) -> None:
    """
    The default subvolume is mounted if the mount options name no other; initially it is the top level.
    """
    top = btrfs_mount()
    make(top, "new", "new/inside")
    assert subvolume.get_default(top) == 5
    subvolid = subvolume.get_id(top / "new")
    subvolume.set_default(top, subvolid)
    assert subvolume.get_default(top) == subvolid
    syscall.mount(next(device.iterate(top)).path, tmp_path, "btrfs")
    try:
        assert os.listdir(tmp_path) == ["inside"]
    finally:
        syscall.umount2(tmp_path)
    with pytest.raises(PermissionError, match="not permitted"):
        subvolume.delete(top / "new", recursive=True)
    subvolume.set_default(top, 5)
    subvolume.delete(top / "new", recursive=True)


# Open subvolumes


@pytest.mark.fake
def test_an_open_subvolume(base: Path) -> None:
    """
    A Subvolume owns a close-on-exec file descriptor until it is closed; a second close does nothing.
    """
    with open_directory(base) as directory:
        opened = subvolume.Subvolume(directory)
        assert opened.fileno() != directory
        assert not os.get_inheritable(opened.fileno())
        opened.close()
        opened.close()
        os.fstat(directory)
        with pytest.raises(ValueError, match="closed"):
            opened.fileno()
        with pytest.raises(ValueError, match="closed"):
            subvolume.get_id(opened)


def test_a_forgotten_subvolume(base: Path) -> None:
    """
    A Subvolume that nobody closes is closed with a warning that names it; one that is closed is forgotten silently.
    """

    def forget(close: bool) -> int:
        opened = subvolume.Subvolume(base)
        fd = opened.fileno()
        if close:
            opened.close()
        del opened
        gc.collect()
        return fd

    with pytest.warns(ResourceWarning) as warned:
        fd = forget(close=False)
    assert [str(warning.message) for warning in warned] == [f"unclosed <Subvolume fd={fd}>"]
    with pytest.raises(OSError):
        os.fstat(fd)
    forget(close=True)


def test_a_subvolume_has_one_owner(base: Path) -> None:
    """
    A Subvolume is not copied or pickled, because both would close its file descriptor.
    """
    with subvolume.Subvolume(base) as opened:
        for call in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=f"<Subvolume fd={opened.fileno()}>"):
                call(opened)


def test_info_within_info(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A call in the middle of another one, as in a signal handler, does not disturb it.
    """
    make(base, "a", "b")
    call = kernel.current.info_ioctl

    def interrupted(*arguments: Any) -> None:
        call(*arguments)
        monkeypatch.setattr(kernel.current, "info_ioctl", call)
        assert subvolume.get_info(base / "b").name == "b"

    monkeypatch.setattr(kernel.current, "info_ioctl", interrupted)
    assert subvolume.get_info(base / "a").name == "a"


def test_threads_overlap(base: Path) -> None:
    """
    Snapshots of several threads run in the kernel concurrently.
    """
    count = 4
    make(base, *(f"{number}" for number in range(count)))
    request = hex(kernel.request("BTRFS_IOC_SNAP_CREATE_V2"))
    seen = threading.Event()

    def snapshots(number: int) -> None:
        for made in range(500):
            if not seen.is_set():
                subvolume.snapshot(base / f"{number}", base / f"{number}/{made}")

    threads = [threading.Thread(target=snapshots, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    while not seen.is_set() and any(thread.is_alive() for thread in threads):
        if sum(request in calls_of(thread) for thread in threads) > 1:
            seen.set()
    for thread in threads:
        thread.join()
    assert seen.is_set()


def test_an_ioctl_that_the_kernel_lacks(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the kernel lacks the ioctl, the error says so.
    """
    without(monkeypatch, "BTRFS_IOC_GET_SUBVOL_INFO")
    with pytest.raises(OSError) as caught:
        subvolume.get_info(base)
    assert type(caught.value) is OSError
    assert caught.value.__notes__ == ["BTRFS_IOC_GET_SUBVOL_INFO", "this kernel does not have the ioctl"]


# Relations


@pytest.mark.fake
def test_find_uuid(base: Path) -> None:
    """
    A subvolume is found by its uuid, as bytes and as UUID, before the next commit and until it is deleted.
    """
    make(base, "new")
    info = subvolume.get_info(base / "new")
    assert info.uuid is not None
    assert subvolume.find_uuid(base, info.uuid) == subvolume.find_uuid(base, info.raw.uuid) == info.id
    subvolume.delete(base / "new")
    with pytest.raises(FileNotFoundError, match=info.uuid.hex) as caught:
        subvolume.find_uuid(base, info.uuid)
    assert caught.value.filename == base


@pytest.mark.fake
def test_find_received_uuid(base: Path) -> None:
    """
    The received uuid leads to the received subvolume and its read-only snapshots, not to writable snapshots.
    """
    make(base, "received")
    uuid = subvolume.get_info(base / "received").raw.uuid
    with pytest.raises(FileNotFoundError, match=f"the received uuid {uuid.hex()}") as caught:
        subvolume.find_received_uuid(base, uuid)
    assert caught.value.filename == base
    with form(base / "received", "fd") as fd:
        ioctl.set_received_subvol(fd, uuid, 1)
    subvolume.set_read_only(base / "received")
    subvolume.snapshot(base / "received", base / "copy", read_only=True)
    subvolume.snapshot(base / "received", base / "writable")
    found = subvolume.find_received_uuid(base, uuid)
    assert sorted(found) == [subvolume.get_id(base / "received"), subvolume.get_id(base / "copy")]


@pytest.mark.parametrize("find", [subvolume.find_uuid, subvolume.find_received_uuid])
@pytest.mark.parametrize(("value", "error"), [(None, TypeError), ("0" * 32, TypeError), (b"short", ValueError)])
def test_find_no_uuid(base: Path, find: Callable[..., Any], value: Any, error: type[Exception]) -> None:
    """
    A value that is no uuid, such as the parent uuid of a subvolume that is no snapshot, is refused.
    """
    with pytest.raises(error, match=repr(value)):
        find(base, value)


@pytest.mark.fake
def test_ancestors(base: Path) -> None:
    """
    The containing subvolumes are listed from the innermost to the top level, by path and by id.
    """
    make(base, "directory/outer", "directory/outer/inner")
    inner = base / "directory/outer/inner"
    ids = [info.id for info in subvolume.ancestors(inner)]
    assert ids == [subvolume.get_id(base / "directory/outer"), subvolume.get_id(base), 5]
    assert [info.id for info in subvolume.ancestors(base, subvolume.get_id(inner))] == ids
    assert list(subvolume.ancestors(base, 5)) == []
    with pytest.raises(FileNotFoundError):
        list(subvolume.ancestors(base, 1 << 40))


@pytest.mark.fake
def test_origins(base: Path) -> None:
    """
    The sources of a snapshot are listed, nearest first, until a source is deleted.
    """
    make(base, "first")
    subvolume.snapshot(base / "first", base / "second")
    subvolume.snapshot(base / "second", base / "third")
    ids = [subvolume.get_id(base / name) for name in ("second", "first")]
    assert [info.id for info in subvolume.origins(base / "third")] == ids
    assert list(subvolume.origins(base / "first")) == []
    subvolume.delete(base / "first")
    assert [info.id for info in subvolume.origins(base / "third")] == ids[:1]
