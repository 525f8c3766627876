"""
Problems that doctor finds between a store and its client.

A real containerd is asked in tests/containerd/test_connection.py.
"""

import json
import sys
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter, maintenance
from snapshotter.analysis import containerd, references, rows
from snapshotter.analysis.references import NotLoadedError
from snapshotter.analysis.rows import Difference
from snapshotter.errors import UnavailableError
from snapshotter.maintenance import connection
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.cli.commands import Run
from tests.snapshotter.serving import serving

KEY = "default/1/web"


@pytest.fixture
def root(tmp_path: Path) -> str:
    """
    A store of the client "plugin".
    """
    with Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes, client="plugin") as store:
        store.prepare(KEY)
    return str(tmp_path / "store")


def test_silent_daemon(tmp_path: Path) -> None:
    """
    A daemon that does not answer is named on every store, also without containerd.
    """
    address = str(tmp_path / "none")
    with Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes, socket=address) as store:
        [problem] = connection.examine(store.root, "", [], [])
        assert "does not serve it: no answer from" in problem.what
    assert list(connection.examine(store.root, "", [], [])) == []


@pytest.mark.parametrize(("key", "count"), [(KEY, 1), ("buildkit/1/web", 0)])
def test_not_loaded(root: str, monkeypatch: pytest.MonkeyPatch, key: str, count: int) -> None:
    """
    A containerd that has not loaded the snapshotter is a problem, unless the store may be BuildKit's own.
    """

    def locate(address: str, snapshotter: str) -> str:
        raise NotLoadedError(f"{address} has not loaded {snapshotter}")

    monkeypatch.setattr(references, "locate", locate)
    assert [problem.what for problem in connection.examine(root, "plugin", [key], ["a"])] == [
        "a has not loaded plugin"
    ] * count


def test_not_compared(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The reason why the snapshots cannot be compared is a problem, and so is a difference.
    """

    def compare(*_: str) -> Difference:
        raise UnavailableError("timed out")

    with serving() as server, Snapshotter(root, volumes=DirectoryVolumes, client=None, socket=server.address) as store:
        server.open(store)
        monkeypatch.setattr(references, "locate", lambda *_: server.address)
        monkeypatch.setattr(rows, "compare", compare)
        [problem] = connection.examine(root, "plugin", [KEY], ["a"])
        assert problem.what == "its snapshots cannot be compared: timed out"
        monkeypatch.setattr(rows, "compare", lambda *_: Difference((), ("it's",)))
        [problem] = connection.examine(root, "plugin", [KEY], ["a"])
        assert problem.cure == """`snapshotter rm --force 'it'"'"'s'` removes it at once"""


@pytest.mark.btrfs
def test_not_asked(btrfs: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    doctor says why containerd was not asked, which is no problem by itself, and nothing on a store of its own.
    """
    store = btrfs / "store"
    subvolume.create(store)
    Snapshotter.create(store).close()
    monkeypatch.setenv("SNAPSHOTTER_ROOT", str(store))
    monkeypatch.delenv("CONTAINERD_ADDRESS", raising=False)
    monkeypatch.setattr(containerd, "SOCKETS", (f"{btrfs}/none",))
    assert run("doctor").out.count("containerd") == 0
    with Snapshotter(store, client="plugin") as opened:
        opened.prepare(KEY)
    said = f"containerd was not asked: there is no socket of containerd at {btrfs}/none: name it with --containerd\n"
    before = run("doctor", "--fix")
    after = run("doctor")
    assert (after.code, after.out) == (before.code, before.out + said)
    in_json = run("doctor", "--json")
    assert (len(json.loads(in_json.out)), in_json.err) == (before.out.count("cure:"), f"snapshotter: {said}")
    subvolume.snapshot(store, btrfs / "copy")
    assert "not asked" not in run("doctor", "--root", f"{btrfs}/copy").out
    monkeypatch.delattr(maintenance, "connection")
    monkeypatch.setitem(sys.modules, "snapshotter.maintenance.connection", None)
    assert f" is missing: {sys.executable} -m pip install" in run("doctor").out
