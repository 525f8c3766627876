"""
``snapshotter why``.
"""

import json

import pytest

from snapshotter import Snapshotter, cli
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
        assert shown("why", "web").startswith(f"mount      {path} in the mount namespace of process ")
        found = json.loads(shown("why", "web", "--json"))
    [mount] = found.pop("mounts")
    assert found == {"children": [], "processes": [], "removed": False, "containerd": None}
    assert (mount["path"], mount["read_only"]) == (path, False)


def test_why_removed(web_store: Snapshotter, shown: Shown) -> None:
    """
    why names the mount that holds a removed snapshot, by the key that the snapshot had, and by its id.
    """
    snapshot_id = web_store.subvolume("web").split("/")[-2]
    with mounted(web_store.mounts("web")) as path:
        web_store.remove("web")
        for key in ("web", snapshot_id):
            mount, removed = shown("why", key).splitlines()
            assert mount.startswith(f"mount      {path} in the mount namespace of process ")
            assert removed == "the snapshot is removed, and destroyed once nothing is mounted"
            found = json.loads(shown("why", key, "--json"))
            assert [mount["path"] for mount in found["mounts"]] == [path]
            assert found["removed"]
        assert cli.main(["why", "nothing"]) == 4
    web_store.cleanup()
    assert cli.main(["why", "web"]) == 4
