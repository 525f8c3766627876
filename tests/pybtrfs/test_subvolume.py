"""
Subvolumes on real btrfs.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, image, ioctl, subvolume, syscall
from pybtrfs.errors import NotBtrfsError, NotSubvolumeError

pytestmark = pytest.mark.btrfs

NOBODY = 65534
FORMS = ["str", "bytes", "PathLike", "fd", "file"]
IMMUTABLE, APPEND = ioctl.FS_IMMUTABLE_FL, ioctl.FS_APPEND_FL


@contextmanager
def form(path: Path, kind: str) -> Iterator[Any]:
    """
    *path* as a target of the kind.
    """
    if kind in ("fd", "file"):
        with subvolume.Subvolume(path) as opened:
            yield opened.fileno() if kind == "fd" else opened
    else:
        yield {"str": str, "bytes": os.fsencode, "PathLike": Path}[kind](path)


@contextmanager
def open_directory(path: Path | str | bytes) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def below(path: Path) -> list[str]:
    return [entry.path for entry in subvolume.iterate(path, top=subvolume.get_id(path))]


def children(path: Path) -> list[str]:
    return [subvolume.get_child_path(path, child) for child in subvolume.children(path)]


def make(base: Path, *names: str) -> None:
    """
    Create subvolumes below *base*, and the directories in between.
    """
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        subvolume.create(base / name)


@pytest.fixture
def base(btrfs: Path) -> Path:
    """
    A subvolume for the test.
    """
    subvolume.create(btrfs / "base")
    return btrfs / "base"


# Creating


@pytest.mark.parametrize("kind", ["str", "bytes", "PathLike"])
def test_create(base: Path, kind: str) -> None:
    """
    A subvolume is made at a path in any form.
    """
    with form(base / "new", kind) as dest:
        subvolume.create(dest)
    assert subvolume.is_subvolume(base / "new")


@pytest.mark.parametrize("name", ["new", b"\xff\xfe \n-", "n" * 255])
def test_create_in_an_open_directory(base: Path, name: str | bytes) -> None:
    """
    A subvolume is made under a name in an open directory; the name need not be UTF-8.
    """
    with subvolume.Subvolume(base) as directory:
        subvolume.create((directory, name))
        subvolume.create((directory.fileno(), b"2"))
    assert os.fsencode(name) in os.listdir(os.fsencode(base))
    assert below(base) == [os.fsdecode(name), "2"]


def test_create_what_exists(base: Path) -> None:
    """
    An existing name is a FileExistsError with the path and the ioctl.
    """
    with pytest.raises(FileExistsError) as caught:
        subvolume.create(base)
    assert caught.value.filename == base
    assert caught.value.__notes__ == ["BTRFS_IOC_SUBVOL_CREATE_V2"]


def test_create_without_a_directory(base: Path) -> None:
    """
    A missing directory is a FileNotFoundError, and a file in its place a NotADirectoryError.
    """
    with pytest.raises(FileNotFoundError):
        subvolume.create(base / "missing/new")
    (base / "file").touch()
    with pytest.raises(NotADirectoryError):
        subvolume.create(base / "file/new")


def test_create_elsewhere(tmp_path: Path) -> None:
    """
    A directory that is not on btrfs is a NotBtrfsError, which has the errno and the ioctl.
    """
    with pytest.raises(NotBtrfsError, match="not a btrfs filesystem") as caught:
        subvolume.create(tmp_path / "new")
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.filename == tmp_path / "new"
    assert caught.value.__notes__ == ["BTRFS_IOC_SUBVOL_CREATE_V2"]


def test_create_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user creates where the directory lets him, and nowhere else.
    """
    with pytest.raises(PermissionError) as caught:
        unprivileged(subvolume.create, base / "new")
    assert caught.value.errno == errno.EACCES
    base.chmod(0o777)
    unprivileged(subvolume.create, base / "new")
    assert (base / "new").stat().st_uid == NOBODY


# Snapshots


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", FORMS)
def test_snapshot(base: Path, kind: str, read_only: bool) -> None:
    """
    A snapshot of a subvolume in any form has its content, its uuid as parent, and is as writable as asked.
    """
    (base / "file").write_text("content")
    with form(base, kind) as source:
        subvolume.snapshot(source, base.parent / "copy", read_only=read_only)
    copy = subvolume.get_info(base.parent / "copy")
    assert (base.parent / "copy/file").read_text() == "content"
    assert copy.parent_uuid == subvolume.get_info(base).uuid
    assert copy.read_only == subvolume.get_read_only(base.parent / "copy") == read_only


