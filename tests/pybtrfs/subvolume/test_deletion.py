"""
Deletion of subvolumes, and waiting for it, on real btrfs.
"""

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, filesystem, image, ioctl, kernel, subvolume, syscall
from pybtrfs.errors import NotSubvolumeError
from pybtrfs.items import DropProgress, Key
from pybtrfs.path import owned
from tests.pybtrfs.subvolume.common import (
    FORMS,
    NOBODY,
    below,
    calls_of,
    form,
    make,
    mounted,
    needing,
    open_directory,
    without,
)

pytestmark = pytest.mark.btrfs

IMMUTABLE, APPEND = ioctl.FS_IMMUTABLE_FL, ioctl.FS_APPEND_FL

# Deletion


@pytest.mark.fake
@pytest.mark.parametrize("kind", ["str", "bytes", "PathLike"])
def test_delete(base: Path, kind: str) -> None:
    """
    A subvolume is deleted by a path in any form, with its content.
    """
    (base / "file").write_text("content")
    with form(base, kind) as dest:
        subvolume.delete(dest)
    assert not base.exists()


@pytest.mark.fake
@pytest.mark.parametrize("recursive", [False, True])
def test_delete_in_an_open_directory(base: Path, recursive: bool) -> None:
    """
    A subvolume is deleted by a name in an open directory; the name need not be UTF-8.
    """
    with open_directory(base) as directory:
        subvolume.create((directory, b"\xff"))
        subvolume.delete((directory, b"\xff"), recursive=recursive)
    assert below(base) == []


@pytest.mark.fake
@pytest.mark.parametrize("recursive", [False, True])
def test_delete_what_is_no_subvolume(base: Path, recursive: bool) -> None:
    """
    Directories, files, links and missing names have different errors, and nothing is deleted.
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


@pytest.mark.fake
def test_delete_with_subvolumes_inside(base: Path) -> None:
    """
    A subvolume with nested subvolumes is ENOTEMPTY, by name and by id, unless recursive is true.
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
    Nested subvolumes with every flag that prevents a deletion.
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
    All nested subvolumes are deleted, also read-only, immutable and append-only ones.
    """
    assert len(below(tree)) == 10
    subvolume.delete(tree, recursive=True)
    assert not tree.exists()


def test_delete_by_id_recursive(tree: Path) -> None:
    """
    All nested subvolumes are deleted by id too, also if the subvolume itself is read-only.
    """
    subvolume.set_read_only(tree)
    subvolume.delete_by_id(tree.parent, subvolume.get_id(tree), recursive=True)
    assert not tree.exists()


def test_delete_recursive_stays_inside(base: Path) -> None:
    """
    Targets of links and mounts inside, and siblings, are not deleted.
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
    A subvolume with another mounted on it is EXDEV, and neither is changed.
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
    A subvolume that is created concurrently inside is deleted too.
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
    A nested subvolume that is deleted concurrently is not an error.
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
    If the kernel does not find an existing subvolume, the deletion fails instead of looping.
    """
    make(base, "victim", "victim/nested")

    def refuse(fd: int, subvolid: int) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(ioctl, "snap_destroy_v2_by_id", refuse)
    with pytest.raises(FileNotFoundError):
        subvolume.delete(base / "victim", recursive=True)
    monkeypatch.undo()
    assert below(base) == ["victim", "victim/nested"]


@pytest.mark.fake
@pytest.mark.parametrize("kind", FORMS)
def test_delete_by_id(base: Path, kind: str) -> None:
    """
    A subvolume is deleted by its id and any file of the filesystem, such as its own root.
    """
    make(base, "directory/new", "other")
    with form(base / "other", kind) as target:
        subvolume.delete_by_id(target, subvolume.get_id(base / "directory/new"))
    assert below(base) == ["other"]
    with form(base / "other", "fd") as target:
        subvolume.delete_by_id(target, subvolume.get_id(target))
    assert below(base) == []


def test_delete_by_id_outside_of_the_mount(btrfs_mount: Callable[..., Path], tmp_path: Path) -> None:
    """
    A subvolume that the mount does not show is deleted by its id.
    """
    top = btrfs_mount()
    make(top, "shown", "hidden", "hidden/nested")
    subvolid = subvolume.get_id(top / "hidden")
    source = next(device.iterate(top)).path
    syscall.mount(source, tmp_path, "btrfs", data="subvol=shown")
    try:
        assert subvolume.get_path(tmp_path, subvolid) == "hidden"
        subvolume.delete_by_id(tmp_path, subvolid, recursive=True)
    finally:
        syscall.umount2(tmp_path)
    assert below(top) == ["shown"]


@pytest.mark.fake
@pytest.mark.parametrize("subvolid", [0, 5, 255, -1, 1 << 64, (1 << 64) - 9])
def test_delete_by_an_id_that_no_subvolume_has(base: Path, subvolid: int) -> None:
    """
    Ids that no deletable subvolume can have are refused before any call.
    """
    with pytest.raises(ValueError, match=str(subvolid)):
        subvolume.delete_by_id(base, subvolid)


@pytest.mark.fake
def test_delete_by_an_unknown_id(base: Path) -> None:
    """
    An unknown id is a FileNotFoundError with the path of the filesystem.
    """
    with pytest.raises(FileNotFoundError) as caught:
        subvolume.delete_by_id(base, 1 << 40)
    assert caught.value.filename == base


def test_delete_by_id_on_an_old_kernel(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without SNAP_DESTROY_V2 the deletion works too, through the inode number of the directory.
    """
    without(monkeypatch, "BTRFS_IOC_SNAP_DESTROY_V2")
    subvolume.delete_by_id(tree.parent, subvolume.get_id(tree), recursive=True)
    assert not tree.exists()


