"""
``snapshotter du``.
"""

import json
import os

import pytest

from pybtrfs import filesystem
from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Shown

pytestmark = pytest.mark.btrfs


def test_du(web_store: Snapshotter, shown: Shown) -> None:
    """
    du lists directories, the largest first, down to a depth.
    """
    with mounted(web_store.mounts("web")) as path:
        os.makedirs(f"{path}/a/b")
        os.mkdir(f"{path}/c")
    filesystem.sync(web_store.root)
    assert shown("du", "web", "--bytes").splitlines() == [
        "EXCLUSIVE  SHARED  INODES  PATH",
        "     8192       0       5  .",
        "        0       0       2  a",
        "        0       0       1  c",
    ]
    found = json.loads(shown("du", "web", "--json", "--depth=2"))
    assert [each["path"] for each in found] == [".", "a", "a/b", "c"]
    assert found[0] == {"path": ".", "exclusive": 8192, "shared": 0, "inodes": 5}