def test_snapshot_into_an_open_directory(base: Path) -> None:
    """
    A snapshot is made under a name in an open directory.
    """
    with open_directory(base.parent) as directory:
        subvolume.snapshot(base, (directory, b"\xff"))
    assert subvolume.is_subvolume(os.fsencode(base.parent) + b"/\xff")


def test_snapshot_of_what_is_no_subvolume(base: Path) -> None:
    """
    A directory or file inside a subvolume cannot be the source, and the error names it.
    """
    (base / "directory").mkdir()
    (base / "file").touch()
    for source in (base / "directory", base / "file"):
        with pytest.raises(NotSubvolumeError) as caught:
            subvolume.snapshot(source, base / "copy")
        assert caught.value.filename == source


def test_snapshot_to_what_exists(base: Path) -> None:
    """
    An existing destination is a FileExistsError that names both.
    """
    with pytest.raises(FileExistsError) as caught:
        subvolume.snapshot(base, base)
    assert (caught.value.filename, caught.value.filename2) == (base, base)
    with open_directory(base.parent) as directory, pytest.raises(FileExistsError) as caught:
        subvolume.snapshot(directory if subvolume.is_subvolume(directory) else base, (directory, "base"))
    assert caught.value.filename2 == "base"


def test_snapshot_across_filesystems(base: Path, tmp_path: Path, image_mount: Callable[..., Path]) -> None:
    """
    Another btrfs is EXDEV, and no btrfs a NotBtrfsError, for source and destination alike.
    """
    with pytest.raises(OSError) as caught:
        subvolume.snapshot(base, image_mount() / "copy")
    assert caught.value.errno == errno.EXDEV
    with pytest.raises(NotBtrfsError) as caught:
        subvolume.snapshot(base, tmp_path / "copy")
    assert caught.value.filename == tmp_path / "copy"
    with pytest.raises(OSError) as caught:
        subvolume.snapshot(tmp_path, base / "copy")
    assert caught.value.errno == errno.EXDEV
    assert caught.value.filename == tmp_path


