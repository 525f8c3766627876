"""
Analysis without ``CAP_SYS_ADMIN``, as in a user namespace, where files are walked over in place of tree searches.
"""

import errno
import os
from pathlib import Path

import pytest

from pybtrfs import filesystem, subvolume
from snapshotter import Kind, Snapshotter, cli
from snapshotter.analysis import difference, directories, inventory, space
from snapshotter.analysis.directories import DirectoryUsage
from snapshotter.cli import codes
from snapshotter.testing import settle
from tests.pybtrfs.subvolume.common import without

from .test_difference import change, fill

pytestmark = pytest.mark.btrfs

SEARCHES = ("BTRFS_IOC_TREE_SEARCH", "BTRFS_IOC_TREE_SEARCH_V2")
NOTE = "snapshotter: without CAP_SYS_ADMIN all files are walked over, and a size is that of whole changed files\n"


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *SEARCHES, refusal=errno.EPERM)


@pytest.fixture
def store(btrfs: Path) -> Snapshotter:
    """
    Return a store with the layer "base", and "work" on top of it with every kind of change.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        fill(Path(store.subvolume("build")))
        store.commit("base", "build")
        store.prepare("work", "base")
        change(Path(store.subvolume("work")))
        settle(store)
        filesystem.sync(btrfs)
    return Snapshotter(btrfs / "store", read_only=True)


def test_difference(store: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A walk finds the changes that a search finds, in both directions and to an empty parent.
    """
    with store:
        pairs = [("base", "work"), ("work", "base")]
        searched = [difference.between(store, *pair) for pair in pairs]
        alone = difference.from_parent(store, "base")
        refuse(monkeypatch)
        assert [difference.between(store, *pair) for pair in pairs] == searched
        assert difference.from_parent(store, "base") == alone


def test_directories(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file that is the same in the parent is shared, and every other is exclusive; a name counts once.
    """
    refuse(monkeypatch)
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        root = Path(store.subvolume("build"))
        (root / "a/deep").mkdir(parents=True)
        (root / "a/deep/kept").write_bytes(bytes(8192))
        (root / "a/changed").write_bytes(bytes(4096))
        store.commit("base", "build")
        store.prepare("work", "base")
        root = Path(store.subvolume("work"))
        (root / "a/changed").write_bytes(bytes(12288))
        (root / "b").mkdir()
        (root / "b/new").write_bytes(bytes(4096))
        os.link(root / "b/new", root / "b/twin")
        subvolume.create(root / "b/nested")
        (root / "b/nested/file").write_bytes(bytes(16384))
        filesystem.sync(btrfs)
        assert directories.measure(store, "work", 2) == [
            DirectoryUsage(".", 12288 + 4096 + 16384, 8192, 9),
            DirectoryUsage("a", 12288, 8192, 4),
            DirectoryUsage("a/deep", 0, 8192, 2),
            DirectoryUsage("b", 4096 + 16384, 0, 4),
            DirectoryUsage("b/nested", 16384, 0, 2),
        ]
        assert [each.path for each in directories.measure(store, "work", 0)] == ["."]
        store.view("view", "base")
        assert directories.measure(store, "view") == directories.measure(store, "base")


def test_inventory(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every snapshot is measured, and what waits for destruction counts with all its files.
    """
    refuse(monkeypatch)
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        Path(store.subvolume("build"), "file").write_bytes(bytes(8192))
        store.commit("base", "build")
        settle(store)
        store.prepare("work", "base")
        Path(store.subvolume("work"), "new").write_bytes(bytes(4096))
        store.prepare("gone", "base")
        with subvolume.Subvolume(store.subvolume("gone")) as held:
            store.opened.operations.mark_removed(store.opened.index.get("gone"))
            filesystem.sync(btrfs)
            with Snapshotter(store.root, read_only=True) as reading:
                taken = inventory.take(reading)
                amounts = space.of_store(reading, taken)
            assert held
        assert [(entry.usage.size, entry.problem) for entry in taken.entries.values() if entry.usage] == [
            (8192, ""),
            (4096, ""),
        ]
        assert amounts[str(Kind.ACTIVE).lower()].size == 4096
        assert (amounts["pending"].count, amounts["pending"].size) == (1, 8192)


@pytest.mark.parametrize("command", [["usage", "work"], ["tree"], ["df"], ["du", "work"], ["diff", "work"], ["report"]])
def test_command(
    store: Snapshotter, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A command that measures or compares says that it walks, and the report has it on the page.
    """
    store.close()
    refuse(monkeypatch)
    assert cli.main([*command, "--root", store.root]) == codes.DONE
    printed, said = capsys.readouterr()
    assert said == NOTE
    assert ("all files were walked over" in printed) == (command == ["report"])


def test_space_of_removed(
    store: Snapshotter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A removal and a cleanup wait until the kernel has cleaned every subvolume, and name what is in use.
    """
    store.close()
    refuse(monkeypatch)
    assert cli.main(["rm", "work", "base", "--root", store.root]) == codes.DONE
    assert cli.main(["cleanup", "--root", store.root]) == codes.DONE
    assert capsys.readouterr() == ("", "")
    assert subvolume.count_deleted(store.root) == 0
    assert [path for path, _ in subvolume.iterate(store.root, top=subvolume.get_id(store.root))] == ["empty"]
