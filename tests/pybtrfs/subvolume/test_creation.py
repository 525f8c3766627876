"""
Creation of subvolumes and snapshots, on real btrfs.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, filesystem, ioctl, subvolume, syscall
from pybtrfs.errors import NotBtrfsError, NotSubvolumeError
from tests.pybtrfs.subvolume.common import FORMS, NOBODY, below, form, make, open_directory

pytestmark = pytest.mark.btrfs


# Creating


@pytest.mark.fake
@pytest.mark.parametrize("kind", ["str", "bytes", "PathLike"])
def test_create(base: Path, kind: str) -> None:
    """
    A subvolume is created at a path in any form.
    """
    with form(base / "new", kind) as dest:
        subvolume.create(dest)
    assert subvolume.is_subvolume(base / "new")


@pytest.mark.fake
@pytest.mark.parametrize("name", ["new", b"\xff\xfe \n-", "n" * 255])
def test_create_in_an_open_directory(base: Path, name: str | bytes) -> None:
    """
    A subvolume is created under a name in an open directory; the name need not be UTF-8.
    """
    with subvolume.Subvolume(base) as directory:
        subvolume.create((directory, name))
        subvolume.create((directory.fileno(), b"2"))
    assert os.fsencode(name) in os.listdir(os.fsencode(base))
    assert below(base) == [os.fsdecode(name), "2"]


@pytest.mark.fake
def test_create_what_exists(base: Path) -> None:
    """
    An existing name is a FileExistsError with the path and the ioctl.
    """
    with pytest.raises(FileExistsError) as caught:
        subvolume.create(base)
    assert caught.value.filename == base
    assert caught.value.__notes__ == ["BTRFS_IOC_SUBVOL_CREATE_V2"]


@pytest.mark.fake
def test_create_without_a_directory(base: Path) -> None:
    """
    A missing directory is a FileNotFoundError, and a file in its place a NotADirectoryError.
    """
    with pytest.raises(FileNotFoundError):
        subvolume.create(base / "missing/new")
    (base / "file").touch()
    with pytest.raises(NotADirectoryError):
        subvolume.create(base / "file/new")


def test_create_on_another_filesystem(tmp_path: Path) -> None:
    """
    A directory on another filesystem is a NotBtrfsError with the errno and the ioctl.
    """
    with pytest.raises(NotBtrfsError, match="not a btrfs filesystem") as caught:
        subvolume.create(tmp_path / "new")
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.filename == tmp_path / "new"
    assert caught.value.__notes__ == ["BTRFS_IOC_SUBVOL_CREATE_V2"]


def test_create_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user can create subvolumes in a directory that he can write to.
    """
    with pytest.raises(PermissionError) as caught:
        unprivileged(subvolume.create, base / "new")
    assert caught.value.errno == errno.EACCES
    base.chmod(0o777)
    unprivileged(subvolume.create, base / "new")
    assert (base / "new").stat().st_uid == NOBODY


# Snapshots


@pytest.mark.fake
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", FORMS)
def test_snapshot(base: Path, kind: str, read_only: bool) -> None:
    """
    A snapshot has the content of its source, its uuid as parent uuid, and is read-only on request.
    """
    (base / "file").write_text("content")
    with form(base, kind) as source:
        subvolume.snapshot(source, base.parent / "copy", read_only=read_only)
    copy = subvolume.get_info(base.parent / "copy")
    assert (base.parent / "copy/file").read_text() == "content"
    assert copy.parent_uuid == subvolume.get_info(base).uuid
    assert copy.read_only == subvolume.get_read_only(base.parent / "copy") == read_only


@pytest.mark.fake
def test_snapshot_into_an_open_directory(base: Path) -> None:
    """
    A snapshot is created under a name in an open directory.
    """
    with open_directory(base.parent) as directory:
        subvolume.snapshot(base, (directory, b"\xff"))
    assert subvolume.is_subvolume(os.fsencode(base.parent) + b"/\xff")