@contextmanager
def idmapped(source: Path, target: Path, ids: str) -> Iterator[None]:
    """
    Bind *source* to *target* by an idmapped mount.
    """
    with (
        owned(syscall.user_namespace(ids, ids)) as namespace,
        owned(syscall.open_tree(syscall.AT_FDCWD, source, syscall.OPEN_TREE_CLONE)) as tree,
    ):
        with (
            needing("mount_setattr", refusal=errno.ENOSYS),
            needing("idmapped mounts of btrfs", refusal=errno.EINVAL),
        ):
            syscall.mount_setattr(
                tree, "", syscall.AT_EMPTY_PATH, attr_set=syscall.MOUNT_ATTR_IDMAP, userns_fd=namespace
            )
        syscall.move_mount(tree, "", syscall.AT_FDCWD, target, syscall.MOVE_MOUNT_F_EMPTY_PATH)
    try:
        yield
    finally:
        syscall.umount2(target)


@pytest.mark.parametrize("ids", ["0 0 65536", "0 100000 65536"])
@pytest.mark.parametrize("recursive", [False, True])
def test_delete_by_id_through_an_idmapped_mount(base: Path, tmp_path: Path, recursive: bool, ids: str) -> None:
    """
    The kernel refuses to delete by id through an idmapped mount, so the inode number of the directory is used.
    """
    make(base, "directory/victim", *["directory/victim/nested"] * recursive, "other")
    subvolid = subvolume.get_id(base / "directory/victim")
    with idmapped(base, tmp_path, ids):
        with open_directory(tmp_path) as fd, pytest.raises(OSError) as caught:
            ioctl.snap_destroy_v2_by_id(fd, subvolid)
        assert caught.value.errno == errno.EOPNOTSUPP
        subvolume.delete_by_id(tmp_path, subvolid, recursive=recursive)
    assert below(base) == ["other"]


@pytest.mark.fake
def test_delete_from_a_read_only_subvolume(base: Path) -> None:
    """
    A deletion does not make a read-only subvolume writable to delete a subvolume inside.
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
    subvolume.set_read_only(base, read_only=False)


def test_delete_unprivileged(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    With user_subvol_rm_allowed an unprivileged user can delete his own subvolumes, but not recursively.
    """
    top = btrfs_mount()
    top.chmod(0o777)
    make(top, "mine", "mine/nested")
    os.chown(top / "mine", NOBODY, NOBODY)
    with pytest.raises(PermissionError) as caught:
        unprivileged(lambda: subvolume.delete(top / "mine", recursive=True))
    search, privilege, cure = caught.value.__notes__
    assert (search, privilege) == ("BTRFS_IOC_TREE_SEARCH_V2", "needs CAP_SYS_ADMIN")
    assert "unlink=True" in cure
    subvolume.delete(top / "mine/nested")
    unprivileged(subvolume.delete, top / "mine")
    assert below(top) == []


