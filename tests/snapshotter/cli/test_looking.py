"""
What the commands that change nothing print; what they find out is tested with the modules that do.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, subvolume
from snapshotter import Snapshotter, cli
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Terminal

pytestmark = pytest.mark.btrfs

Run = Callable[..., str]


@pytest.fixture
def store(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Snapshotter]:
    """
    A store, held open, with a layer "base", its child "web" with 8 KiB, and a view; the environment names it.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        store.commit("base", "build", {"a": "b=c"})
        store.prepare("web", "base", {"owner": "me"})
        store.view("v", "base")
        store.cleanup()
        with mounted(store.mounts("web")) as path, open(f"{path}/file", "wb") as file:
            file.write(bytes(8000))
            file.flush()
            os.fsync(file.fileno())
        monkeypatch.setenv("SNAPSHOTTER_ROOT", str(btrfs / "store"))
        yield store


@pytest.fixture
def run(store: Snapshotter, capsys: pytest.CaptureFixture[str]) -> Run:
    """
    Runs a command that succeeds, and gives what it printed.
    """

    def run(*argv: str) -> str:
        assert cli.main(argv) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_info(store: Snapshotter, run: Run) -> None:
    """
    info describes a snapshot of each kind.
    """
    known: dict[str, Any] = json.loads(run("info", "web", "--json"))
    assert known == next(info for info in json.loads(run("ls", "--json")) if info["name"] == "web") | {
        "size": 8192,
        "inodes": 1,
        "subvolume": os.path.relpath(store.subvolume("web"), store.root),
        "subvolid": known["subvolid"],
        "mounted": False,
        "problem": "",
        "children": [],
    }
    assert f"subvolid={known['subvolid']}" in store.mounts("web")[0].options
    text = run("info", "base")
    assert "label      a=b=c\n" in text
    assert "child      v\n           web\n" in text
    assert "size       8192\n" in run("info", "web", "--bytes")
    assert json.loads(run("info", "v", "--json"))["subvolume"] is None


def test_df(store: Snapshotter, run: Run) -> None:
    """
    df sums what is in the store by kind, and what is left of what was.
    """
    with mounted(store.mounts("web")):
        store.remove("web")
        found = json.loads(run("df", "--json"))
    assert {name: found[name]["count"] for name in ("committed", "active", "view", "pending", "orphaned")} == {
        "committed": 1,
        "active": 0,
        "view": 1,
        "pending": 1,
        "orphaned": 0,
    }
    assert found["pending"] == {"count": 1, "size": 8192, "reclaimable": 8192}
    assert found["filesystem"]["unallocated"] == found["filesystem"]["size"] - found["filesystem"]["allocated"]
    text = run("df")
    assert text.startswith("TYPE       COUNT")
    assert "\nmetadata, single " in text


def test_frees(store: Snapshotter, run: Run) -> None:
    """
    frees says what all of them together give back.
    """
    store.fork("web", "fork")
    assert run("frees", "web") == "0 B\n"
    assert run("frees", "fork", "web") == "8.0 KiB\n"
    assert run("frees", "fork", "web", "--bytes") == "8192\n"
    assert json.loads(run("frees", "web", "fork", "--json")) == {"keys": ["web", "fork"], "size": 8192}


def test_why(store: Snapshotter, run: Run) -> None:
    """
    why names what keeps a snapshot.
    """
    assert run("why", "base") == "child      v\n           web\n"
    assert run("why", "web") == "nothing keeps the snapshot\n"
    with mounted(store.mounts("web")) as path:
        assert run("why", "web").startswith(f"mount      {path} in the namespace of process ")
        found = json.loads(run("why", "web", "--json"))
    [mount] = found.pop("mounts")
    assert found == {"children": [], "processes": [], "containerd": None}
    assert (mount["path"], mount["read_only"]) == (path, False)


