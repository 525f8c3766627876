"""
System calls of the raw floor.
"""

import contextlib
import errno
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, ioctl, items, subvolume, syscall
from pybtrfs.items import Key
from pybtrfs.path import owned
from pybtrfs.tree_search import search


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_openat2(tmp_path: Path, directory: int) -> None:
    """
    A path is opened close-on-exec, and only in the ways that the flags allow.
    """
    (tmp_path / "inside").mkdir()
    (tmp_path / "link").symlink_to("inside")
    for path in ("inside", b"inside", Path("inside"), "link"):
        fd = syscall.openat2(directory, path, os.O_RDONLY)
        assert not os.get_inheritable(fd)
        os.close(fd)
    for path, resolve, code in (
        ("link", syscall.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        ("../", syscall.RESOLVE_BENEATH, errno.EXDEV),
        ("/proc", syscall.RESOLVE_NO_XDEV, errno.EXDEV),
        ("/proc/self/fd/0", syscall.RESOLVE_NO_MAGICLINKS, errno.ELOOP),
        ("missing", 0, errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            syscall.openat2(directory, path, os.O_RDONLY, resolve)
        assert caught.value.errno == code
        assert caught.value.filename == path
        assert caught.value.__notes__ == ["openat2"]


def test_openat2_creates(tmp_path: Path, directory: int) -> None:
    """
    A file is created with the given mode.
    """
    os.close(syscall.openat2(directory, "new", os.O_WRONLY | os.O_CREAT, mode=0o600))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("argument", range(4))
def test_null_bytes(argument: int) -> None:
    """
    A NUL byte in any string is refused before the call.
    """
    arguments: list[Any] = ["source", "target", "type", "data"]
    arguments[argument] = "a\0b"
    with pytest.raises(ValueError, match="embedded null byte"):
        syscall.mount(*arguments[:3], data=arguments[3])
    with pytest.raises(ValueError, match="embedded null byte"):
        syscall.umount2("a\0b")


def test_errors_name_the_call(tmp_path: Path) -> None:
    """
    Refusals have the path and the name of the call. The refusal of a bad file descriptor has no path.
    """
    with pytest.raises(FileNotFoundError) as caught:
        syscall.umount2(tmp_path / "missing")
    assert caught.value.filename == tmp_path / "missing"
    assert caught.value.__notes__ == ["umount2"]
    for call in (syscall.syncfs, syscall.fstatfs_type):
        with pytest.raises(OSError) as failed:
            call(-1)
        assert failed.value.errno == errno.EBADF
        assert failed.value.filename is None


@pytest.mark.btrfs
def test_mount(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Root mounts and unmounts. For an ordinary user, the error names the missing privilege.
    """
    target = btrfs / "target"
    target.mkdir()
    source = next(device.iterate(btrfs)).path
    for call in (
        lambda: syscall.mount(source, target, "btrfs"),
        lambda: syscall.umount2(target),
    ):
        with pytest.raises(PermissionError) as caught:
            unprivileged(call)
        assert caught.value.__notes__[1] == "needs CAP_SYS_ADMIN"
    subvolume.create(btrfs / "new")
    (btrfs / "new/file").touch()
    syscall.mount(source, target, "btrfs", syscall.MS_NODEV, f"subvolid={subvolume.get_id(btrfs / 'new')}")
    try:
        assert os.listdir(target) == ["file"]
        assert os.statvfs(target).f_flag & 4  # nodev
    finally:
        syscall.umount2(target, syscall.UMOUNT_NOFOLLOW)


@pytest.mark.btrfs
def test_mapped_mount(btrfs: Path, tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Root makes a copy of a mount with mapped ids. For an ordinary user, the errors name the missing privilege.
    """
    (btrfs / "file").touch()
    with (
        owned(syscall.user_namespace("0 100000 10\n", "0 200000 10\n")) as namespace,
        owned(syscall.open_tree(syscall.AT_FDCWD, btrfs, syscall.OPEN_TREE_CLONE)) as tree,
    ):
        assert not os.get_inheritable(namespace)
        assert not os.get_inheritable(tree)
        attributes = syscall.MOUNT_ATTR_IDMAP | syscall.MOUNT_ATTR_RDONLY
        syscall.mount_setattr(tree, "", syscall.AT_EMPTY_PATH, attr_set=attributes, userns_fd=namespace)
        syscall.move_mount(tree, "", syscall.AT_FDCWD, tmp_path, syscall.MOVE_MOUNT_F_EMPTY_PATH)
    try:
        status = (tmp_path / "file").stat()
        assert (status.st_uid, status.st_gid) == (100000, 200000)
        syscall.mount_setattr(syscall.AT_FDCWD, tmp_path, 0, attr_clr=syscall.MOUNT_ATTR_RDONLY)
        os.chown(tmp_path / "file", 100003, 200000)
    finally:
        syscall.umount2(tmp_path)
    assert (btrfs / "file").stat().st_uid == 3
    with pytest.raises(PermissionError):
        unprivileged(lambda: syscall.user_namespace("0 1 1\n", "0 1 1\n"))
    calls: list[Callable[[], object]] = [
        lambda: syscall.open_tree(syscall.AT_FDCWD, "/", syscall.OPEN_TREE_CLONE),
        lambda: syscall.move_mount(syscall.AT_FDCWD, "/", syscall.AT_FDCWD, "/", 0),
        lambda: syscall.mount_setattr(syscall.AT_FDCWD, "/", 0, attr_set=1),
    ]
    for call in calls:
        with pytest.raises(PermissionError) as caught:
            unprivileged(call)
        assert caught.value.__notes__[1] == "needs CAP_SYS_ADMIN"


def test_user_namespace_leaves_nothing() -> None:
    """
    Neither a child nor a descriptor remains after a user namespace was refused.
    """
    left = [Path(f"/proc/self/task/{threading.get_native_id()}/children"), Path("/proc/self/fd")]

    def there() -> tuple[str, int]:
        return left[0].read_text(), len(os.listdir(left[1]))

    before = there()
    with pytest.raises(ValueError, match="embedded null byte"):
        syscall.user_namespace("0 1 1\0", "")
    for maps in (("malformed", "0 1 1"), ("0 1 1", "malformed")):
        with pytest.raises(OSError, match=r"Invalid argument|not permitted"):  # the latter in a user namespace
            syscall.user_namespace(*maps)
    assert there() == before


@pytest.mark.btrfs
def test_syncfs(btrfs: Path) -> None:
    """
    A good filesystem is synced without an error.
    """
    fd = os.open(btrfs, os.O_RDONLY)
    try:
        syscall.syncfs(fd)
    finally:
        os.close(fd)


@pytest.mark.btrfs
def test_make_directory(btrfs: Path) -> None:
    """
    A directory has its attribute from the start, or is not created.
    """
    dirfd = os.open(btrfs, os.O_RDONLY)
    try:
        fd = syscall.make_directory(dirfd, "new", 0o750, "user.a", b"\0value")
        try:
            assert os.path.samestat(os.fstat(fd), (btrfs / "new").stat())
            assert os.getxattr(fd, "user.a") == b"\0value"
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
        with pytest.raises(FileExistsError) as caught:
            syscall.make_directory(dirfd, "new", 0o750, "user.b", b"")
        assert caught.value.filename == "new"
        with pytest.raises(OSError) as refused:
            syscall.make_directory(dirfd, "other", 0o750, "no.such.class", b"")
        assert refused.value.errno == errno.EOPNOTSUPP
        with pytest.raises(ValueError, match="null byte"):
            syscall.make_directory(dirfd, "a\0b", 0o750, "user.a", b"")
        assert os.listdir(btrfs) == ["new"]
        assert os.listxattr(btrfs / "new") == ["user.a"]
    finally:
        os.close(dirfd)


@pytest.mark.btrfs
def test_read_directory(btrfs: Path) -> None:
    """
    The attribute of a directory is returned, and the inode numbers of entries that are directories, not files or
    symlinks.
    """
    os.mkdir(btrfs / "new")
    subvolume.create(btrfs / "new/subvolume")
    (btrfs / "new/directory").mkdir()
    (btrfs / "new/link").symlink_to("directory")
    (btrfs / "new/file").touch()
    names = ("subvolume", b"directory", "link", "file", "nothing")
    inodes = [ioctl.FIRST_FREE_OBJECTID, (btrfs / "new/directory").stat().st_ino, 0, 0, 0]
    dirfd = os.open(btrfs, os.O_RDONLY)
    try:
        assert syscall.read_directory(dirfd, "new", "user.a", names) == (None, inodes)
        for value in (b"", b"\0value", bytes(8000)):
            os.setxattr(btrfs / "new", "user.a", value)
            assert syscall.read_directory(dirfd, "new", "user.a", names) == (value, inodes)
        assert syscall.read_directory(dirfd, "new", "user.a", ()) == (value, [])
        with pytest.raises(FileNotFoundError) as missing:
            syscall.read_directory(dirfd, "nothing", "user.a", names)
        assert missing.value.filename == "nothing"
        for other in ("new/file", "new/link"):
            with pytest.raises(NotADirectoryError):
                syscall.read_directory(dirfd, other, "user.a", names)
        for xattr, within, number in (
            ("no.such.class", names, errno.EOPNOTSUPP),
            ("user.a", ("a" * 256,), errno.ENAMETOOLONG),
        ):
            with pytest.raises(OSError) as caught:
                syscall.read_directory(dirfd, "new", xattr, within)
            assert caught.value.errno == number
        with pytest.raises(ValueError, match="null byte"):
            syscall.read_directory(dirfd, "new", "user.a", ("a\0b",))
        before = set(os.listdir("/proc/self/fd"))
        syscall.read_directory(dirfd, "new", "user.a", names)
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(dirfd)


@pytest.mark.btrfs
def test_name_to_handle_at(btrfs: Path, tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Any user finds a file's subvolume and inode number, also a symlink. Outside of btrfs, the call is refused.
    """
    subvolume.create(btrfs / "new")
    (btrfs / "new/link").symlink_to("nowhere")
    with subvolume.Subvolume(btrfs / "new") as new:
        subvolid = subvolume.get_id(new)
        link = os.lstat(btrfs / "new/link").st_ino
        assert syscall.name_to_handle_at(new.fileno(), ".") == (subvolid, ioctl.FIRST_FREE_OBJECTID)
        assert unprivileged(syscall.name_to_handle_at, new.fileno(), "link") == (subvolid, link)
        with pytest.raises(FileNotFoundError) as caught:
            syscall.name_to_handle_at(new.fileno(), "nothing")
        assert caught.value.filename == "nothing"
    for elsewhere in ("/proc", "/dev/shm", tmp_path):
        with pytest.raises(OSError) as refused:
            syscall.name_to_handle_at(-1, elsewhere)
        assert refused.value.errno == errno.EOPNOTSUPP


@pytest.mark.btrfs
def test_open_by_handle_at(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An inode is opened by its number and generation, regardless of the permissions of the directories above.
    """
    subvolume.create(btrfs / "new")
    (btrfs / "new/directory").mkdir()
    number = (btrfs / "new/directory").stat().st_ino
    key = Key(number, items.INODE_ITEM_KEY, 0)
    (item,) = search(btrfs / "new", min_key=key, max_key=key)
    generation = items.inode_item(item.data).generation
    with subvolume.Subvolume(btrfs / "new") as new:
        arguments = (new.fileno(), subvolume.get_id(new), number)
        fd = syscall.open_by_handle_at(*arguments, generation, os.O_RDONLY)
        try:
            assert os.path.samestat(os.fstat(fd), (btrfs / "new/directory").stat())
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
        with pytest.raises(OSError) as caught:
            syscall.open_by_handle_at(*arguments, generation + 1, os.O_RDONLY)
        assert caught.value.errno == errno.ESTALE
        with pytest.raises(PermissionError) as refused:
            unprivileged(syscall.open_by_handle_at, *arguments, generation, os.O_RDONLY)
        assert refused.value.__notes__ == ["open_by_handle_at", "needs CAP_DAC_READ_SEARCH"]


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy forgets nothing at once")
def test_a_refusal_is_forgotten() -> None:
    """
    A handled refusal is freed at once, without garbage collection, and so are the objects that its callers hold.
    """

    class Held:
        pass

    def use() -> weakref.ref[Held]:
        held = Held()
        with contextlib.suppress(OSError):
            syscall.syncfs(-1)
        return weakref.ref(held)

    gc.disable()
    try:
        assert use()() is None
    finally:
        gc.enable()


def test_mount_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The own mount namespace is listed, however small the first buffers are; its mounts have their parents.
    """
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("needs root")
    monkeypatch.setattr(syscall, "_NAMESPACES", 0)
    monkeypatch.setattr(syscall, "_MOUNTS_SIZE", 8)
    try:
        found = {namespace.inode: namespace.id for namespace in syscall.mount_namespaces()}
    except OSError as error:
        pytest.skip(f"the kernel does not list mount namespaces: {error}")
    own = os.stat("/proc/thread-self/ns/mnt").st_ino
    major, minor = next(
        line.split()[2].split(":")
        for line in Path("/proc/thread-self/mountinfo").read_text(errors="surrogateescape").splitlines()
        if line.split()[4] == "/proc"
    )
    mounts = syscall.read_mounts(found[own], (int(major), int(minor)))
    assert "/proc" in [os.fsdecode(mount.mnt_point) for mount in mounts]
    ours = {mount.mnt_id for mount in mounts if mount.sb_dev == (int(major), int(minor))}
    assert all(mount.mnt_id in ours or mount.mnt_parent_id in ours for mount in mounts)
    assert syscall.read_mounts(2**63, None) == []


def test_mount_namespaces_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A refusal of either call has its name.
    """
    monkeypatch.setattr(syscall, "lib", Refusing())
    with pytest.raises(PermissionError) as caught:
        syscall.mount_namespaces()
    assert caught.value.__notes__ == ["NS_MNT_GET_NEXT", "needs CAP_SYS_ADMIN"]
    with pytest.raises(PermissionError) as caught:
        syscall.read_mounts(1, None)
    assert caught.value.__notes__ == ["listmount, statmount", "needs CAP_SYS_ADMIN"]


class Refusing:
    """
    A compiled module whose functions fail with EPERM.
    """

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: -errno.EPERM