@pytest.mark.parametrize("options", ["", "user_subvol_rm_allowed"])
def test_delete_unprivileged_names_the_cure(options: str, unprivileged: Callable[..., Any]) -> None:
    """
    The refusal of a read-only subvolume names the mount option, if it is missing, and the argument `unlink`, which
    deletion by id does not have.
    """
    with mounted(options) as top:
        make(top, "mine")
        subvolid = subvolume.get_id(top / "mine")
        os.chown(top / "mine", NOBODY, NOBODY)
        subvolume.set_read_only(top / "mine")
        for call, cure in (
            (lambda: subvolume.delete(top / "mine"), "with unlink=True its owner deletes it without CAP_SYS_ADMIN"),
            (lambda: subvolume.delete_by_id(top, subvolid), "only `delete`, by path, has unlink=True"),
        ):
            with pytest.raises(OSError) as caught:
                unprivileged(call)
            assert caught.value.errno == (errno.EROFS if options else errno.EPERM)
            assert cure in caught.value.__notes__[-1]
            assert options or "user_subvol_rm_allowed" in caught.value.__notes__[1]


def test_delete_privileged_unlinks_nothing(base: Path) -> None:
    """
    A refusal that is not for want of a privilege is raised as it is, also with unlink, and names no cure.
    """
    make(base, "default", "frozen")
    for name in ("default", "frozen"):
        (base / name / "file").touch()
    subvolume.set_default(base, subvolume.get_id(base / "default"))
    with open_directory(base / "frozen") as fd:
        ioctl.setflags(fd, IMMUTABLE)
        try:
            for name in ("default", "frozen"):
                for unlink in (False, True):
                    with pytest.raises(PermissionError) as caught:
                        subvolume.delete(base / name, unlink=unlink)
                    assert len(caught.value.__notes__) == 2
                assert os.listdir(base / name) == ["file"]
        finally:
            subvolume.set_default(base, 5)
            ioctl.setflags(fd, 0)
    subvolume.delete(base, recursive=True, unlink=True)
    assert not base.exists()


# Waiting


class Held:
    """
    A deleted subvolume that is open, so that the kernel cannot clean it.
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
def sync_wait(base: Path) -> None:
    """
    Skip the test if the kernel lacks BTRFS_IOC_SUBVOL_SYNC_WAIT.
    """
    with open_directory(base) as fd, needing("BTRFS_IOC_SUBVOL_SYNC_WAIT", refusal=errno.ENOTTY):
        ioctl.subvol_sync_wait(fd, 0, ioctl.SUBVOL_SYNC_COUNT)


@pytest.fixture
def held(base: Path) -> Iterator[Held]:
    held = Held(base)
    yield held
    held.open.close()


@pytest.mark.usefixtures("sync_wait")
def test_wait_deleted(base: Path, held: Held) -> None:
    """
    A wait blocks in the kernel until the subvolume is cleaned, without holding the GIL.
    """
    waiter = threading.Thread(target=subvolume.wait_deleted, args=(base, held.id))
    waiter.start()
    request = hex(kernel.request("BTRFS_IOC_SUBVOL_SYNC_WAIT"))
    while request not in calls_of(waiter):
        assert waiter.is_alive()
    held.release(until=lambda: not waiter.is_alive())
    waiter.join()
    subvolume.wait_deleted(base, held.id)
    subvolume.wait_deleted(base, held.id, timeout=0)


def test_wait_deleted_goes_on_after_a_signal(base: Path, held: Held) -> None:
    """
    The handler of a signal runs during the wait, which then resumes.
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
    An exception in the handler of a signal ends the wait.
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


