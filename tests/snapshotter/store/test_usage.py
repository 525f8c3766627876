"""
Usage of a snapshot: the search by generation, compared with arithmetic and with a walk of both trees.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybtrfs import filesystem, items, subvolume, sysfs, tree_search
from pybtrfs.items import FileExtent, InlineExtent, InodeItem, Key
from pybtrfs.path import owned
from pybtrfs.subvolume.files import differs
from snapshotter import Snapshotter, Usage
from snapshotter.analysis import inventory
from snapshotter.model import Measured
from snapshotter.store import btrfs as store_btrfs
from snapshotter.store import records, usage
from snapshotter.store.btrfs import BtrfsVolumes
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
    Return containerd's usage: the sizes of all inodes that its double walk finds added or modified, each once.

    The walk compares the files of each path by mode, owner and device, and files that are not directories also by size,
    modification time and number of links.
    """
    seen: dict[tuple[int, int], int] = {}
    for directory, names, files in os.walk(root):
        for path in (
            Path(directory, name) for name in ([".", *names, *files] if directory == str(root) else names + files)
        ):
            now = path.lstat()
            before = None
            if parent is not None:
                with suppress(FileNotFoundError, NotADirectoryError):
                    before = (parent / path.relative_to(root)).lstat()

            def compared(status: os.stat_result) -> tuple[object, ...]:
                identity = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
                if stat.S_ISDIR(status.st_mode):
                    return identity
                return (*identity, status.st_size, status.st_mtime_ns, status.st_nlink)

            if before is None or compared(now) != compared(before):
                seen[now.st_dev, now.st_ino] = blocks(path)
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


# Name of the case: the change, the bytes and inodes added on disk, and the search's usage by containerd's definition
# where it differs from a walk, because the search compares inode numbers and the walk compares paths.
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
    Both definitions are exact for every change, and the search agrees with a walk of both trees.
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
    A walk of both trees needs no privilege, and counts the same inodes as containerd.
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
    A file that is unlinked but open counts with its bytes, not with its inode.
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
    Without a parent everything counts, including the root directory and files of the first transaction.
    """
    total = Usage(FILES * SIZE, FILES + DIRECTORIES + 1)
    assert measured(base, None) == Measured(total, total)
    assert containerd(base, None) == total
    subvolume.create(base.parent / "empty")
    assert measured(base.parent / "empty", None) == Measured(Usage(0, 1), Usage(0, 1))


@pytest.mark.btrfs
def test_reflinks(base: Path, child: Path) -> None:
    """
    Extents shared with the parent do not count; extents shared inside the snapshot count once.
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
    Compressed data counts with its size on disk, and by containerd's definition with its whole size.
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
    Everything in nested subvolumes counts, at any depth; what a nested snapshot shares counts once.
    """
    (child / "file").write_bytes(os.urandom(1 << 20))
    subvolume.create(child / "nested")
    (child / "nested" / "directory").mkdir()
    subvolume.create(child / "nested" / "directory" / "inner")
    for path in child / "nested", child / "nested" / "directory" / "inner":
        (path / "file").write_bytes(os.urandom(1 << 20))
    # Two files of a MiB, one directory and two roots more than the file itself.
    assert measured(child, base) == Measured(Usage(3 << 20, 6), Usage(3 << 20, 6))
    assert measured(child, base).containerd == containerd(child, base)
    with owned(os.open(child, os.O_RDONLY)) as fd, owned(os.open(base, os.O_RDONLY)) as base_fd:
        walked = usage.walk(fd, base_fd)
        assert walked == Measured(Usage(3 << 20, 6), Usage(3 << 20, 6))
    subvolume.snapshot(child, child / "copy")
    (child / "file").unlink()
    # The copy has the file still, and shares the rest with the base.
    assert measured(child, base).added.size == 3 << 20
    subvolume.delete(child / "copy")
    assert measured(child, base).added.size == 2 << 20


@pytest.mark.btrfs
def test_moved_subvolumes(base: Path, child: Path, btrfs: Path) -> None:
    """
    A subvolume that is moved into a snapshot counts whole, although it is older.
    """
    for name in "old", "source", "child-2":
        if name != "child-2":
            subvolume.create(btrfs / name)
            (btrfs / name / "file").write_bytes(os.urandom(1 << 20))
    subvolume.snapshot(btrfs / "source", btrfs / "copy")
    (btrfs / "copy" / "own").write_bytes(os.urandom(1 << 20))
    subvolume.snapshot(base, btrfs / "child-2")
    (btrfs / "old").rename(btrfs / "child-2" / "old")
    assert measured(btrfs / "child-2", base) == Measured(Usage(1 << 20, 2), Usage(1 << 20, 2))
    (btrfs / "copy").rename(btrfs / "child-2" / "copy")
    assert measured(btrfs / "child-2", base).added.size == 2 << 20


@pytest.mark.btrfs
def test_without_privilege(base: Path, child: Path, unprivileged: Callable[..., Any], btrfs: Path) -> None:
    """
    Without CAP_SYS_ADMIN the trees are walked, and the same inodes are found.
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