@pytest.mark.fake
def test_snapshot_of_a_directory_or_file(base: Path) -> None:
    """
    A directory or file inside a subvolume is refused as the source, and the error names it.
    """
    (base / "directory").mkdir()
    (base / "file").touch()
    for source in (base / "directory", base / "file"):
        with pytest.raises(NotSubvolumeError) as caught:
            subvolume.snapshot(source, base / "copy")
        assert caught.value.filename == source


@pytest.mark.fake
def test_snapshot_to_an_existing_name(base: Path) -> None:
    """
    An existing destination is a FileExistsError that names source and destination.
    """
    with pytest.raises(FileExistsError) as caught:
        subvolume.snapshot(base, base)
    assert (caught.value.filename, caught.value.filename2) == (base, base)
    with open_directory(base.parent) as directory, pytest.raises(FileExistsError) as caught:
        subvolume.snapshot(directory if subvolume.is_subvolume(directory) else base, (directory, "base"))
    assert caught.value.filename2 == "base"


def test_snapshot_across_filesystems(base: Path, tmp_path: Path, btrfs_mount: Callable[..., Path]) -> None:
    """
    A source or destination on another btrfs is EXDEV; a destination on another filesystem is a NotBtrfsError.
    """
    with pytest.raises(OSError) as caught:
        subvolume.snapshot(base, btrfs_mount() / "copy")
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
    An unprivileged user can snapshot his own subvolumes; for others, EPERM names the missing privilege.
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


@pytest.mark.fake
def test_a_nested_subvolume_in_a_snapshot(base: Path) -> None:
    """
    The empty directory that a snapshot shows for a nested subvolume is not a subvolume, and errors say so.
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


# Recursive snapshots


@pytest.mark.fake
@pytest.mark.parametrize("read_only", [False, True])
def test_snapshot_recursive(base: Path, read_only: bool) -> None:
    """
    A recursive snapshot contains snapshots of the nested subvolumes, read-only on request.
    """
    names = ["nested", "nested/directory/deeper", "directory/other"]
    make(base, *names)
    for name in names:
        (base / name / "file").write_text(name)
    subvolume.set_read_only(base / "nested/directory/deeper")
    copy = base.parent / "copy"
    subvolume.snapshot(base, copy, recursive=True, read_only=read_only)
    assert sorted(below(copy)) == sorted(names)
    assert subvolume.get_read_only(copy) == read_only
    for name in names:
        assert (copy / name / "file").read_text() == name
        assert subvolume.get_info(copy / name).parent_uuid == subvolume.get_info(base / name).uuid
        assert subvolume.get_read_only(copy / name) == read_only


@pytest.mark.fake
def test_snapshot_recursive_into_its_source(base: Path) -> None:
    """
    A recursive snapshot inside its source does not contain itself.
    """
    make(base, "nested")
    subvolume.snapshot(base, base / "nested/copy", recursive=True)
    assert below(base) == ["nested", "nested/copy", "nested/copy/nested"]


def test_snapshot_recursive_of_what_is_mounted_over(base: Path) -> None:
    """
    A nested subvolume with another mounted on it is EXDEV, so that the other is not snapshotted instead.
    """
    make(base, "nested", "other")
    syscall.mount(base / "other", base / "nested", "", syscall.MS_BIND)
    try:
        with pytest.raises(OSError) as caught:
            subvolume.snapshot(base, base.parent / "copy", recursive=True)
        assert caught.value.errno == errno.EXDEV
    finally:
        syscall.umount2(base / "nested")


def test_snapshot_recursive_while_others_delete(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A nested subvolume that is deleted concurrently is skipped.
    """
    make(base, "first", "second")
    lookup = ioctl.ino_lookup_user

    def delete_first(fd: int, dirid: int, treeid: int) -> tuple[bytes, bytes]:
        found = lookup(fd, dirid, treeid)
        if found[0] == b"first":
            subvolume.delete(base / "first")
        return found

    monkeypatch.setattr(ioctl, "ino_lookup_user", delete_first)
    subvolume.snapshot(base, base.parent / "copy", recursive=True)
    assert below(base.parent / "copy") == ["second"]


