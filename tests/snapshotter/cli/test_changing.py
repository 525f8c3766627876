"""
Errors that commands which change a store share: alone with the store, and through the daemon that holds it.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from tests.snapshotter.cli.commands import Run, infos
from tests.snapshotter.serving import serving

pytestmark = pytest.mark.btrfs


MISTAKES = [
    ("prepare a none", 4, "snapshot 'none' does not exist"),
    ("prepare web", 1, "snapshot 'web' already exists"),
    ("prepare a web", 2, "parent 'web' is not committed"),
    ("prepare a --label =x", 2, "key of a label is empty"),
    ("prepare \udcff", 2, "cannot be encoded"),
    ("view v", 1, "snapshot 'v' already exists"),
    ("commit base web", 1, "snapshot 'base' already exists"),
    ("commit c v", 1, "snapshot 'v' is not active"),
    ("commit c none", 4, "snapshot 'none' does not exist"),
    ("fork base c", 1, "snapshot 'base' is not active"),
    ("fork none c", 4, "snapshot 'none' does not exist"),
    ("fork web v", 1, "snapshot 'v' already exists"),
    ("rm base", 1, "cannot remove snapshot 'base' with child"),
    ("rm none", 4, "snapshot 'none' does not exist"),
    ("rm \udcff", 2, "cannot be encoded"),
]


def test_codes(layers: str, run: Run) -> None:
    """
    Each mistake has its exit code and one line that names it, and changes nothing.
    """
    before = infos(run)
    for argv, code, text in MISTAKES:
        ran = run(*argv.split())
        assert (ran.code, ran.out) == (code, ""), argv
        assert text in ran.err
    assert infos(run) == before


@pytest.mark.parametrize("way", ["served"])
@pytest.mark.parametrize(("argv", "what"), [("init --adopt", "init"), ("init --client x", "init")])
def test_alone_only(layers: str, run: Run, argv: str, what: str) -> None:
    """
    A command that needs exclusive access to the store says so, and names the holder.
    """
    refused = run(*argv.split())
    assert refused.code == 3
    assert f"snapshotter: {what} needs exclusive access to the store: " in refused.err
    assert f"is held by process {os.getpid()}" in refused.err


@pytest.mark.parametrize("way", ["alone"])
def test_held_by_a_library(layers: str, run: Run) -> None:
    """
    Where the holder serves nobody, what changes is refused with 3.
    """
    with Snapshotter(layers):
        for argv in ("prepare x", "view x", "commit x web", "fork web x", "rm web", "cleanup", "init --adopt"):
            refused = run(*argv.split())
            assert refused.code == 3, argv
            assert f"held by process {os.getpid()}" in refused.err


def test_a_store_of_containerd(btrfs: Path, run: Run, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Nothing is made by hand among the snapshots of containerd, which would delete it; they can be removed.
    """
    monkeypatch.setenv("SNAPSHOTTER_ROOT", str(btrfs / "s"))
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        store = stack.enter_context(Snapshotter.create(btrfs / "s", client="btrfs", socket=server.address))
        store.prepare("a")
        if way == "served":
            server.open(store)
        else:
            store.close()
        for argv in ("prepare x", "view x", "commit x a", "fork a x"):
            refused = run(*argv.split())
            assert refused.code == 1, argv
            assert "belongs to client 'btrfs', and containerd's garbage collection deletes" in refused.err
        assert [info[0] for info in infos(run)] == ["a"]
        assert run("rm", "a").code == 0
        assert infos(run) == []