def test_snapshot_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user makes snapshots of his own subvolumes; of others, EPERM says what is missing.
    """
    base.parent.chmod(0o777)
    with pytest.raises(PermissionError) as caught:
        unprivileged(subvolume.snapshot, base, base.parent / "copy")
    assert caught.value.__notes__ == [
        "BTRFS_IOC_SNAP_CREATE_V2",
        "needs ownership of the subvolume, or CAP_FOWNER",
    ]
    os.chown(base, NOBODY, NOBODY)
    unprivileged(subvolume.snapshot, base, base.parent / "copy")


def test_a_nested_subvolume_in_a_snapshot(base: Path) -> None:
    """
    What a snapshot shows for a nested subvolume is none: it cannot be asked about, and says why.
    """
    make(base, "nested")
    subvolume.snapshot(base, base.parent / "copy")
    placeholder = base.parent / "copy/nested"
    assert not subvolume.is_subvolume(placeholder)
    for call in (
        subvolume.get_id,
        subvolume.get_info,
        subvolume.get_read_only,
        lambda target: subvolume.create(target / "new"),
    ):
        with pytest.raises(NotSubvolumeError, match="not the root of a subvolume"):
            call(placeholder)


# Deleting


@pytest.mark.parametrize("kind", ["str", "bytes", "PathLike"])
def test_delete(base: Path, kind: str) -> None:
    """
    A subvolume is deleted by a path in any form, with what is in it.
    """
    (base / "file").write_text("content")
    with form(base, kind) as dest:
        subvolume.delete(dest)
    assert not base.exists()


@pytest.mark.parametrize("recursive", [False, True])
def test_delete_in_an_open_directory(base: Path, recursive: bool) -> None:
    """
    A subvolume is deleted by a name in an open directory; the name need not be UTF-8.
    """
    with open_directory(base) as directory:
        subvolume.create((directory, b"\xff"))
        subvolume.delete((directory, b"\xff"), recursive=recursive)
    assert below(base) == []


@pytest.mark.parametrize("recursive", [False, True])
def test_delete_what_is_no_subvolume(base: Path, recursive: bool) -> None:
    """
    Directories, files and missing names are told apart, and nothing is deleted.
    """
    (base / "directory").mkdir()
    (base / "file").touch()
    (base / "link").symlink_to(base.parent / "base")
    with pytest.raises(NotSubvolumeError):
        subvolume.delete(base / "directory", recursive=recursive)
    for name in ("file", "link"):
        with pytest.raises(OSError) as caught:
            subvolume.delete(base / name, recursive=recursive)
        assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    with pytest.raises(FileNotFoundError):
        subvolume.delete(base / "missing", recursive=recursive)
    assert sorted(os.listdir(base)) == ["directory", "file", "link"]


def test_delete_with_subvolumes_inside(base: Path) -> None:
    """
    A subvolume with subvolumes in it is ENOTEMPTY, by name and by id, unless all are meant.
    """
    make(base, "nested")
    for call in (
        lambda: subvolume.delete(base),
        lambda: subvolume.delete_by_id(base, subvolume.get_id(base)),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENOTEMPTY
    subvolume.delete(base, recursive=True)
    assert not base.exists()


@pytest.fixture
def tree(base: Path) -> Path:
    """
    Subvolumes nested in every way that makes deleting them difficult.
    """
    make(base, "a", "a/b", "a/b/directory/c", "directory/d", "directory/e", "f", "f/g", "h", "h/directory/i", "j")
    subvolume.set_read_only(base / "a/b")
    subvolume.set_read_only(base / "a")
    subvolume.set_read_only(base / "directory/d")
    for path, flag in (
        ("f/g", IMMUTABLE),
        ("f", APPEND),
        ("h/directory/i", APPEND),
        ("h/directory", IMMUTABLE),
        ("h", APPEND),
    ):
        with open_directory(base / path) as fd:
            ioctl.setflags(fd, ioctl.getflags(fd) | flag)
    subvolume.set_read_only(base / "h")
    return base


def test_delete_recursive(tree: Path) -> None:
    """
    Everything nested is deleted, below read-only, immutable and append-only ones as well.
    """
    assert len(below(tree)) == 10
    subvolume.delete(tree, recursive=True)
    assert not tree.exists()


def test_delete_by_id_recursive(tree: Path) -> None:
    """
    So it is by id, also when the subvolume itself is read-only.
    """
    subvolume.set_read_only(tree)
    subvolume.delete_by_id(tree.parent, subvolume.get_id(tree), recursive=True)
    assert not tree.exists()


def test_delete_recursive_stays_inside(base: Path) -> None:
    """
    What links and mounts inside lead to is left alone, and so is what stands beside.
    """
    make(base, "victim", "victim/nested", "other", "other/nested", "victimised")
    (base / "victim/link").symlink_to("../other")
    (base / "victim/mounted").mkdir()
    syscall.mount(base / "other", base / "victim/mounted", "", syscall.MS_BIND)
    try:
        subvolume.delete(base / "victim", recursive=True)
    finally:
        with pytest.raises(OSError):
            syscall.umount2(base / "victim/mounted")  # the kernel detached it
    assert below(base) == ["other", "other/nested", "victimised"]


def test_delete_recursive_of_what_is_mounted_over(base: Path) -> None:
    """
    A subvolume with another one mounted on it is EXDEV, and neither loses anything.
    """
    make(base, "victim", "victim/nested", "other", "other/nested")
    syscall.mount(base / "other", base / "victim", "", syscall.MS_BIND)
    try:
        with pytest.raises(OSError) as caught:
            subvolume.delete(base / "victim", recursive=True)
        assert caught.value.errno == errno.EXDEV
    finally:
        syscall.umount2(base / "victim")
    assert below(base) == ["victim", "victim/nested", "other", "other/nested"]


def test_delete_recursive_while_others_create(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A subvolume that appears in one about to be deleted is found and deleted too.
    """
    make(base, "victim", "victim/nested")
    destroy = ioctl.snap_destroy_v2_by_id
    late = iter([base / "victim/nested/late", base / "victim/late"])

    def create_first(fd: int, subvolid: int) -> None:
        for path in late:
            subvolume.create(path)
            break
        destroy(fd, subvolid)

    monkeypatch.setattr(ioctl, "snap_destroy_v2_by_id", create_first)
    subvolume.delete(base / "victim", recursive=True)
    assert below(base) == []
    assert next(late, None) is None


