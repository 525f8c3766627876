import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybtrfs import extent, filesystem, subvolume
from snapshotter import Kind, Mount, Snapshotter
from snapshotter.analysis import inventory, space
from snapshotter.analysis.space import Amount
from snapshotter.errors import FailedPreconditionError, NotFoundError
from snapshotter.mounting import mounted

pytestmark = pytest.mark.btrfs


def test_snapshots(btrfs: Path) -> None:
    """
    Counts and sizes are those of the snapshots. Mounted snapshots and the layers below snapshots in use are not
    reclaimable.
    """
    with Snapshotter.create(btrfs / "store") as store:
        for key, parent, size in ("base", "", 8), ("other", "", 16), ("web", "base", 32), ("db", "base", 64):
            store.prepare(key + " ", parent)
            with mounted(store.mounts(key + " ")) as path:
                Path(path, "file").write_bytes(bytes(size << 10))
            store.commit(key, key + " ")
        store.prepare("a", "web")
        with mounted(store.mounts("a")) as path:
            Path(path, "more").write_bytes(bytes(128 << 10))
            store.prepare("b", "web")
            store.view("v", "web")
            subprocess.run(["sync", "--file-system", path], check=True)
            taken = inventory.take(store)
        assert space.of_snapshots(taken) == {
            Kind.COMMITTED: Amount(4, 120 << 10, 80 << 10),
            Kind.ACTIVE: Amount(2, 128 << 10, 0),
            Kind.VIEW: Amount(1, 0, 0),
        }
        taken = inventory.take(store)
        assert space.of_snapshots(taken)[Kind.ACTIVE] == Amount(2, 128 << 10, 128 << 10)
        subvolume.create(btrfs / "store" / "mine")
        (btrfs / "store" / "mine" / "file").write_bytes(bytes(8192))
        subprocess.run(["sync", "--file-system", btrfs], check=True)
        assert space.of_volumes(store.root, inventory.take(store).orphaned) == Amount(1, 8192, 8192)


def test_filesystem(btrfs: Path) -> None:
    """
    The filesystem's numbers are those of `btrfs filesystem usage`.
    """
    said = subprocess.run(
        ["btrfs", "filesystem", "usage", "--raw", btrfs], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    found = space.of_filesystem(str(btrfs))
    for name, value in [
        ("Device size", found.size),
        ("Device allocated", found.allocated),
        ("Device unallocated", found.unallocated),
    ]:
        assert re.search(rf"{name}:\s+{value}\b", said)
    for group in found.block_groups:
        if group.type != "global reserve":
            assert f"{group.type.title()},{group.profile}: Size:{group.size}, Used:{group.used}" in said
    metadata = next(group for group in found.block_groups if group.type == "metadata")
    assert found.metadata_full == metadata.used / metadata.size


class TestFrees:
    """
    The predicted space is freed by the removal.
    """

    @pytest.fixture
    def store(self, btrfs_mount: Callable[..., Path]) -> Iterator[Snapshotter]:
        """
        A store with a chain base - web - a, its fork f, another child b of base, and 100 small files in each layer.
        """
        with Snapshotter.create(btrfs_mount() / "store") as store:
            for key, parent in ("base", ""), ("web", "base"):
                store.prepare("build", parent)
                with mounted(store.mounts("build")) as path:
                    for number in range(100):
                        Path(path, f"{key}{number}").write_bytes(os.urandom(5000))
                    if parent:
                        Path(path, "base0").write_bytes(os.urandom(9000))
                        Path(path, "base1").unlink()
                store.commit(key, "build")
            write(store, "a", "web", 1 << 20)
            store.fork("a", "f")
            write(store, "b", "base", 100_000)
            with mounted(store.mounts("a")) as path:
                Path(path, "base2").write_bytes(bytes(20_000))
                Path(path, "web50").write_bytes(bytes(20_000))
            with mounted(store.mounts("f")) as path:
                subvolume.create(f"{path}/nested")
                Path(path, "nested/file").write_bytes(os.urandom(30_000))
            store.view("v", "base")
            filesystem.sync(store.root)
            store.cleanup()
            yield store

    @pytest.mark.parametrize("keys", ["a", "f", "b", "v", "a f", "a f web", "b v", "a f web b v base"])
    def test_sets(self, store: Snapshotter, keys: str) -> None:
        """
        For every removable set, extents that several snapshots of the set share count once, and extents of others not.
        """
        predicted = space.frees(store, keys.split())
        before = used(store)
        for key in keys.split():
            store.remove(key)
        store.cleanup()
        assert before - used(store) == predicted
        assert predicted or keys == "v"

    def test_reflinks(self, store: Snapshotter) -> None:
        """
        Cloned data, in the store or outside, is freed only with its last copy.
        """
        root = Path(store.root)
        whole = space.frees(store, ["b"])
        copy = ["cp", "--reflink=always"]
        subprocess.run([*copy, f"{store.subvolume('b')}/file", root.parent / "clone"], check=True)
        filesystem.sync(store.root)
        assert space.frees(store, ["b"]) == whole - 102_400
        subprocess.run([*copy, f"{store.subvolume('b')}/file", f"{store.subvolume('a')}/clone"], check=True)
        (root.parent / "clone").unlink()
        filesystem.sync(store.root)
        assert space.frees(store, ["a", "b"]) == space.frees(store, ["a"]) + whole

    def test_pending(self, store: Snapshotter) -> None:
        """
        A removed snapshot that waits for its unmount holds no data back.
        """
        both = space.frees(store, ["a", "f"])
        with mounted(store.mounts("f")):
            store.remove("f")
            assert space.frees(store, ["a"]) == both - space.of_volumes(store.root, inventory.take(store).pending).size

    def test_pending_layer(self, store: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        For a removed layer that is still mounted, the extents of its parent are not checked one by one.
        """
        layer = store.subvolume("web")
        for key in "a", "f":
            store.remove(key)
        store.cleanup()
        predicted = space.frees(store, ["web"])
        asked = []
        ask = extent.get_references
        monkeypatch.setattr(extent, "get_references", lambda *arguments: asked.append(arguments) or ask(*arguments))
        (mount,) = store.mounts("b")
        with mounted([Mount(mount.type, mount.source, options=(f"subvolid={subvolume.get_id(layer)}", "ro"))]):
            store.remove("web")
            assert space.of_volumes(store.root, inventory.take(store).pending) == Amount(1, predicted, 0)
        assert len(asked) == 101  # one for each file that web wrote

    def test_refused(self, store: Snapshotter) -> None:
        """
        A set that cannot be removed is refused with the reason.
        """
        with pytest.raises(FailedPreconditionError, match="cannot remove snapshot 'web' with child"):
            space.frees(store, ["web"])
        with pytest.raises(NotFoundError):
            space.frees(store, ["none"])


def write(store: Snapshotter, key: str, parent: str, size: int) -> None:
    store.prepare(key, parent)
    with mounted(store.mounts(key)) as path:
        Path(path, "file").write_bytes(os.urandom(size))


def used(store: Snapshotter) -> int:
    """
    Return the bytes of data on the filesystem, as `btrfs filesystem df` counts them.
    """
    filesystem.sync(store.root)
    ran = subprocess.run(
        ["btrfs", "filesystem", "df", "--raw", store.root], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(re.search(r"Data, single: total=\d+, used=(\d+)", ran.stdout)[1])
