"""
What a snapshot added: the search by generation against arithmetic and against a walk of both trees.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, subvolume, tree_search
from snapshotter import Snapshotter, Usage
from snapshotter.model import Measured
from snapshotter.store import records, usage
from snapshotter.store.record_storage import XATTR
from snapshotter.testing import DirectoryVolumes, settle

FILES = 400
DIRECTORIES = 40
SIZE = 12_288  # three blocks, never inline
OLD = (1_000_000_000, 1_000_000_000)


def blocks(path: Path) -> int:
    return 0 if path.is_dir() and not path.is_symlink() else path.lstat().st_blocks * 512


def containerd(root: Path, parent: Path | None) -> Usage:
    """
    containerd's usage: sizes of all inodes that its double walk finds added or modified, each once.

    It compares a file with that of the same path: mode, owner, device; size and time, when not a directory; and which
    files have links of their own.
    """
    seen: dict[int, int] = {}
    for directory, names, files in os.walk(root):
        for path in (
            Path(directory, name) for name in ([".", *names, *files] if directory == str(root) else names + files)
        ):
            now = path.lstat()
            before = None
            if parent is not None:
                with suppress(FileNotFoundError, NotADirectoryError):
                    before = (parent / path.relative_to(root)).lstat()

            def what(status: os.stat_result) -> tuple[object, ...]:
                identity = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
                if stat.S_ISDIR(status.st_mode):
                    return identity
                return (*identity, status.st_size, status.st_mtime_ns, status.st_nlink)

            if before is None or what(now) != what(before):
                seen[now.st_ino] = blocks(path)
    return Usage(sum(seen.values()), len(seen))


@pytest.fixture
def base(btrfs: Path) -> Path:
    """
    A read-only subvolume with files of three blocks in 40 directories.
    """
    base = btrfs / "base"
    subvolume.create(base)
    for number in range(FILES):
        directory = base / f"d{number % DIRECTORIES}"
        directory.mkdir(exist_ok=True)
        path = directory / f"f{number}"
        path.write_bytes(os.urandom(SIZE))
        os.utime(path, ns=OLD)
    return base


@pytest.fixture
def child(base: Path) -> Path:
    """
    A writable snapshot of it.
    """
    subvolume.set_read_only(base)
    subvolume.snapshot(base, base.parent / "child")
    return base.parent / "child"


def measured(root: Path, parent: Path | None) -> Measured:
    filesystem.sync(root)
    with ExitStack() as stack:
        fds = []
        for path in filter(None, (root, parent)):
            fds.append(os.open(path, os.O_RDONLY))
            stack.callback(os.close, fds[-1])
        return usage.measure(fds[0], subvolume.get_info(root).otransid, fds[1] if parent else None)


def files(root: Path, number: int = 100) -> list[Path]:
    return [root / f"d{index % DIRECTORIES}" / f"f{index}" for index in range(number)]


def each(action: Callable[[Path], object], number: int = 100) -> Callable[[Path], object]:
    return lambda root: [action(path) for path in files(root, number)]


def new_in_one(root: Path) -> None:
    for number in range(100):
        (root / "d0" / f"new{number}").write_bytes(os.urandom(SIZE))


def new_in_forty(root: Path) -> None:
    for number in range(100):
        (root / f"d{number % DIRECTORIES}" / f"new{number}").write_bytes(os.urandom(SIZE))


def write_at(offset: int, data: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    return write


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(100))


def specials(root: Path) -> None:
    for number in range(50):
        (root / f"link{number}").symlink_to("x" * 50)
    for number in range(10):
        os.mkfifo(root / f"fifo{number}")
        (root / f"directory{number}").mkdir()


def replace_by_copy(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=OLD)
    new.rename(path)


def small_files(root: Path) -> None:
    for number in range(20):
        (root / f"small{number}").write_bytes(b"x" * 1000)


def sparse(root: Path) -> None:
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(os.urandom(4096))


def preallocated(root: Path) -> None:
    with open(root / "preallocated", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)


def linked(root: Path) -> None:
    for path in files(root, 8):
        os.link(path, path.with_name(path.name + "-link"))


def partly(root: Path) -> None:
    (root / "large").write_bytes(os.urandom(1 << 20))
    filesystem.sync(root)
    write_at(1 << 19, os.urandom(4096))(root / "large")


# What is done, bytes added and inodes changed on disk, and, where the search by inode number and the walk by path
# differ, what the search says by containerd's definition.
CASES: dict[str, tuple[Callable[[Path], object], Usage, Usage | None]] = {
    "nothing": (lambda root: None, Usage(0, 0), None),
    "new files in one directory": (new_in_one, Usage(100 * SIZE, 100), None),
    "new files in 40 directories": (new_in_forty, Usage(100 * SIZE, 100), None),
    "new small files": (small_files, Usage(20 * 1000, 20), None),
    "overwritten": (each(write_at(0, os.urandom(SIZE))), Usage(100 * SIZE, 100), None),
    "one byte changed": (each(write_at(5000, b"x")), Usage(100 * 4096, 100), None),
    "appended": (each(append), Usage(100 * 4096, 100), None),
    "truncated": (each(lambda path: os.truncate(path, 4096)), Usage(0, 100), None),
    "chmod": (each(lambda path: path.chmod(0o600)), Usage(0, 100), None),
    "chown of all": (each(lambda path: os.chown(path, 1, 1), FILES), Usage(0, FILES), None),
    "deleted": (each(lambda path: path.unlink()), Usage(0, 0), None),
    "read": (each(lambda path: path.read_bytes()), Usage(0, 0), None),
    "touched": (each(lambda path: path.touch()), Usage(0, 100), None),
    "same times again": (each(lambda path: os.utime(path, ns=OLD)), Usage(0, 100), None),
    "renamed": (each(lambda path: path.rename(path.with_suffix(".new"))), Usage(0, 100), Usage(0, 0)),
    "a directory renamed": (lambda root: (root / "d0").rename(root / "renamed"), Usage(0, 0), Usage(0, 0)),
    "hard links": (linked, Usage(0, 8), None),
    "xattrs": (each(lambda path: os.setxattr(path, "user.a", b"b")), Usage(0, 100), None),
    "symlinks, fifos and directories": (specials, Usage(50 * 50, 70), None),
    "replaced by equal copies": (each(replace_by_copy), Usage(100 * SIZE, 100), Usage(100 * SIZE, 100)),
    "sparse": (sparse, Usage(4096, 1), None),
    "preallocated": (preallocated, Usage(1 << 20, 1), None),
    "partly overwritten": (partly, Usage((1 << 20) + 4096, 1), None),
}


@pytest.mark.btrfs
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, base: Path, child: Path) -> None:
    """
    Both definitions are exact, whatever was done; the search finds what a walk of both trees does.
    """
    action, added, by_number = CASES[name]
    action(child)
    result = measured(child, base)
    assert result.added == added
    assert result.containerd == (by_number or containerd(child, base))


@pytest.mark.btrfs
@pytest.mark.parametrize("name", CASES)
def test_walk(name: str, base: Path, child: Path) -> None:
    """
    A walk of both trees, which needs no privilege, counts the inodes that containerd does.
    """
    action, added, by_number = CASES[name]
    action(child)
    filesystem.sync(child)
    with ExitStack() as stack:
        fds = [os.open(path, os.O_RDONLY) for path in (child, base)]
        for fd in fds:
            stack.callback(os.close, fd)
        result = usage.walk(*fds)
    assert result.containerd == containerd(child, base)
    if not by_number:
        assert result.added.inodes == added.inodes


@pytest.mark.btrfs
def test_unlinked_but_open(base: Path, child: Path) -> None:
    """
    A file that is unlinked and open takes space, and is no file.
    """
    with open(child / "file", "wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.unlink(child / "file")
        os.fsync(file.fileno())
        assert measured(child, base) == Measured(Usage(1 << 20, 0), Usage(0, 0))


@pytest.mark.btrfs
def test_without_parent(base: Path) -> None:
    """
    Without a parent everything counts, the root directory included, and what was made in the first transaction.
    """
    total = Usage(FILES * SIZE, FILES + DIRECTORIES + 1)
    assert measured(base, None) == Measured(total, total)
    assert containerd(base, None) == total
    subvolume.create(base.parent / "empty")
    assert measured(base.parent / "empty", None) == Measured(Usage(0, 1), Usage(0, 1))


@pytest.mark.btrfs
def test_reflinks(base: Path, child: Path) -> None:
    """
    Extents shared with the parent are not added, and those shared inside are added once.
    """
    clone = child / "clone"
    with open(child / "d0" / "f0", "rb") as source, open(clone, "wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), SIZE) == SIZE
    assert measured(child, base) == Measured(Usage(0, 1), Usage(SIZE, 1))
    (child / "new").write_bytes(os.urandom(SIZE))
    filesystem.sync(child)
    for number in range(3):
        with open(child / "new", "rb") as source, open(child / f"clone{number}", "wb") as target:
            assert os.copy_file_range(source.fileno(), target.fileno(), SIZE) == SIZE
    assert measured(child, base) == Measured(Usage(SIZE, 5), Usage(5 * SIZE, 5))


@pytest.mark.btrfs
def test_compressed(btrfs_mount: Callable[..., Path]) -> None:
    """
    Compressed data counts as what it takes on disk; containerd sees its whole size.
    """
    mount = btrfs_mount(options="compress-force=zstd")
    for name in ("base", "child"):
        if name == "base":
            subvolume.create(mount / name)
        else:
            subvolume.snapshot(mount / "base", mount / name)
    (mount / "child" / "zeros").write_bytes(b"0123456789abcdef" * (1 << 16))
    result = measured(mount / "child", mount / "base")
    assert 0 < result.added.size <= 1 << 16
    assert result.added.size % 4096 == 0
    assert result.containerd == Usage(1 << 20, 1) == containerd(mount / "child", mount / "base")


@pytest.mark.btrfs
def test_nested_subvolumes(base: Path, child: Path) -> None:
    """
    What is in a nested subvolume is not in this one.
    """
    subvolume.create(child / "nested")
    (child / "nested" / "file").write_bytes(os.urandom(1 << 20))
    assert measured(child, base) == Measured(Usage(0, 0), Usage(0, 0))


@pytest.mark.btrfs
def test_without_privilege(base: Path, child: Path, unprivileged: Callable[..., Any], btrfs: Path) -> None:
    """
    Without CAP_SYS_ADMIN the trees are walked, and the same inodes found.
    """
    new_in_forty(child)
    each(append)(child)
    each(lambda path: path.unlink(), 10)(child)
    for path in (base, child):
        subvolume.set_read_only(path, read_only=False)
        path.chmod(0o755)
    expected = measured(child, base)
    result = unprivileged(measured, child, base)
    assert result.containerd == expected.containerd
    assert result.added.inodes == expected.added.inodes
    assert result.added.size == expected.containerd.size


def test_walk_beside_changes(tmp_path: Path) -> None:
    """
    A file that is deleted while the tree is walked does not count, and stops nothing.
    """
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / str(number)).touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        found = usage._lstats(fd)
        seen = [next(found)[0] for _ in range(5)]  # the root, its directories, and one file of the first
        for path in (tmp_path / name / str(number) for name in ("a", "b", "c") for number in range(3)):
            path.unlink()
        seen += [path for path, _ in found]
    finally:
        os.close(fd)
    assert len(seen) == len(set(seen)) == 5


# Of a store


@pytest.fixture
def open_(btrfs: Path) -> Iterator[Callable[..., Snapshotter]]:
    """
    A function that opens the store, having made it the first time.
    """
    root = btrfs / "root"
    with ExitStack() as stack:

        def open_(**options: Any) -> Snapshotter:
            make = Snapshotter if root.exists() else Snapshotter.create
            return stack.enter_context(make(root, **options))

        yield open_


def content(store: Snapshotter, id: int) -> Path:
    return Path(store.root, "snapshots", str(id), "fs")


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """
    Counts the measurements; the list has an entry each.
    """
    calls: list[int] = []
    measure = usage.measure

    def counting(fd: int, base_transid: int, parent_fd: int | None) -> Measured:
        calls.append(base_transid)
        return measure(fd, base_transid, parent_fd)

    with monkeypatch.context() as patch:
        patch.setattr(usage, "measure", counting)
        yield calls


@pytest.mark.btrfs
@pytest.mark.parametrize("definition", ["added", "containerd"])
def test_chain(definition: str, open_: Callable[..., Snapshotter]) -> None:
    """
    Along a chain each snapshot counts its own, by the definition that was chosen; commits neither add nor lose; what
    was measured of a committed one is kept in its record, and both definitions are.
    """
    unit = 1000 if definition == "added" else 4096
    with open_(usage=definition) as store:
        parent, expected = "", {}
        for number in range(1, 5):
            store.prepare("k", parent)
            for file in range(number):
                (content(store, number) / f"{number}-{file}").write_bytes(b"x" * 1000)
            filesystem.sync(store.root)
            expected[f"c{number}"] = Usage(number * unit, number + (number == 1))
            assert store.usage("k") == expected[f"c{number}"]
            store.commit(f"c{number}", "k")
            assert store.usage(f"c{number}") == expected[f"c{number}"]
            parent = f"c{number}"
        store.view("view", parent)
        assert store.usage("view") == Usage(0, 0)
        settle(store)
    for other in ("added", "containerd"):
        with open_(usage=other) as store:
            for name, before in expected.items():
                number = int(name[1:])
                after = store.usage(name)
                assert after.inodes == before.inodes
                assert after.size == number * (1000 if other == "added" else 4096)
    data = os.getxattr(Path(store.root, "snapshots", "4"), XATTR)
    assert records.decode(data, 4).usage == Measured(Usage(4000, 4), Usage(4 * 4096, 4))


@pytest.mark.btrfs
def test_committed_after_a_restart(open_: Callable[..., Snapshotter]) -> None:
    """
    A committed one that was not measured before the store was closed is, by what the active began with.
    """
    with open_() as store:
        store.prepare("k")
        (content(store, 1) / "base").write_bytes(os.urandom(SIZE))
        store.commit("base", "k")
        store.prepare("k", "base")
        (content(store, 2) / "new").write_bytes(os.urandom(SIZE))
        store.commit("new", "k")
        store.cleanup()
    with open_() as store:
        assert store.usage("new") == Usage(SIZE, 1)
        assert store.usage("base") == Usage(SIZE, 2)


@pytest.mark.btrfs
def test_cached(open_: Callable[..., Snapshotter], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without a change nothing is searched again; after one, it is; a committed one is searched once for good.
    """
    store = open_()
    store.prepare("k")
    store.commit("base", "k")
    store.prepare("active", "base")
    filesystem.sync(store.root)
    with counted(monkeypatch) as calls:
        for _ in range(3):
            assert store.usage("active") == Usage(0, 0)
        assert len(calls) == 1
        (content(store, 2) / "new").write_bytes(os.urandom(SIZE))
        filesystem.sync(store.root)
        for _ in range(3):
            assert store.usage("active") == Usage(SIZE, 1)
        assert len(calls) == 2
        store.view("view", "base")
        store.usage("view")
        assert len(calls) == 2
        store.commit("new", "active")
        for _ in range(3):
            assert store.usage("new") == Usage(SIZE, 1)
        assert len(calls) == 3


