"""
Listing subvolumes on real btrfs.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, ioctl, kernel, subvolume, syscall
from pybtrfs.subvolume import listing
from tests.pybtrfs.subvolume.common import below, children, contained, make, open_directory, without

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
        assert caught.value.__notes__[-1] == "needs CAP_SYS_ADMIN"
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