def test_snapshot_recursive_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user can snapshot his own nested subvolumes recursively.
    """
    make(base, "nested", "nested/deeper")
    for path in (base.parent, base, base / "nested", base / "nested/deeper"):
        os.chown(path, NOBODY, NOBODY)
    unprivileged(lambda: subvolume.snapshot(base, base.parent / "copy", recursive=True, read_only=True))
    assert below(base.parent / "copy") == ["nested", "nested/deeper"]
    os.chown(base / "nested", 0, 0)
    with pytest.raises(PermissionError) as caught:
        unprivileged(lambda: subvolume.snapshot(base, base.parent / "second", recursive=True))
    assert caught.value.__notes__[0] == "BTRFS_IOC_SNAP_CREATE_V2"


# Temporary snapshots


@pytest.mark.fake
@pytest.mark.parametrize("read_only", [False, True])
def test_temporary_snapshot(base: Path, read_only: bool) -> None:
    """
    A temporary snapshot exists inside the with, and is deleted afterwards, also after an exception.
    """
    (base / "file").write_text("content")
    with pytest.raises(KeyError), subvolume.temporary_snapshot(base, base.parent, read_only=read_only) as path:
        assert Path(path, "file").read_text() == "content"
        assert subvolume.get_read_only(path) == read_only
        raise KeyError
    assert os.listdir(base.parent) == ["base"]


@pytest.mark.fake
def test_temporary_snapshot_with_subvolumes(base: Path) -> None:
    """
    Subvolumes created in a temporary snapshot are deleted with it.
    """
    with subvolume.temporary_snapshot(base, base.parent, read_only=False) as path:
        make(Path(path), "nested")
    assert os.listdir(base.parent) == ["base"]


def test_temporary_snapshot_unprivileged(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user can use temporary snapshots, also read-only, if he may delete subvolumes.
    """
    top = btrfs_mount()
    top.chmod(0o777)
    make(top, "mine")
    os.chown(top / "mine", NOBODY, NOBODY)

    def use() -> bool:
        with subvolume.temporary_snapshot(top / "mine", top) as path:
            return subvolume.get_read_only(path)

    assert unprivileged(use)
    assert os.listdir(top) == ["mine"]


# Batches


def generation_on_disk(mount: Path) -> int:
    """
    Return the generation of the superblock in the mounted image.
    """
    name = Path(next(device.iterate(mount)).path).name
    image_path = Path(f"/sys/block/{name}/loop/backing_file").read_text().rstrip("\n")
    with open(image_path, "rb") as image_file:
        image_file.seek((64 << 10) + 72)
        return int.from_bytes(image_file.read(8), "little")


def test_batch(btrfs_mount: Callable[..., Path]) -> None:
    """
    Creations and deletions of a batch, in several directories, are durable after one commit.
    """
    top = btrfs_mount(options="commit=3600")  # no periodic commit during the test
    make(top, "victim")
    for name in ("a", "b"):
        (top / name).mkdir()
    filesystem.sync(top)
    before = generation_on_disk(top)
    subvolume.create(top / "alone")
    if generation_on_disk(top) != before:
        pytest.skip("the kernel commits with each subvolume that it creates")
    with open_directory(top / "b") as directory, subvolume.batch() as batch:
        for number in range(20):
            batch.create(top / f"a/{number}")
            batch.create((directory, f"{number}"))
        batch.delete(top / "victim")
        assert generation_on_disk(top) == before
    assert generation_on_disk(top) == before + 1
    assert subvolume.get_info(top / "a/19").otransid == subvolume.get_info(top / "b/19").otransid == before + 1
    with subvolume.batch():
        pass
    assert generation_on_disk(top) == before + 1


@pytest.mark.fake
def test_a_batch_that_fails(base: Path) -> None:
    """
    A batch that ends with an exception keeps its changes.
    """
    with pytest.raises(FileExistsError) as caught, subvolume.batch() as batch:
        batch.create(base / "new")
        batch.create(base / "new")
    assert caught.value.filename == base / "new"
    assert below(base) == ["new"]


def test_a_batch_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A batch needs no privilege.
    """
    base.chmod(0o777)

    def create() -> None:
        with subvolume.batch() as batch:
            batch.create(base / "new")

    unprivileged(create)
    assert below(base) == ["new"]