def test_delete_recursive_while_others_delete(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A subvolume that somebody else deletes at the same time is no error.
    """
    make(base, "victim", "victim/nested")
    destroy = ioctl.snap_destroy_v2_by_id

    def destroy_twice(fd: int, subvolid: int) -> None:
        destroy(fd, subvolid)
        destroy(fd, subvolid)

    monkeypatch.setattr(ioctl, "snap_destroy_v2_by_id", destroy_twice)
    subvolume.delete(base / "victim", recursive=True)
    assert below(base) == []


def test_delete_recursive_that_makes_no_progress(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A kernel that does not find what is there is an error, not an endless loop.
    """
    make(base, "victim", "victim/nested")

    def refuse(fd: int, subvolid: int) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(ioctl, "snap_destroy_v2_by_id", refuse)
    with pytest.raises(FileNotFoundError):
        subvolume.delete(base / "victim", recursive=True)
    monkeypatch.undo()
    assert below(base) == ["victim", "victim/nested"]


@pytest.mark.parametrize("kind", FORMS)
def test_delete_by_id(base: Path, kind: str) -> None:
    """
    A subvolume is deleted by its id and any file of the filesystem, itself included.
    """
    make(base, "directory/new", "other")
    with form(base / "other", kind) as target:
        subvolume.delete_by_id(target, subvolume.get_id(base / "directory/new"))
    assert below(base) == ["other"]
    with form(base / "other", "fd") as target:
        subvolume.delete_by_id(target, subvolume.get_id(target))
    assert below(base) == []


def test_delete_by_id_outside_of_the_mount(image_mount: Callable[..., Path], tmp_path: Path) -> None:
    """
    The file may be in a mount that does not show the subvolume.
    """
    top = image_mount()
    make(top, "shown", "hidden", "hidden/nested")
    subvolid = subvolume.get_id(top / "hidden")
    device = next(filesystem.iterate_devices(top)).path
    syscall.mount(device, tmp_path, "btrfs", data="subvol=shown")
    try:
        assert subvolume.get_path(tmp_path, subvolid) == "hidden"
        subvolume.delete_by_id(tmp_path, subvolid, recursive=True)
    finally:
        syscall.umount2(tmp_path)
    assert below(top) == ["shown"]


@pytest.mark.parametrize("subvolid", [0, 5, 255, -1, 1 << 64, (1 << 64) - 9])
def test_delete_by_an_id_that_no_subvolume_has(base: Path, subvolid: int) -> None:
    """
    Ids that cannot be deleted are refused before any call.
    """
    with pytest.raises(ValueError, match=str(subvolid)):
        subvolume.delete_by_id(base, subvolid)


def test_delete_by_an_unknown_id(base: Path) -> None:
    """
    The id of no subvolume is a FileNotFoundError with the filesystem's path.
    """
    with pytest.raises(FileNotFoundError) as caught:
        subvolume.delete_by_id(base, 1 << 40)
    assert caught.value.filename == base


def test_delete_by_id_on_an_old_kernel(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without SNAP_DESTROY_V2 the directory is opened by its inode number, and the same happens.
    """
    without(monkeypatch, "BTRFS_IOC_SNAP_DESTROY_V2")
    subvolume.delete_by_id(tree.parent, subvolume.get_id(tree), recursive=True)
    assert not tree.exists()


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """
    Let the kernel not have the ioctls.
    """
    call = ioctl._ioctl

    def lacking(fd: int, name: str, *argument: Any) -> int:
        if name in names:
            error = OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
            error.add_note(name)
            raise error
        return call(fd, name, *argument)

    monkeypatch.setattr(ioctl, "_ioctl", lacking)


def test_an_ioctl_that_the_kernel_lacks(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    ENOTTY from a kernel without the ioctl says so.
    """
    without(monkeypatch, "BTRFS_IOC_GET_SUBVOL_INFO")
    with pytest.raises(OSError) as caught:
        subvolume.get_info(base)
    assert type(caught.value) is OSError
    assert caught.value.__notes__ == ["BTRFS_IOC_GET_SUBVOL_INFO", "this kernel does not have the ioctl"]


def test_delete_from_a_read_only_subvolume(base: Path) -> None:
    """
    A read-only subvolume keeps what it contains, and is not made writable behind the caller's back.
    """
    make(base, "nested")
    subvolume.set_read_only(base)
    for recursive in (False, True):
        for call in (
            lambda: subvolume.delete(base / "nested", recursive=recursive),  # noqa: B023
            lambda: subvolume.delete_by_id(base, subvolume.get_id(base / "nested"), recursive=recursive),  # noqa: B023
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EROFS
    assert subvolume.get_read_only(base)
    subvolume.set_read_only(base, False)


def test_delete_unprivileged(image_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user deletes his own subvolumes on a filesystem mounted with user_subvol_rm_allowed, but none
    recursively.
    """
    top = image_mount()
    top.chmod(0o777)
    make(top, "mine", "mine/nested")
    os.chown(top / "mine", NOBODY, NOBODY)
    with pytest.raises(PermissionError) as caught:
        unprivileged(lambda: subvolume.delete(top / "mine", recursive=True))
    assert caught.value.__notes__ == ["BTRFS_IOC_TREE_SEARCH_V2", "needs CAP_SYS_ADMIN"]
    subvolume.delete(top / "mine/nested")
    unprivileged(subvolume.delete, top / "mine")
    assert below(top) == []


def test_delete_unprivileged_without_the_option(tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Without the option EPERM names it, by name and by id.
    """
    image.create(tmp_path / "image", 256 << 20, sparse=True)
    (tmp_path / "top").mkdir()
    with image.attach(tmp_path / "image") as device:
        syscall.mount(device.path, tmp_path / "top", "btrfs")
        try:
            make(tmp_path / "top", "mine")
            os.chown(tmp_path / "top/mine", NOBODY, NOBODY)
            with open_directory(tmp_path / "top") as top:
                subvolid = subvolume.get_id(tmp_path / "top/mine")
                for call in (
                    lambda: subvolume.delete((top, "mine")),
                    lambda: subvolume.delete_by_id(top, subvolid),
                ):
                    with pytest.raises(PermissionError) as caught:
                        unprivileged(call)
                    assert "user_subvol_rm_allowed" in caught.value.__notes__[1]
        finally:
            syscall.umount2(tmp_path / "top")


# Asking


@pytest.mark.parametrize("kind", FORMS)
def test_get_info(base: Path, kind: str) -> None:
    """
    A subvolume in any form has its id, place, uuids, transactions and times; by id it is the same.
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
    assert info.uuid.bytes == info.uuid_bytes
    assert (info.parent_uuid, info.received_uuid) == (None, None)
    assert info.generation == info.ctransid == info.otransid > 0
    assert before < info.otime <= info.ctime < datetime.now(UTC)
    assert abs(info.otime_ns - info.otime.timestamp() * 10**9) < 10**6
    assert (info.stime_ns, info.stime) == (0, datetime(1970, 1, 1, tzinfo=UTC))
    assert info.rtime == info.stime


def test_get_info_of_the_top_level(base: Path) -> None:
    """
    The top level is contained in nothing.
    """
    info = subvolume.get_info(base, 5)
    assert (info.id, info.name, info.parent_id, info.dir_id) == (5, "", 0, 0)


def test_get_info_of_a_snapshot(base: Path) -> None:
    """
    A snapshot says so by id as well, and read-only.
    """
    subvolume.snapshot(base, base / "copy", read_only=True)
    filesystem.sync(base)
    info = subvolume.get_info(base / "copy")
    assert info == subvolume.get_info(base, info.id)
    assert info.read_only
    assert info.parent_uuid == subvolume.get_info(base).uuid


def test_info_of_what_is_inside(base: Path) -> None:
    """
    What is inside a subvolume answers for it, but is none.
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


def test_info_elsewhere(tmp_path: Path) -> None:
    """
    What is not on btrfs is no subvolume.
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
    An ordinary user may ask about a subvolume and its children, and for the rest EPERM names the privilege.
    """
    make(base, "directory/deeper/nested")
    with subvolume.Subvolume(base) as opened:
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
        for call in (
            lambda: subvolume.get_info(opened, subvolid),
            lambda: subvolume.get_path(opened, subvolid),
            lambda: subvolume.get_default(opened),
            lambda: subvolume.set_default(opened, subvolid),
            lambda: list(subvolume.iterate(opened)),
        ):
            with pytest.raises(PermissionError) as caught:
                unprivileged(call)
            assert caught.value.__notes__[-1] == "needs CAP_SYS_ADMIN"


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
        subvolume.set_read_only(target, False)
        assert not subvolume.get_read_only(target)
    (base / "file").touch()


def test_read_only_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Only the owner, or root, makes a subvolume read-only.
    """
    with pytest.raises(PermissionError) as caught:
        unprivileged(subvolume.set_read_only, base)
    assert caught.value.__notes__[-1] == "needs ownership of the subvolume, or CAP_FOWNER"
    os.chown(base, NOBODY, NOBODY)
    unprivileged(subvolume.set_read_only, base)
    assert subvolume.get_read_only(base)


def test_a_received_subvolume_stays_read_only(base: Path) -> None:
    """
    A received subvolume is made writable only when told, and has no received uuid then.
    """
    uuid = bytes(range(16))
    with form(base, "fd") as fd:
        ioctl.set_received_subvol(fd, uuid, 1)
    subvolume.set_read_only(base)
    info = subvolume.get_info(base)
    assert info.received_uuid is not None
    assert info.received_uuid.bytes == uuid
    with pytest.raises(PermissionError, match="received") as caught:
        subvolume.set_read_only(base, False)
    assert caught.value.filename == base
    assert subvolume.get_read_only(base)
    subvolume.set_read_only(base, False, clear_received=True)
    assert not subvolume.get_read_only(base)
    assert subvolume.get_info(base).received_uuid is None


def test_default(image_mount: Callable[..., Path], tmp_path: Path) -> None:
    """
    The default subvolume is the top level at first, and the one that is mounted when none is named.
    """
    top = image_mount()
    make(top, "new", "new/inside")
    assert subvolume.get_default(top) == 5
    subvolid = subvolume.get_id(top / "new")
    subvolume.set_default(top, subvolid)
    assert subvolume.get_default(top) == subvolid
    syscall.mount(next(filesystem.iterate_devices(top)).path, tmp_path, "btrfs")
    try:
        assert os.listdir(tmp_path) == ["inside"]
    finally:
        syscall.umount2(tmp_path)
    with pytest.raises(PermissionError, match="not permitted"):
        subvolume.delete(top / "new", recursive=True)
    subvolume.set_default(top, 5)
    subvolume.delete(top / "new", recursive=True)


# Listing


def test_iterate(base: Path) -> None:
    """
    All subvolumes below one are listed with their paths and what get_info says, whatever lies in between.
    """
    with open_directory(base) as directory:
        subvolume.create((directory, b"\xff"))
    make(base, "a", "directory/deeper/b", "directory/deeper/b/c", "directory/deeper/d")
    subvolume.snapshot(base / "a", base / "directory/e", read_only=True)
    subvolume.delete(base / "a")
    os.rename(base / "directory/deeper/d", base / "directory/deeper/b/d")
    make(base, "late")
    os.rename(base / "directory/deeper/b", base / "late/b")  # contained in one with a larger id
    filesystem.sync(base)
    entries = list(subvolume.iterate(base, top=subvolume.get_id(base)))
    assert {entry.path for entry in entries} == {"\udcff", "directory/e", "late", "late/b", "late/b/c", "late/b/d"}
    for entry in entries:
        path = os.fsencode(base) + b"/" + os.fsencode(entry.path)
        assert entry.info == subvolume.get_info(path) == subvolume.get_info(base, entry.info.id)
    assert [entry.info.id for entry in entries] == sorted(entry.info.id for entry in entries)


def test_iterate_from_the_top(base: Path) -> None:
    """
    From the top level the paths are those of get_path.
    """
    make(base, "directory/new")
    found = {entry.info.id: entry.path for entry in subvolume.iterate(base)}
    subvolid = subvolume.get_id(base / "directory/new")
    assert found[subvolid] == subvolume.get_path(base, subvolid)
    assert found[subvolid].endswith("base/directory/new")
    assert 5 not in found
    assert subvolume.get_path(base, 5) == ""


def test_iterate_asks_once_for_each_directory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A listing of many subvolumes looks up a directory once, and no directory that is a subvolume itself.
    """
    make(base, *(f"{number}" for number in range(50)), *(f"directory/{number}" for number in range(50)))
    calls: list[str] = []
    call = ioctl._ioctl

    def counting(fd: int, name: str, *argument: Any) -> int:
        calls.append(name)
        return call(fd, name, *argument)

    top = subvolume.get_id(base)
    monkeypatch.setattr(ioctl, "_ioctl", counting)
    assert len(list(subvolume.iterate(base, top=top))) == 100
    assert calls.count("BTRFS_IOC_INO_LOOKUP") == 1


def test_children(base: Path) -> None:
    """
    The subvolumes directly below one are listed in any number, with their directories and paths.
    """
    make(base, "directory/first", "first", "first/grandchild", *(f"{number}" for number in range(300)))
    found = list(subvolume.children(base))
    assert len(found) == 302
    assert found[0] == (subvolume.get_id(base / "directory/first"), (base / "directory").stat().st_ino)
    assert subvolume.get_child_path(base, found[0]) == "directory/first"
    assert found[1] == (subvolume.get_id(base / "first"), 256)
    assert children(base / "first") == ["grandchild"]
    subvolume.delete(base / "first/grandchild")
    with pytest.raises(FileNotFoundError):
        subvolume.get_child_path(base / "first", subvolume.SubvolumeRef(found[-1].id + 1, 256))
    assert children(base / "first") == []


@pytest.fixture
def abyss(base: Path) -> Iterator[int]:
    """
    A directory 18 levels of 250 bytes below a subvolume, open.
    """
    with ExitStack() as stack:
        fd = stack.enter_context(open_directory(base))
        for _ in range(18):
            os.mkdir("d" * 250, dir_fd=fd)
            fd = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
            stack.callback(os.close, fd)
        yield fd


def test_below_the_longest_path(base: Path, abyss: int) -> None:
    """
    Subvolumes below directories too deep for a path are listed, found by id, and deleted.
    """
    subvolume.create((abyss, "bottom"))
    path = "/".join(["d" * 250] * 18 + ["bottom"])
    top = subvolume.get_id(base)
    (entry,) = subvolume.iterate(base, top=top)
    assert entry.path == path
    assert subvolume.get_path(base, entry.info.id).endswith(f"base/{path}")
    (child,) = subvolume.children(base)
    with pytest.raises(OSError) as caught:
        subvolume.get_child_path(base, child)
    assert caught.value.errno == errno.ENAMETOOLONG
    subvolume.delete_by_id(base, entry.info.id)
    assert below(base) == []
    subvolume.create((abyss, "again"))
    subvolume.set_read_only(base)
    subvolume.delete(base, recursive=True)
    assert not base.exists()


# Waiting


class Held:
    """
    A deleted subvolume that cannot be cleaned before it is released, since it is open.
    """

    def __init__(self, base: Path) -> None:
        make(base, "held")
        self.base = base
        self.open = subvolume.Subvolume(base / "held")
        self.id = subvolume.get_id(self.open)
        subvolume.delete(base / "held")

    def release(self, until: Callable[[], bool]) -> None:
        self.open.close()
        while not until():
            filesystem.sync(self.base)


@pytest.fixture
def held(base: Path) -> Iterator[Held]:
    held = Held(base)
    yield held
    held.open.close()


def calls_of(thread: threading.Thread) -> str:
    """
    The system call that a thread of this process is in, as numbers.
    """
    try:
        return Path(f"/proc/self/task/{thread.native_id}/syscall").read_text()
    except OSError:
        return ""  # it has ended


def test_wait_deleted(base: Path, held: Held) -> None:
    """
    A wait blocks in the kernel until the subvolume is cleaned, and meanwhile other threads go on: the interpreter's
    lock is not held.
    """
    waiter = threading.Thread(target=subvolume.wait_deleted, args=(base, held.id))
    waiter.start()
    request = hex(ioctl._request("BTRFS_IOC_SUBVOL_SYNC_WAIT"))
    while request not in calls_of(waiter):
        assert waiter.is_alive()
    held.release(until=lambda: not waiter.is_alive())
    waiter.join()
    subvolume.wait_deleted(base, held.id)
    subvolume.wait_deleted(base, held.id, timeout=0)


def test_wait_deleted_goes_on_after_a_signal(base: Path, held: Held) -> None:
    """
    A signal's handler runs, and the wait goes on.
    """
    handled, ended = threading.Event(), threading.Event()

    def release() -> None:
        handled.wait()
        held.release(until=ended.is_set)

    before = signal.signal(signal.SIGALRM, lambda *_: handled.set())
    releaser = threading.Thread(target=release)
    releaser.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        subvolume.wait_deleted(base, held.id)
        assert handled.is_set()
    finally:
        handled.set()
        ended.set()
        releaser.join()
        signal.signal(signal.SIGALRM, before)


def test_wait_deleted_ends_by_a_signal(base: Path, held: Held) -> None:
    """
    What a signal's handler raises ends the wait.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            subvolume.wait_deleted(base, held.id)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_wait_deleted_unprivileged(base: Path, held: Held, unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user may wait, but not with a timeout.
    """
    with form(base, "fd") as fd:
        with pytest.raises(PermissionError) as caught:
            unprivileged(subvolume.wait_deleted, fd, held.id, 0)
        assert caught.value.__notes__ == ["BTRFS_IOC_TREE_SEARCH_V2", "needs CAP_SYS_ADMIN"]
        done = threading.Event()
        releaser = threading.Thread(target=held.release, args=(done.is_set,))
        releaser.start()
        try:
            subvolume.wait_deleted(fd, held.id)
            unprivileged(subvolume.wait_deleted, fd, held.id)
        finally:
            done.set()
            releaser.join()


@pytest.mark.parametrize("subvolid", [0, 5, -1])
def test_wait_for_what_is_never_deleted(base: Path, subvolid: int) -> None:
    """
    Nobody waits for what cannot be deleted.
    """
    with pytest.raises(ValueError, match=str(subvolid)):
        subvolume.wait_deleted(base, subvolid)


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("kernel", ["new", "old"])
def test_wait_for_one_that_lives(
    base: Path, timeout: float | None, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Nobody waits for a subvolume that is not deleted.
    """
    if kernel == "old":
        without(monkeypatch, "BTRFS_IOC_SUBVOL_SYNC_WAIT")
    with pytest.raises(FileExistsError) as caught:
        subvolume.wait_deleted(base, subvolume.get_id(base), timeout)
    assert caught.value.filename == base


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_wait_with_a_timeout(base: Path, held: Held, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A subvolume that cannot be cleaned is a TimeoutError; once it can, it is waited for.
    """
    if kernel == "old":
        without(monkeypatch, "BTRFS_IOC_SUBVOL_SYNC_WAIT")
    for timeout in (0, 0.2):
        with pytest.raises(TimeoutError) as caught:
            subvolume.wait_deleted(base, held.id, timeout)
        assert caught.value.filename == base
    once = iter([False])
    held.release(until=lambda: next(once, True))
    subvolume.wait_deleted(base, held.id, timeout=60)


def test_wait_on_an_old_kernel(base: Path, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without SUBVOL_SYNC_WAIT the tree of roots tells, and an unknown id is done.
    """
    without(monkeypatch, "BTRFS_IOC_SUBVOL_SYNC_WAIT")
    once = iter([False])
    held.release(until=lambda: next(once, True))
    subvolume.wait_deleted(base, held.id)
    subvolume.wait_deleted(base, 1 << 40)


def test_count_deleted(image_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    Deleted subvolumes are counted until they are cleaned.
    """
    top = image_mount()
    assert subvolume.count_deleted(top) == 0
    held = [Held(top) for _ in range(3)]
    for one in held:
        one.open.close()
    assert 0 <= subvolume.count_deleted(top) <= 3
    assert 0 <= unprivileged(subvolume.count_deleted, top) <= 3
    while subvolume.count_deleted(top):
        filesystem.sync(top)


def test_count_deleted_on_an_old_kernel(image_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without SUBVOL_SYNC_WAIT those in which a file is open are counted as well.
    """
    top = image_mount()
    without(monkeypatch, "BTRFS_IOC_SUBVOL_SYNC_WAIT")
    held = Held(top)
    assert subvolume.count_deleted(top) == 1
    held.release(until=lambda: subvolume.count_deleted(top) == 0)


# Open subvolumes


def test_an_open_subvolume(base: Path) -> None:
    """
    A Subvolume owns a file descriptor of its own, close-on-exec, until it is closed, once or more often.
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


def test_threads_overlap(base: Path) -> None:
    """
    Snapshots of several threads are seen in the kernel at the same time.
    """
    count = 4
    make(base, *(f"{number}" for number in range(count)))
    request = hex(ioctl._request("BTRFS_IOC_SNAP_CREATE_V2"))
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
