"""
``snapshotter why``.
"""

import json

import pytest

from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Shown

pytestmark = pytest.mark.btrfs


def test_why(web_store: Snapshotter, shown: Shown) -> None:
    """
    why names what keeps a snapshot.
    """
    assert shown("why", "base") == "child      v\n           web\n"
    assert shown("why", "web") == "nothing keeps the snapshot\n"
    with mounted(web_store.mounts("web")) as path:
        assert shown("why", "web").startswith(f"mount      {path} in the namespace of process ")
        found = json.loads(shown("why", "web", "--json"))
    [mount] = found.pop("mounts")
    assert found == {"children": [], "processes": [], "containerd": None}
    assert (mount["path"], mount["read_only"]) == (path, False)
