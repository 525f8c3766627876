"""
Deletion without CAP_SYS_ADMIN, with ``unlink=True``, by an ordinary user and by root of a user namespace.

Each test runs on a filesystem mounted with ``user_subvol_rm_allowed`` and on one without.
"""

import errno
import os
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import ioctl, subvolume, syscall
from pybtrfs.errors import NotSubvolumeError
from pybtrfs.path import owned
from pybtrfs.subvolume import emptying
from tests.pybtrfs.subvolume.common import (
    NOBODY,
    OTHERS,
    UNPRIVILEGED,
    below,
    contained_with_users,
    form,
    make,
    mounted,
    open_directory,
    without,
)

pytestmark = pytest.mark.btrfs

Caller = Callable[..., Any]
OPTION = "user_subvol_rm_allowed"


@pytest.fixture(scope="module", params=["", OPTION], ids=["no option", OPTION])
def options(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared(options: str) -> Iterator[Path]:
    with mounted(options) as path:
        yield path


@pytest.fixture
def top(shared: Path) -> Iterator[Path]:
    """
    A directory of the user, emptied after the test.
    """
    top = shared / "top"
    top.mkdir()
    give(top)
    yield top
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", top], check=False)
    for path in below(shared):
        if (shared / path).exists():
            subvolume.delete(shared / path, recursive=True)
    subprocess.run(["rm", "-r", top], check=True)


@pytest.fixture(params=UNPRIVILEGED.values(), ids=UNPRIVILEGED)
def caller(request: pytest.FixtureRequest) -> Caller:
    """
    A caller of functions in a child process without privileges.
    """
    caller: Caller = request.param
    return caller


def give(*paths: Path) -> None:
    """
    Give files to the user.
    """
    for path in paths:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def fill(root: Path) -> None:
    """
    Put files of the user into a directory: of every type, with every kind of name, and in directories of every mode.
    """
    for name in (b"plain", b"\xff not utf-8", b"-rf", b"\n"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_text("content")
    (root / "away").symlink_to("../other")
    (root / "absolute").symlink_to(root.parent / "other")
    os.mkfifo(root / "fifo")
    os.link(root / "plain", root / "link")
    for mode in (0o000, 0o100, 0o400, 0o500, 0o555, 0o700):
        directory = root / f"{mode:o}"
        (directory / "a" / "b").mkdir(parents=True)
        (directory / "file").touch(0o000)
        (directory / "a" / "other").symlink_to("../../../other")
        (directory / "a").chmod(mode)
        directory.chmod(mode)
    give(*(Path(path, name) for path, names, files in os.walk(root) for name in [*names, *files]))


def make_owned(*paths: Path) -> None:
    """
    Create subvolumes of the user, each with content.
    """
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        subvolume.create(path)
        (path / "file").write_text("content")
        give(path.parent, path, path / "file")


def deleted(path: Path, **options: bool) -> Callable[[], None]:
    return lambda: subvolume.delete(path, unlink=True, **options)


def content(path: Path) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(where, name), path)
        for where, names, files in os.walk(path)
        for name in [*names, *files]
    )


@pytest.mark.parametrize("kind", ["str", "bytes", "PathLike", "fd"])
@pytest.mark.parametrize("read_only", [False, True])
def test_delete(top: Path, caller: Caller, kind: str, read_only: bool) -> None:
    """
    An owner deletes a subvolume in any form, writable or read-only, with its files, and nothing else.
    """
    make_owned(top / "victim", top / "other")
    fill(top / "victim")
    if read_only:
        subvolume.set_read_only(top / "victim")
    if kind == "fd":
        with open_directory(top) as fd:
            caller(deleted((fd, "victim")))  # type: ignore[arg-type] - a destination, too
    else:
        with form(top / "victim", kind) as dest:
            caller(deleted(dest))
    assert content(top) == ["other", "other/file"]


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o500, 0o700])
@pytest.mark.parametrize("name", [b"victim", b"\xff", b"-", b"a" * 255])
def test_delete_by_a_name(top: Path, caller: Caller, name: bytes, mode: int) -> None:
    """
    The subvolume may have any name and mode.
    """
    victim = Path(os.fsdecode(os.fsencode(top) + b"/" + name))
    make_owned(victim)
    victim.chmod(mode)
    with open_directory(top) as fd:
        caller(deleted((fd, name)))  # type: ignore[arg-type]
    assert content(top) == []


