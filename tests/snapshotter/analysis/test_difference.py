import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybtrfs import filesystem, subvolume, tree_search
from pybtrfs.subvolume import Change
from snapshotter import Snapshotter
from snapshotter.analysis import difference
from snapshotter.errors import FailedPreconditionError, NotFoundError
from snapshotter.mounting import mounted
from tests.snapshotter.conftest import Entry, entries

pytestmark = pytest.mark.btrfs


def fill(root: Path) -> None:
    for directory in ("kept", "gone/deep", "moved/inside", "empty"):
        (root / directory).mkdir(parents=True)
        for number in range(20):
            (root / directory / f"file{number}").write_bytes(b"x" * (1000 * number))
    os.link(root / "kept/file1", root / "linked")
    subvolume.create(root / "nested")  # becomes a directory at the commit, after the layer was made
    (root / "link").symlink_to("/etc/passwd")


def change(root: Path) -> None:
    (root / "kept/file2").write_bytes(b"other")
    (root / "kept/file3").unlink()
    (root / "kept/file4").rename(root / "kept/renamed")
    (root / "gone/deep/file5").rename(root / "saved")
    shutil.rmtree(root / "gone")
    (root / "moved").rename(root / "kept/moved")
    (root / "kept/moved/inside/file6").write_bytes(b"y" * 7)
    os.link(root / "kept/file7", root / "kept/second")
    (root / "linked").unlink()
    (root / "kept/file8").chmod(0o600)
    os.setxattr(root / "kept/file9", "user.x", b"y")
    (root / "kept").chmod(0o700)
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    (root / "new/er").mkdir(parents=True)
    (root / "new/er/file").write_bytes(bytes(5000))
    os.mkfifo(root / "new/fifo")
    (root / "kept/file10").unlink()
    (root / "kept/file10").mkdir()
    os.rename(root / "kept/file11", root / "kept/file12")


CHANGES = {
    "kept": ("modified", "directory", 0, 0, ""),
    "kept/file2": ("modified", "file", 5, 2000, ""),
    "kept/file3": ("deleted", "file", None, 3000, ""),
    "kept/renamed": ("renamed", "file", 4000, 4000, "kept/file4"),
    "saved": ("renamed", "file", 5000, 5000, "gone/deep/file5"),
    "kept/moved": ("renamed", "directory", 0, 0, "moved"),
    "kept/moved/inside/file6": ("modified", "file", 7, 6000, ""),
    "kept/second": ("added", "file", 7000, None, ""),
    "kept/file7": ("modified", "file", 7000, 7000, ""),
    "kept/file1": ("modified", "file", 1000, 1000, ""),
    "linked": ("deleted", "file", None, 1000, ""),
    "kept/file8": ("modified", "file", 8000, 8000, ""),
    "kept/file9": ("modified", "file", 9000, 9000, ""),
    "new": ("added", "directory", 0, None, ""),
    "new/er": ("added", "directory", 0, None, ""),
    "new/er/file": ("added", "file", 5000, None, ""),
    "new/fifo": ("added", "fifo", 0, None, ""),
    "gone": ("deleted", "directory", None, 0, ""),
    "gone/deep": ("deleted", "directory", None, 0, ""),
    **{f"gone/deep/file{n}": ("deleted", "file", None, 1000 * n, "") for n in range(20) if n != 5},
}
TWICE = {  # paths where one file replaced another
    ("link", "deleted", "symlink", None, 11),
    ("link", "added", "symlink", 9, None),
    ("kept/file10", "deleted", "file", None, 10000),
    ("kept/file10", "added", "directory", 0, None),
    ("kept/file12", "deleted", "file", None, 12000),
    ("kept/file12", "renamed", "file", 11000, 11000),
}


@pytest.fixture
def store(btrfs: Path) -> Iterator[Snapshotter]:
    """
    A store with a chain: base, an unchanged layer, a changed layer, and an active snapshot on top.
    """
    with Snapshotter.create(btrfs / "store") as store:
        for key, parent, write in ("base", "", fill), ("same", "base", None), ("changed", "same", change):
            store.prepare("build", parent)
            if write:
                with mounted(store.mounts("build")) as path:
                    write(Path(path))
            store.commit(key, "build")
        store.prepare("a", "changed")
        yield store


