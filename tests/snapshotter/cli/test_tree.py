"""
``snapshotter tree``.
"""

import json

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Shown

pytestmark = pytest.mark.btrfs


def test_tree(web_store: Snapshotter, shown: Shown) -> None:
    """
    tree sums sizes from the leaves to the roots, marks what is mounted, and what is broken.
    """
    web_store.fork("web", "fork")
    web_store.commit("layer", "fork")
    web_store.prepare("top", "layer")
    web_store.cleanup()
    with mounted(web_store.mounts("web")):
        assert shown("tree", "--bytes").splitlines() == [
            "KEY        KIND       SIZE  TOTAL  INODES  STATE",
            "base       Committed     0  16384       1",
            "├─ layer   Committed  8192   8192       1",
            "│  └─ top  Active        0      0       0",
            "├─ v       View          0      0       0",
            "└─ web     Active     8192   8192       1  mounted",
        ]
    subvolume.delete(web_store.subvolume("layer"))
    assert ["├─", "layer", "Committed", "lost", "0", "B", "broken"] in map(str.split, shown("tree").splitlines())
    for key, problem in ("layer", True), ("top", False):
        known = json.loads(shown("info", key, "--json"))
        assert (known["size"], bool(known["problem"])) == (None, problem)
    rows = json.loads(shown("tree", "--json"))
    assert [(row["name"], row["depth"], row["total"], bool(row["problem"])) for row in rows] == [
        ("base", 0, 8192, False),
        ("layer", 1, 0, True),
        ("top", 2, 0, False),
        ("v", 1, 0, False),
        ("web", 1, 8192, False),
    ]
