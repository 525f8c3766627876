"""
``snapshotter why``.
"""

import json
import sys
from pathlib import Path

import pytest

from snapshotter import Snapshotter, analysis, cli
from snapshotter.analysis import containerd
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Run, Shown

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
    assert found == {"children": [], "processes": [], "removed": False, "containerd": None, "unasked": ""}
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


def test_containerd_not_asked(btrfs: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    why says on standard output why containerd was not asked, and JSON has the reason.
    """
    root, key = str(btrfs / "store"), "default/1/web"
    with Snapshotter.create(root, client="plugin") as store:
        store.prepare(key)
        store.prepare("other")

    def why(*argv: str, key: str = key) -> str:
        code, out, err = run("why", "--root", root, key, *argv)
        assert (code, err) == (0, "")
        return out

    none = str(btrfs / "none")
    nothing = "no child, mount or process keeps the snapshot\ncontainerd was not asked: "
    reason = f"no answer from containerd at {none!r}: No such file or directory\n"
    assert why("--containerd", none) == nothing + reason
    assert json.loads(why("--containerd", none, "--json"))["unasked"] == reason.strip()
    monkeypatch.setenv("CONTAINERD_ADDRESS", none)
    assert why() == nothing + reason
    assert why(key="other") == "nothing keeps the snapshot\n"
    monkeypatch.delenv("CONTAINERD_ADDRESS")
    monkeypatch.setattr(containerd, "SOCKETS", (none, f"{none}-k3s"))
    assert why() == f"{nothing}there is no socket of containerd at {none} or {none}-k3s: name it with --containerd\n"
    monkeypatch.setattr(containerd, "SOCKETS", (root,))
    monkeypatch.delattr(analysis, "references", raising=False)
    monkeypatch.setitem(sys.modules, "snapshotter.analysis.references", None)
    assert f" is missing: {sys.executable} -m pip install" in why()
