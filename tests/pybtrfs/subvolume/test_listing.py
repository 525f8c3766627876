"""
Listing subvolumes on real btrfs.
"""

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, ioctl, kernel, subvolume, syscall
from pybtrfs.subvolume import listing
from tests.conftest import in_child
from tests.pybtrfs.subvolume.common import FORMS, below, children, contained, form, make, nest, open_directory, without

pytestmark = pytest.mark.btrfs


@pytest.mark.fake
def test_iterate(base: Path) -> None:
    """
    All subvolumes below a subvolume are listed with their paths and the same info as get_info returns.
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


@pytest.mark.fake
def test_iterate_from_the_top(base: Path) -> None:
    """
    Paths from the top level equal those of get_path.
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
    A listing looks up each directory once, and not the roots of subvolumes.
    """
    make(base, *(f"{number}" for number in range(50)), *(f"directory/{number}" for number in range(50)))
    calls: list[str] = []
    call = kernel.current.ioctl

    def counting(fd: int, name: str, *argument: Any) -> int:
        calls.append(name)
        return call(fd, name, *argument)

    top = subvolume.get_id(base)
    monkeypatch.setattr(kernel.current, "ioctl", counting)
    assert len(list(subvolume.iterate(base, top=top))) == 100
    assert calls.count("BTRFS_IOC_INO_LOOKUP") == 1


def test_iterate_with_known_directories(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The kernel is not asked for a known directory, unless it is in another subvolume with the same inode number.
    """
    make(base, "directory/a", "directory/b", "directory/a/inside/c")
    look_up, asked = ioctl.ino_lookup, []

    def noted(fd: int, treeid: int, objectid: int) -> tuple[int, bytes]:
        asked.append(treeid)
        return look_up(fd, treeid, objectid)

    top, inside = subvolume.get_id(base), subvolume.get_id(base / "directory/a")
    known = {(base / "directory/a/inside").stat().st_ino: "wrong/", (base / "directory").stat().st_ino: "directory/"}
    monkeypatch.setattr(ioctl, "ino_lookup", noted)
    found = {entry.path for entry in subvolume.iterate(base, top=top, directories=known)}
    assert found == {"directory/a", "directory/b", "directory/a/inside/c"}
    assert asked == [inside]


@pytest.mark.parametrize(
    ("top", "expected"),
    [("5", TypeError), (None, TypeError), (256.0, TypeError), (-1, ValueError), (1 << 64, ValueError)],
)
def test_iterate_below_a_wrong_id(base: Path, top: Any, expected: type[Exception]) -> None:
    """
    A top that is not the id of a subvolume is refused, by its value.
    """
    with pytest.raises(expected, match=f"{top!r} is not the id of a subvolume"):
        next(iter(subvolume.iterate(base, top=top)))


@pytest.mark.fake
def test_iterate_below_an_unknown_subvolume(base: Path) -> None:
    """
    A top that does not exist, or is deleted, is a FileNotFoundError.
    """
    make(base, "deleted")
    gone = subvolume.get_id(base / "deleted")
    subvolume.delete(base / "deleted")
    for top in (gone, 1 << 40):
        with pytest.raises(FileNotFoundError, match=f"subvolume {top} does not exist"):
            next(iter(subvolume.iterate(base, top=top)))


# Below any directory

NAMES = ("dir/deep/b", "dir/deep/b/in/c", "dir/a", "directory/d", "e")
DIRECTORIES = (".", "dir", "dir/deep", "dir/deep/b", "dir/deep/b/in", "dir/a", "directory")


def listed_below(directory: Any) -> list[str]:
    return sorted(entry.path for entry in subvolume.iterate_below(directory))


def expected_below(directory: str) -> list[str]:
    prefix = "" if directory == "." else directory + "/"
    return sorted(name.removeprefix(prefix) for name in NAMES if name.startswith(prefix))


@pytest.mark.fake
@pytest.mark.parametrize("kind", FORMS)
def test_iterate_below(base: Path, kind: str) -> None:
    """
    The subvolumes below any directory are listed with their paths from it, and the same info as get_info returns.
    """
    make(base, *NAMES)
    filesystem.sync(base)
    for directory in DIRECTORIES:
        with ExitStack() as stack:
            path = base / directory
            if subvolume.is_subvolume(path) or kind not in ("fd", "file"):
                target = stack.enter_context(form(path, kind))
            else:
                target = stack.enter_context(open_directory(path))
            assert listed_below(target) == expected_below(directory)
            for entry in subvolume.iterate_below(target):
                assert entry.info == subvolume.get_info(path / entry.path)


