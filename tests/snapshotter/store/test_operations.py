"""
Operations on a full disk, and while others change the store.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter, Usage
from snapshotter.errors import DataLossError, FailedPreconditionError, NotFoundError, ResourceExhaustedError
from snapshotter.model import Measured
from snapshotter.store.layout import Directory
from snapshotter.store.record_storage import Files
from snapshotter.testing import DirectoryVolumes, settle


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


class Full(DirectoryVolumes):
    """
    Volumes of a disk that is full for *refusals* more commits, until space is reclaimed.
    """

    refusals = 0
    reclaimed = 0

    def freeze(self, directory: Directory) -> None:
        if Full.refusals:
            Full.refusals -= 1
            refuse(errno.ENOSPC)
        super().freeze(directory)

    def reclaim(self, seconds: float) -> None:
        Full.reclaimed += 1


@pytest.mark.parametrize("refusals", [1, 2])
def test_commit_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int) -> None:
    """
    A commit that finds the disk full is tried once more after the space of destroyed subvolumes is back.
    """
    monkeypatch.setattr(Full, "refusals", refusals)
    monkeypatch.setattr(Full, "reclaimed", 0)
    with Snapshotter.create(tmp_path / "root", volumes=Full) as store:
        store.prepare("k")
        if refusals == 1:
            store.commit("base", "k")
        else:
            with pytest.raises(ResourceExhaustedError, match="cannot commit snapshot 'k': No space left on device"):
                store.commit("base", "k")
        assert Full.reclaimed == 1
        assert [info.kind for info in store.walk()] == [Kind.COMMITTED if refusals == 1 else Kind.ACTIVE]


class FullRecords(Files):
    full = False

    def write(self, fd: int, data: bytes) -> None:
        if FullRecords.full:
            refuse(errno.ENOSPC)
        super().write(fd, data)


class FullOfRecords(DirectoryVolumes):
    record_storage = FullRecords()


def test_remove_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where the record of a removal has no room, the subvolume is destroyed at once, and the snapshot is gone for good.
    """
    root = tmp_path / "root"
    with Snapshotter.create(root, volumes=FullOfRecords) as store:
        store.prepare("k")
        monkeypatch.setattr(FullRecords, "full", True)
        store.remove("k")
        assert list(store.walk()) == []
        assert os.listdir(root / "snapshots") == []
    monkeypatch.setattr(FullRecords, "full", False)
    with Snapshotter(root, volumes=FullOfRecords) as store:
        assert list(store.walk()) == []


class Changing(DirectoryVolumes):
    """
    Volumes where *change* happens while a snapshot is measured for the first time, and the subvolume is not found.
    """

    change: Callable[[], object] | None = None

    def measure(self, directory: Directory, name: str, base_transid: int, parent: Directory | None) -> Measured:
        if change := Changing.change:
            Changing.change = None
            change()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return super().measure(directory, name, base_transid, parent)


def test_usage_during_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A subvolume that a change of the snapshot moves while it is measured is not lost: the key is looked up again.
    """
    with Snapshotter.create(tmp_path / "root", volumes=Changing) as store:
        store.prepare("k")
        monkeypatch.setattr(Changing, "change", lambda: store.commit("base", "k"))
        with pytest.raises(NotFoundError, match="snapshot 'k' does not exist"):
            store.usage("k")
        assert store.usage("base") == Usage(0, 1)
        store.prepare("k")
        monkeypatch.setattr(Changing, "change", lambda: store.update(store.stat("k")))
        assert store.usage("k") == Usage(0, 1)
        monkeypatch.setattr(Changing, "change", lambda: None)
        with pytest.raises(DataLossError, match="snapshot 'k'"):
            store.usage("k")


class Refusing(Files):
    number = 0

    def write(self, fd: int, data: bytes) -> None:
        if Refusing.number:
            number, Refusing.number = Refusing.number, 0
            refuse(number)
        super().write(fd, data)


class RefusingRecords(DirectoryVolumes):
    record_storage = Refusing()


@pytest.mark.parametrize("damage", ["deleted", "damaged"])
def test_key_whose_layer_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """
    A key can be used again although the layer that was committed from it is deleted by hand, or damaged.
    """
    with Snapshotter.create(tmp_path / "root", volumes=RefusingRecords) as store:
        store.prepare("k")
        store.commit("base", "k")
        settle(store)
        if damage == "deleted":
            shutil.rmtree(tmp_path / "root/snapshots/1")
        else:
            monkeypatch.setattr(Refusing, "number", errno.EIO)
        store.prepare("k")
        assert store.stat("k").kind is Kind.ACTIVE
        assert Refusing.number == 0


def test_refused_forgetting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Another refusal while the former key of a layer is taken fails the call as a whole.
    """
    with Snapshotter.create(tmp_path / "root", volumes=RefusingRecords) as store:
        store.prepare("k")
        store.commit("base", "k")
        settle(store)
        monkeypatch.setattr(Refusing, "number", errno.EPERM)
        with pytest.raises(FailedPreconditionError, match="Operation not permitted"):
            store.prepare("k")
        assert [info.name for info in store.walk()] == ["base"]
        store.commit("base", "k")
        store.prepare("k")


class Overtaken(DirectoryVolumes):
    """
    Volumes whose root another process makes first.
    """

    @staticmethod
    def make_root(path: str) -> None:
        DirectoryVolumes.make_root(path)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def test_root_that_is_made_concurrently(tmp_path: Path) -> None:
    """
    A root that another process makes first is used as it is.
    """
    with Snapshotter.create(tmp_path / "root", volumes=Overtaken) as store:
        store.prepare("k")