@pytest.mark.usefixtures("sync_wait")
def test_wait_deleted_unprivileged(base: Path, held: Held, unprivileged: Callable[..., Any]) -> None:
    """
    Waiting needs no privilege, but a timeout needs CAP_SYS_ADMIN.
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


@pytest.mark.fake
@pytest.mark.parametrize("subvolid", [0, 5, -1])
def test_wait_for_what_is_never_deleted(base: Path, subvolid: int) -> None:
    """
    Waiting for an id that no deletable subvolume can have is refused.
    """
    with pytest.raises(ValueError, match=str(subvolid)):
        subvolume.wait_deleted(base, subvolid)


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("kernel", ["new", "old"])
def test_wait_for_one_that_lives(
    base: Path, timeout: float | None, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Waiting for a subvolume that is not deleted is refused.
    """
    if kernel == "old":
        without(monkeypatch, "BTRFS_IOC_SUBVOL_SYNC_WAIT")
    with pytest.raises(FileExistsError) as caught:
        subvolume.wait_deleted(base, subvolume.get_id(base), timeout)
    assert caught.value.filename == base


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_wait_with_a_timeout(base: Path, held: Held, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A wait times out while the subvolume cannot be cleaned, and returns once it is cleaned.
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
    Without SUBVOL_SYNC_WAIT the root tree is searched, and an unknown id counts as cleaned.
    """
    without(monkeypatch, "BTRFS_IOC_SUBVOL_SYNC_WAIT")
    once = iter([False])
    held.release(until=lambda: next(once, True))
    subvolume.wait_deleted(base, held.id)
    subvolume.wait_deleted(base, 1 << 40)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """
    A filesystem mounted read-only with a deleted subvolume, and the id of the subvolume.
    """
    with mounted("") as top:
        held = Held(top)
        filesystem.sync(top)
        # To unmount the image itself would clean the subvolume.
        subprocess.run(["cp", "--sparse=always", top.parent / "image", tmp_path / "image"], check=True)
        held.open.close()
    (tmp_path / "top").mkdir()
    with image.attach(tmp_path / "image") as loop:
        syscall.mount(loop.path, tmp_path / "top", "btrfs", syscall.MS_RDONLY)
        try:
            yield tmp_path / "top", held.id
        finally:
            syscall.umount2(tmp_path / "top")


@pytest.mark.usefixtures("sync_wait")
def test_wait_deleted_on_a_read_only_filesystem(read_only: tuple[Path, int], unprivileged: Callable[..., Any]) -> None:
    """
    The kernel answers as if the subvolume were cleaned, but it never cleans there. Without CAP_SYS_ADMIN nobody knows.
    """
    top, subvolid = read_only
    assert [deleted.id for deleted in subvolume.iterate_deleted(top)] == [subvolid]
    with pytest.raises(OSError) as caught:
        subvolume.wait_deleted(top, subvolid)
    assert (caught.value.errno, caught.value.filename) == (errno.EROFS, top)
    with pytest.raises(TimeoutError):
        subvolume.wait_deleted(top, subvolid, timeout=0)
    subvolume.wait_deleted(top, 1 << 40)
    with form(top, "fd") as fd, pytest.raises(PermissionError) as refused:
        unprivileged(subvolume.wait_deleted, fd, subvolid)
    assert "needs CAP_SYS_ADMIN" in refused.value.__notes__


@pytest.mark.usefixtures("sync_wait")
def test_count_deleted(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    Deleted subvolumes are counted until they are cleaned.
    """
    top = btrfs_mount()
    assert subvolume.count_deleted(top) == 0
    held = [Held(top) for _ in range(3)]
    for one in held:
        one.open.close()
    assert 0 <= subvolume.count_deleted(top) <= 3
    assert 0 <= unprivileged(subvolume.count_deleted, top) <= 3
    while subvolume.count_deleted(top):
        filesystem.sync(top)


def test_count_deleted_on_an_old_kernel(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without SUBVOL_SYNC_WAIT, subvolumes with open files are counted too.
    """
    top = btrfs_mount()
    without(monkeypatch, "BTRFS_IOC_SUBVOL_SYNC_WAIT")
    held = Held(top)
    assert subvolume.count_deleted(top) == 1
    held.release(until=lambda: subvolume.count_deleted(top) == 0)


def test_iterate_deleted(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    Deleted subvolumes that are not cleaned yet are listed, with no progress before the kernel begins.
    """
    top = btrfs_mount()
    make(top, "other")
    held = [Held(top), Held(top)]
    try:
        deleted = list(subvolume.iterate_deleted(top))
        assert [one.id for one in deleted] == [one.id for one in held]
        assert all(one.progress == DropProgress(Key(0, 0, 0), 0) for one in deleted)
        assert all(one.bytes_used == filesystem.get_info(top).nodesize for one in deleted)
        with pytest.raises(PermissionError, match="not permitted"):
            unprivileged(lambda: list(subvolume.iterate_deleted(top)))
    finally:
        for one in held:
            one.open.close()
    while list(subvolume.iterate_deleted(top)):
        filesystem.sync(top)