@pytest.mark.btrfs
def test_fork(open_: Callable[..., Snapshotter]) -> None:
    """
    A fork counts from where its source began: what the source had written by then, and what it writes itself.
    """
    store = open_()
    store.prepare("k")
    store.commit("base", "k")
    for key, parent in (("on base", "base"), ("alone", "")):
        store.prepare(key, parent)
        newest = max(Path(store.root, "snapshots").iterdir(), key=lambda path: int(path.name))
        (newest / "fs" / "before").write_bytes(os.urandom(SIZE))
        root = Usage(0, 0 if parent else 1)
        store.fork(key, f"{key} forked")
        fork = content(store, int(newest.name) + 1)
        (newest / "fs" / "after").write_bytes(os.urandom(SIZE))
        (fork / "one").write_bytes(os.urandom(SIZE))
        (fork / "two").write_bytes(os.urandom(SIZE))
        filesystem.sync(store.root)
        assert store.usage(key) == root + Usage(2 * SIZE, 2)
        assert store.usage(f"{key} forked") == root + Usage(3 * SIZE, 3)
        store.fork(f"{key} forked", f"{key} twice")
        store.commit(f"{key} committed", f"{key} twice")
        assert store.usage(f"{key} committed") == root + Usage(3 * SIZE, 3)


@pytest.mark.btrfs
def test_failed_reading(open_: Callable[..., Snapshotter], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A search that the disk fails is an error of that call, and the store goes on.
    """
    store = open_()
    store.prepare("k")

    def search(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(Exception, match="cannot measure snapshot 'k': Input/output"):
        patch.setattr(tree_search, "search_changes", search)
        store.usage("k")
    store.commit("c", "k")
    assert store.usage("c") == Usage(0, 1)


def test_directories(tmp_path: Path) -> None:
    """
    Plain directories are walked: files of the parent, copied, do not count.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes, usage="containerd") as store:
        store.prepare("k")
        (content(store, 1) / "base").write_bytes(os.urandom(SIZE))
        store.commit("base", "k")
        assert store.usage("base").inodes == 2
        store.prepare("k", "base")
        assert store.usage("k") == Usage(0, 0)
        (content(store, 2) / "new").write_bytes(os.urandom(SIZE))
        assert store.usage("k") == Usage((content(store, 2) / "new").stat().st_blocks * 512, 1)
