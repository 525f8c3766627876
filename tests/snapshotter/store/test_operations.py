"""
Operations on a full disk, and while others change the store.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pybtrfs.mountinfo import MountTable
from snapshotter import Kind, Snapshotter, Usage
from snapshotter.contract.labels import MAX_KEY_SIZE, MAX_LABEL_SIZE
from snapshotter.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from snapshotter.model import Measured
from snapshotter.store import records
from snapshotter.store.layout import Directory
from snapshotter.store.operations import FEW_LABELS, MAX_TEXT_SIZE
from snapshotter.store.record_storage import Files
from snapshotter.testing import DirectoryVolumes, settle

FULL = pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


class Full(DirectoryVolumes):
    """
    Volumes of a disk that is full for *refusals* more commits, until space is reclaimed.
    """

    number = 0
    refusals = 0
    reclaimed = 0

    def freeze(self, directory: Directory) -> None:
        if Full.refusals:
            Full.refusals -= 1
            refuse(Full.number)
        super().freeze(directory)

    def reclaim(self, seconds: float) -> None:
        Full.reclaimed += 1
        if Full.number:
            refuse(Full.number)


@FULL
@pytest.mark.parametrize("refusals", [1, 2])
def test_commit_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, number: int) -> None:
    """
    A commit that finds the disk or a quota full is tried once more after the space of destroyed subvolumes is back.
    """
    monkeypatch.setattr(Full, "number", number)
    monkeypatch.setattr(Full, "refusals", refusals)
    monkeypatch.setattr(Full, "reclaimed", 0)
    with Snapshotter.create(tmp_path / "root", volumes=Full) as store:
        store.prepare("k")
        if refusals == 1:
            store.commit("base", "k")
        else:
            with pytest.raises(ResourceExhaustedError, match=f"cannot commit snapshot 'k': {os.strerror(number)}"):
                store.commit("base", "k")
        assert Full.reclaimed == 1
        assert [info.kind for info in store.walk()] == [Kind.COMMITTED if refusals == 1 else Kind.ACTIVE]


@FULL
def test_cleanup_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """
    A cleanup ends without an error although the disk or a quota is too full to commit the destruction.
    """
    with Snapshotter.create(tmp_path / "root", volumes=Full) as store:
        store.prepare("k")
        store.remove("k")
        monkeypatch.setattr(Full, "number", number)
        monkeypatch.setattr(Full, "reclaimed", 0)
        store.cleanup()
        assert Full.reclaimed == 1


class Stepwise(DirectoryVolumes):
    """
    Volumes that refuse the steps in *refused* with *number*.
    """

    number = 0
    refused: tuple[str, ...] = ()

    class Records(Files):
        def write(self, fd: int, data: bytes) -> None:
            Stepwise.step("write")
            super().write(fd, data)

    record_storage = Records()

    @classmethod
    def step(cls, name: str) -> None:
        if name in cls.refused:
            refuse(cls.number)

    def barrier(self, fd: int) -> None:
        self.step("barrier")
        super().barrier(fd)

    def destroy(self, directory: Directory, name: str, mounts: MountTable) -> None:
        if "destroy" in self.refused:
            refuse(errno.EBUSY)
        super().destroy(directory, name, mounts)


@FULL
@pytest.mark.parametrize("refused", [("write",), ("barrier",), ("write", "barrier")])
def test_remove_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...], number: int
) -> None:
    """
    Where the record of a removal has no room, the subvolume is destroyed at once, and the snapshot is gone for good.
    """
    root = tmp_path / "root"
    with Snapshotter.create(root, volumes=Stepwise) as store:
        store.prepare("k")
        monkeypatch.setattr(Stepwise, "number", number)
        monkeypatch.setattr(Stepwise, "refused", refused)
        store.remove("k")
        assert list(store.walk()) == []
        assert os.listdir(root / "snapshots") == []
    monkeypatch.setattr(Stepwise, "refused", ())
    with Snapshotter(root, volumes=Stepwise) as store:
        assert list(store.walk()) == []


def test_remove_what_is_held_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A subvolume that cannot be destroyed at once keeps its snapshot, also after the store is opened again.
    """
    with Snapshotter.create(tmp_path / "root", volumes=Stepwise) as store:
        store.prepare("k")
        settle(store)
        monkeypatch.setattr(Stepwise, "number", errno.ENOSPC)
        monkeypatch.setattr(Stepwise, "refused", ("barrier", "destroy"))
        with pytest.raises(FailedPreconditionError, match="cannot remove snapshot 'k': Device or resource busy"):
            store.remove("k")
        monkeypatch.setattr(Stepwise, "refused", ())
        assert [info.name for info in store.walk()] == ["k"]
    with Snapshotter(tmp_path / "root", volumes=Stepwise) as store:
        assert [info.name for info in store.walk()] == ["k"]


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


def test_few_labels_fit() -> None:
    """
    So few labels that their size is not computed fit beside the longest key, even with an escape for each character.
    """
    labels = {f"{number:06}" + "\x01" * (MAX_LABEL_SIZE - 6): "" for number in range(FEW_LABELS)}
    assert MAX_TEXT_SIZE * 0.9 < records.text_size("\x01" * MAX_KEY_SIZE, labels) <= MAX_TEXT_SIZE


def test_refused_for_its_size(tmp_path: Path) -> None:
    """
    A call that is refused for its size changes nothing: the commit of the key that it names can still be repeated.
    """
    labels = {f"{number}": "x" * 4000 for number in range(270)}
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes) as store:
        store.prepare("k")
        store.commit("base", "k")
        store.prepare("active")
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.prepare("k", labels=labels),
            lambda: store.view("k", "base", labels),
            lambda: store.commit("k", "active", labels),
        )
        for call in calls:
            with pytest.raises(InvalidArgumentError, match="more than 1048576"):
                call()
            store.commit("base", "k")


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