def test_iterate_below_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user gets the same paths as root, also below a directory in a subvolume that is closed to him.
    """
    make(base, *NAMES)
    for directory in DIRECTORIES:
        assert unprivileged(listed_below, base / directory) == expected_below(directory)
    with open_directory(base / "dir") as directory:
        base.chmod(0)
        assert unprivileged(listed_below, directory) == expected_below("dir")
        base.chmod(0o755)


def test_iterate_below_as_root_of_a_user_namespace(base: Path) -> None:
    """
    Root without CAP_SYS_ADMIN lists below a directory as an unprivileged user.
    """
    make(base, *NAMES)
    assert contained(listed_below, base / "dir") == expected_below("dir")


@pytest.mark.parametrize("privileged", [True, False])
def test_iterate_below_a_relative_path(
    base: Path, privileged: bool, monkeypatch: pytest.MonkeyPatch, unprivileged: Callable[..., Any]
) -> None:
    """
    A relative path is that of a directory, too.
    """
    make(base, *NAMES)
    monkeypatch.chdir(base / "dir")
    for path, directory in ((".", "dir"), ("deep", "dir/deep"), ("..", ".")):
        found = listed_below(path) if privileged else unprivileged(listed_below, path)
        assert found == expected_below(directory)


@pytest.mark.fake
def test_iterate_below_a_file(base: Path) -> None:
    """
    A file that is not a directory is a NotADirectoryError.
    """
    (base / "file").touch()
    for call in (
        lambda: list(subvolume.iterate_below(base / "file")),
        lambda: subvolume.get_path_below(base / "file", 5),
    ):
        with pytest.raises(NotADirectoryError) as caught:
            call()
        assert caught.value.filename == base / "file"


def test_iterate_below_a_mounted_directory(base: Path, tmp_path: Path) -> None:
    """
    A directory that is mounted elsewhere has the subvolumes of the directory, and paths that lead there by the mount.
    """
    make(base, *NAMES)
    syscall.mount(base / "dir", tmp_path, "", syscall.MS_BIND)
    try:
        assert listed_below(tmp_path) == expected_below("dir")
        subvolid = subvolume.get_id(base / "dir/deep/b/in/c")
        assert subvolume.get_id(tmp_path / subvolume.get_path_below(tmp_path, subvolid)) == subvolid
    finally:
        syscall.umount2(tmp_path)


def paths_below(directory: Path, subvolids: list[int]) -> list[str]:
    return [subvolume.get_path_below(directory, subvolid) for subvolid in subvolids]


@pytest.mark.fake
def test_get_path_below(base: Path) -> None:
    """
    The path of a subvolume from a directory is that of the listing, and empty from the subvolume itself.
    """
    make(base, *NAMES)
    for directory in DIRECTORIES:
        entries = list(subvolume.iterate_below(base / directory))
        found = paths_below(base / directory, [entry.info.id for entry in entries])
        assert found == [entry.path for entry in entries]
    assert subvolume.get_path_below(base, subvolume.get_id(base)) == ""


def test_get_path_below_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user gets the path of a subvolume that he can open.
    """
    make(base, *NAMES)
    subvolids = [subvolume.get_id(base / name) for name in ("dir/deep/b/in/c", "dir/a")]
    assert unprivileged(paths_below, base / "dir", subvolids) == ["deep/b/in/c", "a"]
    assert unprivileged(paths_below, base, [subvolume.get_id(base)]) == [""]


@pytest.mark.parametrize("privileged", [True, False])
def test_get_path_below_elsewhere(base: Path, privileged: bool, unprivileged: Callable[..., Any]) -> None:
    """
    The top level, a subvolume beside the directory, and one that contains it, are not below it.
    """
    make(base, *NAMES)
    for path in ("dir", "dir/a"):
        for subvolid in (5, subvolume.get_id(base), subvolume.get_id(base / "directory/d"), 1 << 40):
            with pytest.raises(FileNotFoundError, match=f"subvolume {subvolid} "):
                (paths_below if privileged else partial(unprivileged, paths_below))(base / path, [subvolid])


