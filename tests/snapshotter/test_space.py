import re
import subprocess
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import Kind, Snapshotter, inventory, space
from snapshotter.mounting import mounted
from snapshotter.space import Amount

pytestmark = pytest.mark.btrfs


def test_snapshots(btrfs: Path) -> None:
    """
    Counts and sizes are those of the snapshots; what is mounted, and what something in use rests on, is not
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
        assert space.of_snapshots(taken, Kind.COMMITTED) == Amount(4, 120 << 10, 80 << 10)
        assert space.of_snapshots(taken, Kind.ACTIVE) == Amount(2, 128 << 10, 0)
        assert space.of_snapshots(taken, Kind.VIEW) == Amount(1, 0, 0)
        taken = inventory.take(store)
        assert space.of_snapshots(taken, Kind.ACTIVE) == Amount(2, 128 << 10, 128 << 10)
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