def test_ls(store: Snapshotter, run: Run) -> None:
    """
    ls has the columns and the order that are asked for, and asks for no more than them.
    """
    assert run("ls", "--columns=size,key,mounted,labels", "--sort=-size", "--bytes").splitlines() == [
        "SIZE  KEY   MOUNTED  LABELS",
        "8192  web            owner=me",
        "   0  base           a=b=c",
        "   0  v",
    ]
    assert [info["name"] for info in json.loads(run("ls", "--json", "--sort=-created"))] == ["v", "web", "base"]
    assert [line.split()[0] for line in run("ls", "kind!=view", "--sort=subvolid").splitlines()] == [
        "KEY",
        "base",
        "web",
    ]
    assert cli.main(["ls", "--sort=none"]) == cli.main(["ls", "--columns=key,"]) == 2


def test_tree(store: Snapshotter, run: Run) -> None:
    """
    tree sums sizes from the leaves to the roots, marks what is mounted, and what is broken.
    """
    store.fork("web", "fork")
    store.commit("layer", "fork")
    store.prepare("top", "layer")
    store.cleanup()
    with mounted(store.mounts("web")):
        assert run("tree", "--bytes").splitlines() == [
            "KEY        KIND       SIZE  TOTAL  INODES  STATE",
            "base       Committed     0  16384       1",
            "├─ layer   Committed  8192   8192       1",
            "│  └─ top  Active        0      0       0",
            "├─ v       View          0      0       0",
            "└─ web     Active     8192   8192       1  mounted",
        ]
    subvolume.delete(store.subvolume("layer"))
    assert ["├─", "layer", "Committed", "lost", "0", "B", "broken"] in map(str.split, run("tree").splitlines())
    for key, problem in ("layer", True), ("top", False):
        known = json.loads(run("info", key, "--json"))
        assert (known["size"], bool(known["problem"])) == (None, problem)
    rows = json.loads(run("tree", "--json"))
    assert [(row["name"], row["depth"], row["total"], bool(row["problem"])) for row in rows] == [
        ("base", 0, 8192, False),
        ("layer", 1, 0, True),
        ("top", 2, 0, False),
        ("v", 1, 0, False),
        ("web", 1, 8192, False),
    ]


def test_diff(store: Snapshotter, run: Run) -> None:
    """
    diff lists changes with sizes, of two snapshots or of one and its parent.
    """
    filesystem.sync(store.root)
    assert run("diff", "base", "web", "--bytes").splitlines() == [
        "CHANGE  TYPE  BEFORE  SIZE  PATH",
        "added   file          8000  file",
    ]
    assert json.loads(run("diff", "web", "--json")) == [
        {"path": "file", "change": "added", "type": "file", "size": 8000, "size_before": None, "source": ""}
    ]
    assert run("diff", "web", "base").splitlines()[1].split() == ["deleted", "file", "7.8", "KiB", "file"]


@pytest.mark.parametrize("argv", [["du", "web"], ["frees", "web"], ["rm", "web", "--dry-run"]], ids=" ".join)
def test_progress(argv: list[str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What may take long shows a terminal how far it is.
    """
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(*argv)
    assert "looking at" in sys.stderr.getvalue()


def test_du(store: Snapshotter, run: Run) -> None:
    """
    du lists directories, the largest first, down to a depth.
    """
    with mounted(store.mounts("web")) as path:
        os.makedirs(f"{path}/a/b")
        os.mkdir(f"{path}/c")
    filesystem.sync(store.root)
    assert run("du", "web", "--bytes").splitlines() == [
        "EXCLUSIVE  SHARED  INODES  PATH",
        "     8192       0       5  .",
        "        0       0       2  a",
        "        0       0       1  c",
    ]
    found = json.loads(run("du", "web", "--json", "--depth=2"))
    assert [each["path"] for each in found] == [".", "a", "a/b", "c"]
    assert found[0] == {"path": ".", "exclusive": 8192, "shared": 0, "inodes": 5}