@pytest.mark.fake
def test_children(base: Path) -> None:
    """
    Any number of children is listed, with their directories and paths.
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
    An open directory 18 levels of 250 bytes below a subvolume.
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
    Subvolumes whose paths exceed PATH_MAX are listed, found by id, and deleted.
    """
    subvolume.create((abyss, "bottom"))
    path = "/".join(["d" * 250] * 18 + ["bottom"])
    top = subvolume.get_id(base)
    (entry,) = subvolume.iterate(base, top=top)
    assert entry.path == path
    assert [entry.path for entry in subvolume.iterate_below(abyss)] == ["bottom"]
    assert subvolume.get_path_below(abyss, entry.info.id) == "bottom"
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


DEPTH = 1201  # more than Python recurses, and than most processes may open files


def lengths(path: Path) -> list[int]:
    """
    Return the depths of the subvolumes below *path*, with few open files.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    return [len(entry.path.split("/")) for entry in subvolume.iterate_below(path)]


def test_any_number_of_levels(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Subvolumes in each other are listed, found, snapshotted, frozen and deleted, however many there are.
    """
    nest(base / "n", DEPTH)
    assert unprivileged(lengths, base) == in_child(lengths, base) == list(range(1, DEPTH + 1))
    entries = list(subvolume.iterate_below(base))
    assert subvolume.get_path_below(base, entries[-1].info.id) == entries[-1].path == "/".join(["n"] * DEPTH)
    assert len(list(subvolume.ancestors(base, entries[-1].info.id))) > DEPTH
    with open_directory(base) as fd:
        assert len(list(listing.nested(fd, subvolume.get_id(base)))) == DEPTH
    subvolume.snapshot(base / "n", base / "copy", recursive=True, read_only=True)
    assert in_child(lengths, base / "copy") == list(range(1, DEPTH))
    assert all(entry.info.read_only for entry in subvolume.iterate_below(base / "copy"))
    for name in ("n", "copy"):
        subvolume.delete(base / name, recursive=True)
    assert below(base) == []


# Without privilege


def listed(base: Path) -> list[tuple[str, subvolume.SubvolumeInfo]]:
    return sorted(subvolume.iterate(base, top=0))


def test_iterate_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user gets the same names and info as root, without the subvolumes that he cannot open.
    """
    with open_directory(base) as directory:
        subvolume.create((directory, b"\xff"))
    make(base, "directory/deeper/a", "directory/deeper/a/b", "c", "closed", "closed/inside", "hidden/d")
    subvolume.snapshot(base / "c", base / "c/e", read_only=True)
    filesystem.sync(base)
    assert unprivileged(listed, base) == listed(base)
    (base / "closed").chmod(0)
    (base / "hidden").chmod(0)
    gone = {"closed", "closed/inside", "hidden/d"}
    assert unprivileged(listed, base) == [entry for entry in listed(base) if entry[0] not in gone]


def test_iterate_unprivileged_from_elsewhere(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    For an unprivileged user, a listing of another subvolume, or from inside a subvolume, is EPERM.
    """
    (base / "directory").mkdir()
    for target, top in ((base, 5), (base / "directory", 0)):
        with pytest.raises(PermissionError) as caught:
            unprivileged(lambda: list(subvolume.iterate(target, top=top)))  # noqa: B023
        assert caught.value.__notes__[-2:] == ["needs CAP_SYS_ADMIN", "`iterate_below` needs no privilege"]
    assert unprivileged(listed, base) == []


def test_iterate_as_root_of_a_user_namespace(base: Path) -> None:
    """
    The answer of the kernel decides, not the uid: root without CAP_SYS_ADMIN lists as an unprivileged user.
    """
    make(base, "directory/a", "directory/a/b")
    filesystem.sync(base)

    def use() -> list[str]:
        with pytest.raises(PermissionError):
            subvolume.get_path(base, ioctl.FIRST_FREE_OBJECTID)
        return [path for path, _ in listed(base)]

    assert contained(use) == ["directory/a", "directory/a/b"]


