import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter
from snapshotter.analysis import inventory
from snapshotter.mounting import mounted

pytestmark = pytest.mark.btrfs

Fill = Callable[[str, str, int], None]


@pytest.fixture
def store(btrfs: Path) -> Iterator[Snapshotter]:
    with Snapshotter.create(btrfs / "store") as store:
        yield store


@pytest.fixture
def fill(store: Snapshotter) -> Fill:
    """
    A function that writes a file of a given size into an active snapshot and syncs it to the disk.
    """

    def fill(key: str, name: str, size: int) -> None:
        with mounted(store.mounts(key)) as path, open(f"{path}/{name}", "wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())

    return fill


@pytest.mark.parametrize("plain", [False, True])
def test_snapshots(btrfs: Path, plain: bool) -> None:
    """
    Every snapshot has its subvolume as the filesystem lists it, whether or not the root is a subvolume.
    """
    if plain:
        (btrfs / "root").mkdir()
    with Snapshotter.create(btrfs / "root") as store:
        store.prepare("build")
        store.commit("base", "build")
        store.prepare("web", "base")
        store.view("v", "base")
        store.cleanup()
        subvolume.create(btrfs / "root" / os.path.relpath(store.subvolume("web"), store.root) / "nested")
        taken = inventory.take(store)
        assert list(taken.entries) == ["base", "v", "web"]
        for key in ("base", "web"):
            volume = taken.entries[key].volume
            assert volume
            assert os.path.join(store.root, volume.path) == store.subvolume(key)
            assert volume.info.id == subvolume.get_id(store.subvolume(key))
        assert taken.entries["web"].volume
        assert len(taken.entries["web"].volume.subvolids) == 2
        assert taken.entries["v"].volume is None
        assert [entry.children for entry in taken.entries.values()] == [2, 0, 0]
        assert (taken.pending, taken.orphaned) == ((), ())


def test_usage(store: Snapshotter, fill: Fill) -> None:
    """
    The usage of each snapshot equals `Snapshotter.usage`.
    """
    store.prepare("a")
    fill("a", "file", 10_000)
    store.commit("base", "a")
    store.prepare("b", "base")
    fill("b", "file", 20_000)
    usages = {key: entry.usage for key, entry in inventory.take(store).entries.items()}
    assert usages == {key: store.usage(key) for key in ("b", "base")}
    assert usages["b"]
    assert usages["b"].size == 20_480


def test_locate(store: Snapshotter) -> None:
    """
    Every snapshot that existed at the call is located, even if snapshots are removed during the iteration. A missing
    subvolume is reported.
    """
    for name in ("base", "gone"):
        store.prepare("a")
        store.commit(name, "a")
    store.prepare("b", "base")
    store.prepare("c", "base")
    store.view("v", "base")
    store.cleanup()
    expected = {
        key: (store.subvolume(key).removeprefix(f"{store.root}/"), store.opened.known_usage(key), "")
        for key in ("base", "gone", "b", "c", "v")
    }
    located = store.opened.locate()
    first = next(located)
    for key in {"b", "c"} - {first.info.name}:
        store.remove(key)
    assert {info.name: found for info, *found in (first, *located)} == {
        key: list(found) for key, found in expected.items()
    }
    subvolume.delete(store.subvolume("gone"))
    with Snapshotter(store.root, read_only=True) as reading:
        (lost,) = (each for each in reading.opened.locate() if each.info.name == "gone")
    assert lost.path == "snapshots/3/layer"
    assert "missing" in lost.problem


def test_mounted(store: Snapshotter) -> None:
    """
    A mounted snapshot is marked. A mounted view marks its parent too, because it shows the layer of its parent.
    """
    store.prepare("a")
    store.commit("base", "a")
    store.prepare("b", "base")
    store.prepare("c", "base")
    store.view("v", "base")
    with mounted(store.mounts("b")), mounted(store.mounts("v")):
        entries = inventory.take(store).entries
    assert {key for key, entry in entries.items() if entry.mounted} == {"b", "base", "v"}
    assert not any(entry.mounted for entry in inventory.take(store).entries.values())


def test_pending_and_orphaned(store: Snapshotter) -> None:
    """
    A removed snapshot that is still mounted is pending. A subvolume without a record, or elsewhere, is orphaned.
    """
    store.prepare("a")
    store.prepare("b")
    with mounted(store.mounts("a")):
        store.remove("a")
        subvolume.create(f"{store.root}/mine")
        os.removexattr(os.path.dirname(store.subvolume("b")), "user.snapshotter")
        with Snapshotter(store.root, read_only=True) as reading:
            taken = inventory.take(reading)
    assert taken.entries == {}
    assert [volume.path for volume in taken.pending] == ["snapshots/1/fs"]
    assert sorted(volume.path for volume in taken.orphaned) == ["mine", "snapshots/2/fs"]


def test_pending_with_many_labels(store: Snapshotter) -> None:
    """
    The former subvolume of a commit is pending also if the record is in pieces, and has the key that it had.
    """
    labels = {f"{number}": "x" * 4000 for number in range(10)}
    store.prepare("a", labels=labels)
    with mounted(store.mounts("a")):
        store.commit("base", "a", labels)
        (volume,) = inventory.take(store).pending
    assert (volume.path, volume.key) == ("snapshots/1/fs", "a")


@pytest.mark.parametrize("link", [False, True])
def test_lost(store: Snapshotter, link: bool) -> None:
    """
    A snapshot without its subvolume says so, as does a view of it, even if a symbolic link is in its place.
    """
    store.prepare("a")
    store.commit("base", "a")
    store.view("v", "base")
    store.cleanup()
    subvolume.delete(store.subvolume("base"))
    if link:
        os.symlink(store.root, store.subvolume("base"))
    with Snapshotter(store.root, read_only=True) as reading:
        entries = inventory.take(reading).entries
    for entry in entries.values():
        assert "missing" in entry.problem
        assert (entry.volume, entry.usage) == (None, None)


def test_beside_changes(store: Snapshotter) -> None:
    """
    Snapshots that are made, committed or removed after the store was opened are neither lost nor orphaned.
    """
    store.prepare("a")
    store.prepare("b")
    store.prepare("c")
    with Snapshotter(store.root, read_only=True) as reading:
        store.prepare("new")
        store.commit("layer", "a")
        store.remove("b")
        store.cleanup()
        taken = inventory.take(reading)
    assert (list(taken.entries), taken.orphaned) == (["c"], ())