def test_delete_as_a_whole(top: Path, options: str, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    No file is deleted by itself if the mount option is set. An empty subvolume needs neither.
    """
    make_owned(top / "full", top / "empty")
    (top / "empty/file").unlink()
    for name in ("full", "empty"):
        subvolume.set_read_only(top / name)
    unlinked = []
    unlink = os.unlink

    def record(name: str, *, dir_fd: int) -> None:
        unlinked.append(name)
        unlink(name, dir_fd=dir_fd)

    def delete() -> list[str]:
        monkeypatch.setattr(os, "unlink", record)
        subvolume.delete(top / "empty", unlink=True)
        subvolume.delete(top / "full", unlink=True)
        return unlinked

    assert caller(delete) == ([] if options else ["file"])
    assert content(top) == []


def test_delete_a_received_subvolume(top: Path, caller: Caller) -> None:
    """
    A received subvolume is deleted, too.
    """
    make_owned(top / "victim")
    with open_directory(top / "victim") as fd:
        ioctl.set_received_subvol(fd, b"r" * 16)
    subvolume.set_read_only(top / "victim")
    caller(deleted(top / "victim"))
    assert content(top) == []


def test_delete_on_a_full_disk(options: str, caller: Caller) -> None:
    """
    A deletion needs no free space.
    """
    with mounted(options) as top:
        make_owned(top / "victim")
        fill(top / "victim")
        subvolume.set_read_only(top / "victim")
        with (top / "ballast").open("wb") as ballast, pytest.raises(OSError) as caught:
            while True:
                ballast.write(bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        caller(deleted(top / "victim"))
        assert content(top) == ["ballast"]


def test_delete_what_belongs_to_mapped_users(top: Path) -> None:
    """
    Root of a user namespace deletes files, directories and subvolumes of every user in it; but not of others.
    """
    make_owned(top / "victim", top / "victim/nested", top / "foreign")
    (top / "victim/directory").mkdir()
    (top / "victim/directory/file").touch()
    for user, name in enumerate(("nested/file", "nested", "directory/file", "directory", "file", ".")):
        os.chown(top / "victim" / name, OTHERS + user, OTHERS + user)
        (top / "victim" / name).chmod(0)
    for name in ("victim/nested", "victim"):
        subvolume.set_read_only(top / name)
    contained_with_users(deleted(top / "victim", recursive=True))
    os.chown(top / "foreign", 0, 0)
    with pytest.raises(PermissionError):
        contained_with_users(deleted(top / "foreign"))
    assert content(top) == ["foreign", "foreign/file"]


NESTED = ("victim", "victim/a", "victim/a/b", "victim/directory/c", "victim/directory/c/d/e")


def test_delete_nested(top: Path, caller: Caller) -> None:
    """
    Nested subvolumes are ENOTEMPTY before anything is changed. With recursive they are deleted, also read-only ones.
    """
    make_owned(*(top / name for name in NESTED), top / "other")
    for name in reversed(NESTED):
        (top / name).chmod(0o500)
        subvolume.set_read_only(top / name)
    before = content(top)
    with pytest.raises(OSError) as caught:
        caller(deleted(top / "victim"))
    assert caught.value.errno == errno.ENOTEMPTY
    assert caught.value.filename == top / "victim"
    assert content(top) == before
    assert subvolume.get_read_only(top / "victim")
    caller(deleted(top / "victim", recursive=True))
    assert content(top) == ["other", "other/file"]


def test_delete_stubs(top: Path, caller: Caller) -> None:
    """
    The empty directories that a snapshot has in place of nested subvolumes are deleted.
    """
    make_owned(*(top / name for name in NESTED))
    subvolume.snapshot(top / "victim", top / "copy", read_only=True)
    caller(deleted(top / "copy"))
    assert not (top / "copy").exists()
    assert len(below(top.parent)) == len(NESTED)


def nest(root: Path, name: str, depth: int) -> None:
    """
    Make a directory below *root* in a directory, and so on, *depth* times.
    """
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        os.chown(name, NOBODY, NOBODY, dir_fd=fd)
        with owned(fd):
            fd = os.open(name, os.O_RDONLY, dir_fd=fd)
    os.close(fd)


@pytest.mark.parametrize(("name", "depth"), [("d", 3000), ("d" * 255, 50)])
def test_delete_of_any_depth(top: Path, caller: Caller, name: str, depth: int) -> None:
    """
    A subvolume that is deeper than PATH_MAX, the stack or the number of open files allows is deleted.
    """
    make_owned(top / "victim")
    nest(top / "victim", name, depth)

    def delete() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        subvolume.delete(top / "victim", unlink=True)

    caller(delete)
    assert content(top) == []


def test_delete_nested_of_any_depth(top: Path, caller: Caller) -> None:
    """
    Nested subvolumes below PATH_MAX are deleted.
    """
    make_owned(top / "victim")
    nest(top / "victim", "d" * 255, 30)
    fd = os.open(top / "victim", os.O_RDONLY)
    for _ in range(30):
        with owned(fd):
            fd = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
    with owned(fd):
        subvolume.create((fd, "nested"))
        os.chown("nested", NOBODY, NOBODY, dir_fd=fd)
        os.close(os.open("nested/file", os.O_CREAT, dir_fd=fd))
    caller(deleted(top / "victim", recursive=True))
    assert content(top) == []


# Refusals


@pytest.mark.parametrize("flag", [ioctl.FS_IMMUTABLE_FL, ioctl.FS_APPEND_FL], ids=["immutable", "append-only"])
@pytest.mark.parametrize("flagged", ["a/file", "a", "a/empty"])
def test_a_file_that_cannot_be_deleted(top: Path, options: str, caller: Caller, flag: int, flagged: str) -> None:
    """
    An error half-way has the path of the file inside, its cause, and what became of the subvolume.
    """
    make_owned(top / "victim", top / "other")
    for name in ("a", "a/empty"):
        (top / "victim" / name).mkdir()
        give(top / "victim" / name)
    (top / "victim/a/file").touch()
    give(top / "victim/a/file")
    with owned(os.open(top / "victim" / flagged, os.O_RDONLY)) as fd:
        ioctl.setflags(fd, flag)
    subvolume.set_read_only(top / "victim")
    if options:
        caller(deleted(top / "victim"))
        assert content(top) == ["other", "other/file"]
        return
    with pytest.raises(PermissionError) as caught:
        caller(deleted(top / "victim"))
    assert caught.value.filename == top / "victim"
    assert caught.value.strerror == (
        f"Operation not permitted: {flagged!r} inside of the subvolume, which may be partly deleted"
    )
    assert flagged in content(top / "victim")
    assert "CAP_LINUX_IMMUTABLE" in caught.value.__notes__[0]
    assert not subvolume.get_read_only(top / "victim")
    assert content(top / "other") == ["file"]


@pytest.mark.parametrize("state", ["immutable", "append-only", "parent", "sticky", "read-only parent", "owner"])
@pytest.mark.parametrize("recursive", [False, True])
def test_a_subvolume_that_cannot_be_deleted(top: Path, caller: Caller, state: str, recursive: bool) -> None:
    """
    If the subvolume itself cannot be deleted, nothing is changed.
    """
    parent, number = top / "parent", errno.EPERM
    subvolume.create(parent)
    victim = parent / "victim"
    make_owned(victim)
    subvolume.set_read_only(victim)
    match state:
        case "immutable" | "append-only":
            subvolume.set_read_only(victim, read_only=False)
            with open_directory(victim) as fd:
                ioctl.setflags(fd, ioctl.FS_IMMUTABLE_FL if state == "immutable" else ioctl.FS_APPEND_FL)
            subvolume.set_read_only(victim)
        case "parent":
            os.chown(parent, 0, 0)
            number = errno.EACCES
        case "sticky":
            os.chown(parent, 0, 0)
            parent.chmod(0o1777)
            subvolume.set_read_only(victim, read_only=False)
            os.chown(victim, 0, 0)
            subvolume.set_read_only(victim)
        case "read-only parent":
            subvolume.set_read_only(parent)
            number = errno.EROFS
        case "owner":
            subvolume.set_read_only(victim, read_only=False)
            os.chown(victim, 0, 0)
            subvolume.set_read_only(victim)
    with pytest.raises(OSError) as caught:
        caller(deleted(victim, recursive=recursive))
    assert (caught.value.errno, caught.value.filename) == (number, victim)
    assert number != errno.EPERM or any("needs " in note for note in caught.value.__notes__)
    assert content(victim) == ["file"]
    assert subvolume.get_read_only(victim)
    for path in (parent, victim):
        subvolume.set_read_only(path, read_only=False)


def test_files_of_others(top: Path, options: str, caller: Caller) -> None:
    """
    A subvolume of another user is refused, and keeps its content; also if it is writable, or cannot be read.
    """
    make_owned(top / "victim")
    os.chown(top / "victim", 0, 0)
    for mode in (0o755, 0o700):
        (top / "victim").chmod(mode)
        with pytest.raises(PermissionError) as caught:
            caller(deleted(top / "victim"))
        assert (caught.value.errno, caught.value.filename) == (errno.EACCES, top / "victim")
        assert ("inside" in caught.value.strerror) == (mode == 0o755 and not options)
        assert content(top) == ["victim", "victim/file"]


def test_files_in_a_writable_subvolume_of_others(top: Path, caller: Caller) -> None:
    """
    The permissions count, not the owner.
    """
    make_owned(top / "victim")
    os.chown(top / "victim", 0, NOBODY)
    (top / "victim").chmod(0o070)
    caller(deleted(top / "victim"))
    assert content(top) == []


def test_the_default_subvolume(top: Path, caller: Caller) -> None:
    """
    The default subvolume stays, empty, and the error says so. Nobody without privileges can know of it before.
    """
    make_owned(top / "victim")
    subvolume.set_default(top, subvolume.get_id(top / "victim"))
    try:
        with pytest.raises(PermissionError) as caught:
            caller(deleted(top / "victim"))
        assert "default subvolume" in caught.value.__notes__[0]
        assert content(top) == ["victim"]
    finally:
        subvolume.set_default(top, 5)


@pytest.mark.parametrize("recursive", [False, True])
def test_no_subvolume(top: Path, caller: Caller, recursive: bool) -> None:
    """
    Directories, files, links to a subvolume and missing names have different errors, and nothing is deleted.
    """
    make_owned(top / "subvolume", top / "mount")
    (top / "empty").mkdir(0)
    (top / "file").touch()
    (top / "link").symlink_to("subvolume")
    give(top / "empty", top / "file", top / "link")
    before = content(top)
    for name, numbers in (
        ("empty", {errno.EINVAL}),
        ("file", {errno.ENOTDIR, errno.EINVAL}),
        ("link", {errno.ENOTDIR, errno.ELOOP, errno.EINVAL}),
        ("missing", {errno.ENOENT}),
    ):
        with pytest.raises(OSError) as caught:
            caller(deleted(top / name, recursive=recursive))
        assert caught.value.errno in numbers
        assert isinstance(caught.value, NotSubvolumeError) == (caught.value.errno == errno.EINVAL)
    assert stat.S_IMODE((top / "empty").stat().st_mode) == 0
    assert content(top) == before


def test_mounted_over(top: Path, caller: Caller) -> None:
    """
    A subvolume with another mounted on it is EXDEV, and neither is changed.
    """
    make_owned(top / "victim", top / "other")
    subvolume.set_read_only(top / "victim")
    syscall.mount(top / "other", top / "victim", "", syscall.MS_BIND)
    try:
        with pytest.raises(OSError) as caught:
            caller(deleted(top / "victim", recursive=True))
        assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, top / "victim")
    finally:
        syscall.umount2(top / "victim")
    assert subvolume.get_read_only(top / "victim")
    assert content(top) == ["other", "other/file", "victim", "victim/file"]


@pytest.mark.parametrize("target", ["directory", "file"])
def test_mounted_inside(top: Path, options: str, caller: Caller, target: str) -> None:
    """
    Nothing below a mount inside is deleted: the mount is EBUSY, unless the kernel detaches it.
    """
    make_owned(top / "victim", top / "other")
    (top / "victim/directory").mkdir()
    give(top / "victim/directory")
    source = top / "other" if target == "directory" else top / "other/file"
    syscall.mount(source, top / "victim" / target, "", syscall.MS_BIND)
    if options:
        caller(deleted(top / "victim"))
    else:
        with pytest.raises(OSError) as caught:
            caller(deleted(top / "victim"))
        assert caught.value.errno == errno.EBUSY
        assert repr(target) in str(caught.value)
        syscall.umount2(top / "victim" / target)
        caller(deleted(top / "victim"))
    assert content(top) == ["other", "other/file"]


@pytest.mark.parametrize("recursive", [False, True])
def test_elsewhere(tmp_path: Path, caller: Caller, recursive: bool) -> None:
    """
    On another filesystem the errors are the same as without unlink.
    """
    (tmp_path / "closed").mkdir(0o700)
    with open_directory(tmp_path) as fd:
        for unlink in (False, True):
            with pytest.raises(OSError) as caught:
                caller(lambda: subvolume.delete((fd, "closed"), recursive=recursive, unlink=unlink))  # noqa: B023
            assert caught.value.errno == (errno.EACCES if recursive else errno.ENOTTY)
            assert caught.value.filename == "closed"
    assert (tmp_path / "closed").is_dir()


# Concurrent changes


@pytest.fixture
def refusing(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Refuse the ioctl with the mount option as well.
    """
    without(monkeypatch, "BTRFS_IOC_SNAP_DESTROY", refusal=errno.EPERM)


def before(monkeypatch: pytest.MonkeyPatch, call: str, change: Callable[[str], None]) -> None:
    """
    Change something before each deletion of a name by the system call.
    """
    delete = getattr(os, call)

    def change_first(name: str | bytes, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:
            change(os.fsdecode(name))
        delete(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, call, change_first)


@pytest.mark.usefixtures("refusing")
def test_while_others_delete(top: Path, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file or directory that is deleted concurrently is no error.
    """
    make_owned(top / "victim")
    for name in ("a", "b", "b/c"):
        (top / "victim" / name).mkdir()
        give(top / "victim" / name)

    def delete_first(path: Path) -> None:
        if path.is_dir() and not os.listdir(path):
            path.rmdir()
        elif path.is_file():
            path.unlink()

    def delete() -> None:
        for call in ("unlink", "rmdir"):
            before(monkeypatch, call, lambda name: delete_first(top / "victim" / name))
        subvolume.delete(top / "victim", unlink=True)

    caller(delete)
    assert content(top) == []


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("where", [".", "a"])
def test_while_others_create(top: Path, caller: Caller, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A directory in which files are created concurrently is ENOTEMPTY in the end.
    """
    make_owned(top / "victim")
    (top / "victim/a").mkdir()
    give(top / "victim/a")

    def delete() -> None:
        name = "a" if where == "a" else "victim"
        before(monkeypatch, "rmdir", lambda rmdir: (top / "victim" / where / "new").touch() if rmdir == name else None)
        subvolume.delete(top / "victim", unlink=True)

    with pytest.raises(OSError) as caught:
        caller(delete)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOTEMPTY, top / "victim")
    assert ("'a' inside" in str(caught.value)) == (where == "a")
    assert content(top / "victim") == (["new"] if where == "." else ["a", "a/new"])


@pytest.mark.usefixtures("refusing")
def test_a_subvolume_that_appears(top: Path, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A subvolume that is created concurrently is kept without recursive.
    """
    make_owned(top / "victim", top / "victim/nested")
    monkeypatch.setattr(emptying, "children", lambda fd: ())
    with pytest.raises(OSError) as caught:
        caller(deleted(top / "victim"))
    assert caught.value.errno == errno.ENOTEMPTY
    assert "'nested' inside" in str(caught.value)
    assert content(top / "victim") == ["nested", "nested/file"]


@pytest.mark.usefixtures("refusing")
def test_a_subvolume_that_is_moved(top: Path, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If a nested subvolume is moved away concurrently, nothing is deleted around its new place.
    """
    make_owned(top / "victim", top / "victim/nested", top / "elsewhere")

    def delete() -> None:
        def move(name: str) -> None:
            if name == "file" and not (top / "victim/file").exists():
                (top / "victim/nested").rename(top / "elsewhere/nested")

        before(monkeypatch, "unlink", move)
        subvolume.delete(top / "victim", recursive=True, unlink=True)

    with pytest.raises(OSError) as caught:
        caller(delete)
    assert caught.value.errno == errno.EBUSY
    assert str(caught.value).startswith("[Errno 16] moved concurrently: 'nested' inside")
    assert content(top) == ["elsewhere", "elsewhere/file", "elsewhere/nested", "victim"]


# The other ways to delete


def test_batch(top: Path, caller: Caller) -> None:
    """
    A batch deletes so, too.
    """
    make_owned(top / "a", top / "a/nested", top / "b")
    subvolume.set_read_only(top / "b")

    def delete() -> None:
        with subvolume.batch() as batch:
            batch.delete(top / "a", recursive=True, unlink=True)
            batch.delete(top / "b", unlink=True)

    caller(delete)
    assert content(top) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_temporary_snapshot(top: Path, caller: Caller, read_only: bool) -> None:
    """
    A temporary snapshot is deleted with the subvolumes created in it.
    """
    make_owned(top / "source")

    def use() -> None:
        with subvolume.temporary_snapshot(top / "source", top, read_only=read_only) as path:
            assert content(Path(path)) == ["file"]
            if not read_only:
                make(Path(path), "nested")
                Path(path, "nested/file").touch()

    caller(use)
    assert content(top) == ["source", "source/file"]