def test_iterate_unprivileged_below_a_mount(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A subvolume with another mounted on it is skipped, and so is the other at that place.
    """
    make(base, "a", "a/inside", "b", "b/inside")
    syscall.mount(base / "b", base / "a", "", syscall.MS_BIND)
    try:
        assert [path for path, _ in unprivileged(listed, base)] == ["b", "b/inside"]
    finally:
        syscall.umount2(base / "a")


@pytest.mark.parametrize("by", ["a subvolume", "a directory", "a file", "a link", "nothing"])
def test_a_child_that_is_replaced(base: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file that replaces a subvolume concurrently is not listed.
    """
    make(base, "a", "b")
    without(monkeypatch, "BTRFS_IOC_TREE_SEARCH_V2", refusal=errno.EPERM)
    lookup = ioctl.ino_lookup_user

    def swap(fd: int, dirid: int, treeid: int) -> tuple[bytes, bytes]:
        found = lookup(fd, dirid, treeid)
        if found[0] == b"a":
            os.rename(base / "a", base / "moved")
            if by == "a subvolume":
                make(base, "a")
            elif by == "a directory":
                (base / "a").mkdir()
            elif by == "a file":
                (base / "a").touch()
            elif by == "a link":
                (base / "a").symlink_to("b")
        return found

    monkeypatch.setattr(ioctl, "ino_lookup_user", swap)
    assert [entry.path for entry in subvolume.iterate(base, top=0)] == ["b"]
    assert (base / "moved").exists()


# Concurrent changes, and memory


@pytest.mark.parametrize("privileged", [True, False])
def test_iterate_while_others_change(base: Path, privileged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Concurrent creations, deletions and renames do not break a listing; unchanged subvolumes are listed once.
    """
    if not privileged:
        without(monkeypatch, "BTRFS_IOC_TREE_SEARCH_V2", refusal=errno.EPERM)
    stay = [f"stay/{number}" for number in range(400)]
    make(base, *stay, *(f"go/{number}" for number in range(400)), "outer")
    stop = threading.Event()

    def change() -> None:
        for number in range(400):
            if stop.is_set():
                return
            make(base, f"come/{number}")
            subvolume.delete(base / f"go/{number}")
            os.rename(base / f"come/{number}", base / f"outer/{number}")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        rounds = 0
        while changer.is_alive() or rounds == 0:
            found = [entry.path for entry in subvolume.iterate(base, top=0)]
            assert [path for path in found if path.startswith("stay/")] == stay
            rounds += 1
    finally:
        stop.set()
        changer.join()


def test_iterate_with_a_cycle_of_renames(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Two subvolumes that seem to contain each other, because of concurrent renames, are skipped.
    """
    make(base, "a", "a/b", "a/b/c", "d")
    ids = {name: subvolume.get_id(base / name) for name in ("a", "a/b")}
    lookup = listing.lookup_root

    def confused(fd: int, subvolid: int) -> Any:
        found = lookup(fd, subvolid)
        if found is not None and subvolid == ids["a"]:
            return ioctl.SubvolInfo((ids["a"], b"a", ids["a/b"], 256, found[4]))
        return found

    monkeypatch.setattr(listing, "lookup_root", confused)
    assert below(base) == ["a", "d"]


def test_iterate_caches_few_directories(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A listing caches a bounded number of directories, and is correct after an eviction.
    """
    monkeypatch.setattr(listing, "_REMEMBERED", 2)
    names = [f"{number % 5}/{number}" for number in range(20)]
    make(base, *names, "0/0/deeper/inside")
    made: list[listing._Paths] = []
    create = listing._Paths.__init__

    def noted(self: listing._Paths, *arguments: Any) -> None:
        made.append(self)
        create(self, *arguments)

    monkeypatch.setattr(listing._Paths, "__init__", noted)
    assert sorted(below(base)) == sorted([*names, "0/0/deeper/inside"])
    assert len(made[0]._known) == 2


def test_iterate_keeps_nothing(base: Path) -> None:
    """
    A listing holds one search buffer and the cached paths in memory, not the subvolumes.
    """
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
    make(base, *(f"{number}" for number in range(3000)))
    tracemalloc.start()
    try:
        count = sum(1 for _ in subvolume.iterate(base, top=0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 3000
    assert peak < 300_000, "100 bytes a subvolume"