def shown(changes: list[Change]) -> dict[str, tuple[object, ...]]:
    return {each.path: (each.change, each.type, each.size, each.size_before, each.source) for each in changes}


@pytest.mark.parametrize("other", ["changed", "a"])
def test_between(store: Snapshotter, other: str) -> None:
    """
    Every kind of change between an ancestor and a descendant is found, across any number of layers.
    """
    found = difference.between(store, "base", other)
    twice = {(each.path, *shown([each])[each.path][:4]) for each in found if each.path in {path for path, *_ in TWICE}}
    assert twice == TWICE
    assert shown([each for each in found if each.path not in {path for path, *_ in TWICE}]) == CHANGES
    assert [each.path for each in found] == sorted(each.path for each in found)


def test_backwards(store: Snapshotter) -> None:
    """
    In the other direction additions become deletions, and sizes and names are swapped.
    """
    there, back = difference.between(store, "base", "changed"), difference.between(store, "changed", "base")
    opposite = {"added": "deleted", "deleted": "added", "modified": "modified", "renamed": "renamed"}
    assert sorted((opposite[each.change], each.source or each.path, each.size) for each in there) == sorted(
        (each.change, each.path, each.size_before) for each in back
    )


def test_from_parent(store: Snapshotter) -> None:
    """
    A layer without a parent added every file that a walk finds. A layer without changes has none.
    """
    with mounted(store.view("v", "base")) as path:
        walked = entries(Path(path))
    del walked["."]
    found = difference.from_parent(store, "base")
    assert [each.path for each in found] == sorted(walked)
    assert {each.change for each in found} == {"added"}
    assert difference.from_parent(store, "same") == difference.between(store, "base", "base") == []
    assert difference.between(store, "base", "v") == []


def test_beside_a_walk(store: Snapshotter) -> None:
    """
    The paths are those that differ between walks of the two snapshots.
    """
    with mounted(store.view("v", "base")) as path:
        before = entries(Path(path))
    with mounted(store.mounts("a")) as path:
        now = entries(Path(path))

    def alike(one: Entry | None, other: Entry | None) -> bool:
        return one is not None and other is not None and one._replace(links=()) == other._replace(links=())

    different = {path for path in before.keys() | now.keys() if not alike(before.get(path), now.get(path))}
    found = difference.between(store, "base", "a")
    named = {each.path for each in found} | {each.source for each in found if each.source}
    moved = {path for path in different if "moved/" in path and path != "kept/moved/inside/file6"}
    # The walks ignore the number of links, and find the content of a moved directory at other paths.
    assert different - moved <= named
    assert named - different == {"kept/file7", "kept/file1"}


def test_active(store: Snapshotter) -> None:
    """
    Changes of an active snapshot are seen as soon as they are written back.
    """
    with mounted(store.mounts("a")) as path:
        Path(path, "kept/file2").write_bytes(b"longer than before")
        os.sync()
    assert shown(difference.from_parent(store, "a")) == {"kept/file2": ("modified", "file", 18, 5, "")}


def test_unrelated(store: Snapshotter) -> None:
    """
    Snapshots that are not related by descent are refused, and the message names their common ancestor.
    """
    store.prepare("b", "base")
    store.prepare("c")
    with pytest.raises(FailedPreconditionError, match="compare each with their common ancestor 'base'"):
        difference.between(store, "a", "b")
    with pytest.raises(FailedPreconditionError, match="no common ancestor"):
        difference.between(store, "a", "c")
    with pytest.raises(NotFoundError):
        difference.between(store, "a", "none")


def test_cost(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A single change among thousands of files is found with few searches, and few items.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        with mounted(store.mounts("build")) as path:
            for directory, number in itertools.product(range(20), range(100)):
                Path(path, f"{directory}").mkdir(exist_ok=True)
                Path(path, f"{directory}/{number}").touch()
        store.commit("base", "build")
        store.prepare("a", "base")
        with mounted(store.mounts("a")) as path:
            Path(path, "7/50").write_bytes(b"x")
        filesystem.sync(btrfs)
        seen = 0
        make = tree_search.split

        def counting(*arguments: object) -> Iterator[object]:
            nonlocal seen
            for item in make(*arguments):  # type: ignore[arg-type]
                seen += 1
                yield item

        monkeypatch.setattr(tree_search, "split", counting)
        assert list(shown(difference.from_parent(store, "a"))) == ["7/50"]
        assert seen < 100