def test_walk_during_deletion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file that is deleted while the tree is walked does not count, and is not an error.
    """
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / str(number)).touch()
    fwalk = os.fwalk

    def deleting(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str], int]]:
        for path, names, files, fd in fwalk(*arguments, **options):
            for name in files[1:]:
                os.unlink(name, dir_fd=fd)
            yield path, names, files, fd

    monkeypatch.setattr(os, "fwalk", deleting)
    with owned(os.open(tmp_path, os.O_RDONLY)) as fd:
        assert usage.walk(fd, None).added.inodes == 1 + 3 + 3


@pytest.mark.btrfs
def test_measure_by_id(base: Path, child: Path) -> None:
    """
    Subvolumes are measured by their ids, without opening them; a deleted one is not found.
    """
    new_in_one(child)
    each(append)(child)
    expected = measured(child, base)
    info, base_id = subvolume.get_info(child), subvolume.get_id(base)
    with owned(os.open(base.parent, os.O_RDONLY)) as fd:
        assert usage.measure_by_id(fd, info.id, info.otransid, base_id) == expected
        subvolume.create(child / "nested")
        (child / "nested" / "file").write_bytes(os.urandom(1 << 20))
        expected = measured(child, base)
        nested = (subvolume.get_info(child / "nested"),)
        assert usage.measure_by_id(fd, info.id, info.otransid, base_id, nested) == expected
        subvolume.delete(child, recursive=True)
        with pytest.raises(FileNotFoundError):
            usage.measure_by_id(fd, info.id, info.otransid, base_id)


@pytest.mark.btrfs
def test_refused_search(base: Path, child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the kernel refuses the search, the trees are walked instead.
    """

    def search(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    new_in_one(child)
    expected = measured(child, base)
    monkeypatch.setattr(tree_search, "sum_changes", search)
    result = measured(child, base)
    assert result.containerd == expected.containerd
    assert result.added == Usage(expected.containerd.size, expected.added.inodes)


@pytest.mark.btrfs
def test_other_parent(base: Path, child: Path) -> None:
    """
    A changed inode that is older than the snapshot and not in the parent, as in a replaced parent, counts whole.
    """
    subvolume.create(base.parent / "other")
    path = files(child, 1)[0]
    path.rename(path.with_suffix(".new"))
    assert measured(child, base) == Measured(Usage(0, 1), Usage(0, 0))
    # The file and its directory.
    assert measured(child, base.parent / "other") == Measured(Usage(0, 2), Usage(SIZE, 2))


# Random changes, compared with a search of all items in Python


def searched(root: Path, base: Path | None) -> Measured:
    """
    Return the usage by the definitions alone, from all items of the trees.
    """
    info = subvolume.get_info(root)
    since = info.otransid if base else 0
    parent: dict[int, InodeItem] = {}
    for item in tree_search.search(base) if base else ():
        if item.type == items.INODE_ITEM_KEY:
            parent[item.objectid] = items.inode_item(item.data)
    trees = [(info.id, since, parent)]
    for _, nested in subvolume.iterate(root, top=0):
        trees.append((nested.id, min(since, nested.otransid) if nested.parent_uuid else 0, {}))
    size = changed = modified = allocated = 0
    extents: dict[int, int] = {}
    first, last = Key(items.FIRST_FREE_OBJECTID, 0, 0), Key(items.LAST_FREE_OBJECTID, 255, tree_search.MAX)
    for tree_id, transid, known in trees:
        for item in tree_search.search(root, tree_id=tree_id, min_key=first, max_key=last):
            match items.decode(item):
                case InodeItem() as now if now.transid > transid and now.nlink:
                    before = known.get(item.objectid) if now.generation <= transid else None
                    changed += before is None or differs(now, before, now.ctime, before.ctime)
                    if before is None or differs(now, before, now.mtime, before.mtime):
                        modified += 1
                        allocated += -(-now.nbytes // 4096) * 4096
                case InlineExtent() as extent if extent.generation > transid:
                    size += len(extent.data)
                case FileExtent() as extent if extent.generation > transid and extent.disk_bytenr:
                    extents[extent.disk_bytenr] = extent.disk_num_bytes
    return Measured(Usage(size + sum(extents.values()), changed), Usage(allocated, modified))


PATHS = [f"{directory}{name}" for directory in ("", "d/", "n/", "n/s/") for name in "abns"]


class Changes:
    """
    Random changes below a directory. A change that is impossible, such as one of a missing file, does nothing.
    """

    def __init__(self, root: Path, snapshots_of: list[Path], stack: ExitStack) -> None:
        self._root = root
        self._sources = [root, *snapshots_of]
        self._stack = stack

    def apply(self, change: str, first: str, second: str, number: int) -> None:
        with suppress(OSError, ValueError):
            getattr(self, change)(self._root / first, self._root / second, number)

    def write(self, path: Path, other: Path, number: int) -> None:
        path.write_bytes(os.urandom(number))

    def compress(self, path: Path, other: Path, number: int) -> None:
        path.touch()
        os.setxattr(path, "btrfs.compression", b"zstd")
        path.write_bytes(b"0123456789abcdef" * number)

    def overwrite(self, path: Path, other: Path, number: int) -> None:
        write_at(number // 2, b"x" * (number % 9000))(path)

    def truncate(self, path: Path, other: Path, number: int) -> None:
        os.truncate(path, number)

    def allocate(self, path: Path, other: Path, number: int) -> None:
        with owned(os.open(path, os.O_RDWR | os.O_CREAT)) as fd:
            os.posix_fallocate(fd, number, number + 1)

    def clone(self, path: Path, other: Path, number: int) -> None:
        with open(path, "rb") as source, open(other, "wb") as target:
            os.copy_file_range(source.fileno(), target.fileno(), 1 << 20)

    def set_mode(self, path: Path, other: Path, number: int) -> None:
        path.chmod(0o700 | number % 64)

    def set_owner(self, path: Path, other: Path, number: int) -> None:
        os.chown(path, number % 3, number % 2, follow_symlinks=False)

    def set_times(self, path: Path, other: Path, number: int) -> None:
        os.utime(path, ns=(number, number % 3), follow_symlinks=False)

    def set_attribute(self, path: Path, other: Path, number: int) -> None:
        os.setxattr(path, "user.a", b"v" * (number % 2000))

    def read(self, path: Path, other: Path, number: int) -> None:
        path.read_bytes()

    def rename(self, path: Path, other: Path, number: int) -> None:
        path.rename(other)

    def link(self, path: Path, other: Path, number: int) -> None:
        os.link(path, other)

    def unlink(self, path: Path, other: Path, number: int) -> None:
        path.unlink()

    def keep_open(self, path: Path, other: Path, number: int) -> None:
        self._stack.callback(os.close, os.open(path, os.O_RDONLY))
        path.unlink()

    def make_directory(self, path: Path, other: Path, number: int) -> None:
        path.mkdir()

    def make_symlink(self, path: Path, other: Path, number: int) -> None:
        path.symlink_to("x" * (1 + number % 4000))

    def make_device(self, path: Path, other: Path, number: int) -> None:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # /dev/null, because a change may open it

    def sync(self, path: Path, other: Path, number: int) -> None:
        filesystem.sync(self._root)

    def create_subvolume(self, path: Path, other: Path, number: int) -> None:
        subvolume.create(path)

    def snapshot(self, path: Path, other: Path, number: int) -> None:
        subvolume.snapshot(self._sources[number % len(self._sources)], path)

    def snapshot_nested(self, path: Path, other: Path, number: int) -> None:
        subvolume.snapshot(other, path)

    def delete_subvolume(self, path: Path, other: Path, number: int) -> None:
        subvolume.delete(path, recursive=True)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from([name for name in vars(Changes) if name[0] != "_" and name != "apply"]),
        st.sampled_from(PATHS),
        st.sampled_from(PATHS),
        st.sampled_from([0, 1, 2, 100, 2000, 4096, 20_000]) | st.integers(0, 300_000),
    ),
    max_size=60,
)


@pytest.mark.btrfs
def test_random_changes(btrfs: Path) -> None:
    """
    The sums of C are those of the definitions, for any tree and any changes, with and without a parent.
    """
    count = 0

    @settings(max_examples=100)
    @given(CHANGES, CHANGES)
    def check(before: list[tuple[str, str, str, int]], after: list[tuple[str, str, str, int]]) -> None:
        nonlocal count
        count += 1
        old, base, child = (btrfs / f"{name}-{count}" for name in ("old", "base", "child"))
        with ExitStack() as stack:
            for path in (old, base):
                subvolume.create(path)
                stack.callback(subvolume.delete, path, recursive=True)
                (path / "d").mkdir()
                for name in ("a", "b", "d/a", "d/b"):
                    (path / name).write_bytes(os.urandom(5000))
            for change in before:
                Changes(base, [old], stack).apply(*change)
            subvolume.set_read_only(base)
            subvolume.snapshot(base, child)
            stack.callback(subvolume.delete, child, recursive=True)
            for change in after:
                Changes(child, [base, old], stack).apply(*change)
            assert measured(child, base) == searched(child, base)
            assert measured(child, None) == searched(child, None)

    check()


@pytest.mark.btrfs
@pytest.mark.parametrize("step", [1, 2, 4, 5, 40])
def test_many_inodes(step: int, base: Path, child: Path) -> None:
    """
    Inodes of the parent are found whatever the distance between them, also next to inodes that are new or missing.
    """
    for number in range(0, 3 * FILES, 3):
        (child / f"new{number}").touch()
    for path in files(child, FILES)[::step]:
        os.chown(path, 1, 1)
        path.read_bytes()
    for path in files(child, FILES)[1::7]:
        path.unlink()
    result = measured(child, base)
    assert result == searched(child, base)
    subvolume.create(base.parent / "other")
    (base.parent / "other" / "file").touch()
    subvolume.snapshot(child, child / "copy")
    assert measured(child, base.parent / "other") == searched(child, base.parent / "other")


# Usage of the snapshots of a store


@pytest.fixture
def open_(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Snapshotter]]:
    """
    A function that opens the store, and creates it the first time. The store sees each commit at once.
    """
    monkeypatch.setattr(store_btrfs, "COMMITS_SECONDS", 0.0)
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
    Record the base generation of each measurement in the list.
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
    In a chain each snapshot counts its own changes, by the chosen definition, before and after its commit.

    The usage of a committed snapshot is kept in its record, by both definitions.
    """
    unit = 1000 if definition == "added" else 4096
    with open_(usage=definition) as store:
        parent, expected = "", {}
        for number in range(1, 5):
            store.prepare("k", parent)
            for file in range(number):
                (content(store, 2 * number - 1) / f"{number}-{file}").write_bytes(b"x" * 1000)
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
    data = os.getxattr(Path(store.root, "snapshots", "7"), XATTR)
    assert records.decode(data, 7).usage == Measured(Usage(4000, 4), Usage(4 * 4096, 4))


@pytest.mark.btrfs
def test_committed_after_a_restart(open_: Callable[..., Snapshotter]) -> None:
    """
    A committed snapshot that was not measured before the store was closed is measured after the next open.
    """
    with open_() as store:
        store.prepare("k")
        (content(store, 1) / "base").write_bytes(os.urandom(SIZE))
        store.commit("base", "k")
        store.prepare("k", "base")
        (content(store, 3) / "new").write_bytes(os.urandom(SIZE))
        store.commit("new", "k")
        store.cleanup()
    with open_() as store:
        assert store.usage("new") == Usage(SIZE, 1)
        assert store.usage("base") == Usage(SIZE, 2)


@pytest.mark.btrfs
def test_cached(open_: Callable[..., Snapshotter], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An active snapshot is searched again only after a change, and a committed snapshot once.
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
        (content(store, 3) / "new").write_bytes(os.urandom(SIZE))
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
def test_unchanged(open_: Callable[..., Snapshotter], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The kernel is asked for commits once a second, and for the subvolume only after a commit.
    """
    asked: list[str] = []

    def asking(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            asked.append(name)
            return function(*arguments)

        return ask

    def questions() -> list[str]:
        asked.clear()
        before = store.usage("k")
        known = store.opened.known_usage("k")
        assert known in (None, before)
        return [*asked, "known" if known else "unknown"]

    store = open_()
    store.prepare("k")
    filesystem.sync(store.root)
    assert store.opened.known_usage("k") is None
    monkeypatch.setattr(sysfs, "count_commits", asking("commits", sysfs.count_commits))
    monkeypatch.setattr(BtrfsVolumes, "change_counter", asking("subvolume", BtrfsVolumes.change_counter))
    monkeypatch.setattr(usage, "measure", asking("measure", usage.measure))
    assert questions() == ["commits", "subvolume", "measure", "commits", "known"]
    assert questions() == ["commits", "commits", "known"]
    monkeypatch.setattr(store_btrfs, "COMMITS_SECONDS", 3600.0)
    (content(store, 1) / "file").write_bytes(os.urandom(SIZE))
    filesystem.sync(store.root)
    assert questions() == ["known"]
    assert store.usage("k") == Usage(0, 1)
    monkeypatch.setattr(store_btrfs, "COMMITS_SECONDS", 0.0)
    assert questions() == ["commits", "commits", "subvolume", "measure", "commits", "known"]
    assert store.usage("k") == Usage(SIZE, 2)
    (Path(store.root).parent / "file").touch()
    filesystem.sync(store.root)
    assert questions() == ["commits", "commits", "subvolume", "commits", "known"]
    assert questions() == ["commits", "commits", "known"]
    # On kernels that do not count commits, the subvolume is asked each time.
    monkeypatch.setattr(sysfs, "count_commits", lambda fsid: None)
    assert questions() == ["subvolume", "unknown"]
    assert questions() == ["subvolume", "unknown"]


@pytest.mark.btrfs
def test_commit_of_a_running_transaction(open_: Callable[..., Snapshotter]) -> None:
    """
    A change is seen after its commit, although the filesystem has had the same generation since the measurement.
    """
    store = open_()
    store.prepare("k")
    filesystem.sync(store.root)
    (content(store, 1) / "one").write_bytes(b"x" * 1000)
    with owned(os.open(content(store, 1) / "one", os.O_RDONLY)) as fd:
        os.fsync(fd)
    store.usage("k")
    (content(store, 1) / "two").write_bytes(b"x" * 1000)
    filesystem.sync(store.root)
    assert store.usage("k") == Usage(2000, 3)


@pytest.mark.btrfs
def test_fork(open_: Callable[..., Snapshotter]) -> None:
    """
    A fork counts the data that its source had written by then, and its own changes.
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
    An I/O error of a search fails that call only.
    """
    store = open_()
    store.prepare("k")

    def search(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(tree_search, "sum_changes", search)
        with pytest.raises(Exception, match="cannot measure snapshot 'k': Input/output"):
            store.usage("k")
    store.commit("c", "k")
    assert store.usage("c") == Usage(0, 1)


def test_directories(tmp_path: Path) -> None:
    """
    On plain directories the trees are walked, and the copied files of the parent do not count.
    """
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes, usage="containerd") as store:
        store.prepare("k")
        (content(store, 1) / "base").write_bytes(os.urandom(SIZE))
        store.commit("base", "k")
        assert store.usage("base").inodes == 2
        store.prepare("k", "base")
        assert store.usage("k") == Usage(0, 0)
        (content(store, 3) / "new").write_bytes(os.urandom(SIZE))
        assert store.usage("k") == Usage((content(store, 3) / "new").stat().st_blocks * 512, 1)


@pytest.mark.btrfs
@pytest.mark.parametrize("definition", ["added", "containerd"])
@pytest.mark.parametrize("parent", ["", "base"])
def test_change_of_a_nested_subvolume(
    definition: str, parent: str, open_: Callable[..., Snapshotter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A write in a nested subvolume alone changes the usage, at any depth, and an unchanged one is not measured again.

    The inventory says the same.
    """
    with open_(usage=definition) as store:
        if parent:
            store.prepare("build")
            store.commit(parent, "build")
        store.prepare("k", parent)
        inner = Path(store.subvolume("k"), "nested", "inner")
        before = store.usage("k").size
        subvolume.create(inner.parent)
        subvolume.create(inner)
        store.usage("k")  # in the transaction that made them
        for number, path in enumerate((inner, inner.parent, inner), 1):
            (path / str(number)).write_bytes(os.urandom(1 << 20))
            store.usage("k")  # before the write-back
            filesystem.sync(path)
            assert store.usage("k").size == before + (number << 20)
            entry = inventory.take(store).entries["k"]
            assert entry.usage == store.usage("k")
        with counted(monkeypatch) as calls:
            store.usage("k")
            assert not calls
            subvolume.delete(inner)
            filesystem.sync(store.root)
            assert store.usage("k").size == before + (1 << 20)
