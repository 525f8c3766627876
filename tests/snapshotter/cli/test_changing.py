"""
The commands that change a store: alone with it, and through the daemon that has it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter, cli
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Run
from tests.snapshotter.serving import serving

pytestmark = pytest.mark.btrfs


@pytest.fixture(params=["alone", "served"])
def way(request: pytest.FixtureRequest) -> str:
    """
    How the command reaches its store.
    """
    return str(request.param)


@pytest.fixture
def root(btrfs: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> Iterator[str]:
    """
    An empty store, which the environment names.
    """
    path = str(btrfs / "store")
    monkeypatch.setenv("SNAPSHOTTER_ROOT", path)
    Snapshotter.create(path).close()
    with ExitStack() as stack:
        if way == "served":
            server = stack.enter_context(serving())
            server.open(stack.enter_context(Snapshotter(path, client=None, socket=server.address)))
        yield path


def infos(run: Run, *argv: str) -> list[tuple[str, str, str, dict[str, str]]]:
    listed = json.loads(run("ls", "--json", *argv).out)
    return [(info["name"], info["kind"], info["parent"], info["labels"]) for info in listed]


def test_made(layers: str, run: Run) -> None:
    """
    What was asked for is there.
    """
    assert infos(run) == [
        ("base", "Committed", "", {"a": "b=c"}),
        ("v", "View", "base", {}),
        ("web", "Active", "base", {"owner": "me"}),
    ]


def test_mounts(layers: str, run: Run) -> None:
    """
    prepare, view and fork print what mounts does.
    """
    for argv in (["prepare", "p", "base"], ["view", "w", "base"], ["fork", "web", "f"]):
        made = run(*argv)
        assert made == run("mounts", argv[-1] if argv[0] == "fork" else argv[1])
        assert made.out.startswith("mount -t btrfs -o subvolid=")


def test_fork(layers: str, run: Run) -> None:
    """
    fork copies content and labels of an active snapshot.
    """
    [mount] = json.loads(run("fork", "web", "copy", "--json").out)
    assert mount["type"] == "btrfs"
    assert [info[0] for info in infos(run, "labels.owner==me")] == ["copy", "web"]
    assert run("usage", "copy", "--bytes").out.split()[-2:] == ["8192", "1"]


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


def test_rm(layers: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """
    rm removes what it can, complains of each other, and its directories are gone when it returns.
    """
    capsys.readouterr()
    assert cli.main(["rm", "web", "nothing", "base"]) == 4
    assert [line.partition("snapshot ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "'nothing' does not exist: not found",
        "'base' with child",
    ]
    assert len(os.listdir(f"{layers}/snapshots")) == 2
    assert run("rm", "v", "base") == (0, "", "")
    assert os.listdir(f"{layers}/snapshots") == []


def test_cleanup(layers: str, run: Run) -> None:
    """
    rm and cleanup name what is held, and a later cleanup destroys it.
    """
    with Snapshotter(layers, read_only=True) as store, mounted(store.mounts("web")):
        cure = "because it is mounted or in use: unmount it, then run `snapshotter cleanup`"
        held = f"snapshotter: the space of 'web' is not free yet, {cure}\n"
        assert run("rm", "web") == (0, "", held)
        assert f"/fs' is not free yet, {cure}" in run("cleanup").err
        assert len(os.listdir(f"{layers}/snapshots")) == 3
    assert run("cleanup") == (0, "", "")
    assert len(os.listdir(f"{layers}/snapshots")) == 2


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


def test_label(layers: str, run: Run) -> None:
    """
    label shows the labels of a snapshot, sets some, and takes some away.
    """
    assert run("label", "web", "tier=a=b", "owner-", "empty=") == (0, "", "")
    assert run("label", "web") == (0, "tier=a=b\n", "")
    assert json.loads(run("label", "web", "owner=me", "--json").out)["labels"] == {"tier": "a=b", "owner": "me"}
    assert run("label", "v") == (0, "", "")
    for argv, code, text in (
        ("none a=b", 4, "'none' does not exist"),
        ("none", 4, "'none' does not exist"),
        ("web a", 2, "'a' is neither KEY=VALUE nor KEY-"),
        ("web =b", 2, "the key of a label is empty"),
    ):
        refused = run("label", *argv.split())
        assert (refused.code, refused.out) == (code, ""), argv
        assert text in refused.err


def test_rm_in_order(layers: str, run: Run) -> None:
    """
    Children go before what they rest on, in whatever order they are named.
    """
    assert run("rm", "base", "v", "web") == (0, "", "")
    assert infos(run) == []


def test_rm_waits(layers: str, run: Run) -> None:
    """
    When rm returns the kernel has cleaned the subvolumes; --no-wait leaves that to the background.
    """
    with Snapshotter(layers, read_only=True) as store:
        ids = {key: subvolume.get_id(store.subvolume(key)) for key in ("web", "base")}
    assert run("rm", "web", "v") == (0, "", "")
    subvolume.wait_deleted(layers, ids["web"], timeout=0)
    assert run("rm", "base", "--no-wait") == (0, "", "")
    assert infos(run) == []
    assert run("cleanup") == (0, "", "")
    subvolume.wait_deleted(layers, ids["base"], timeout=0)


def test_rm_dry_run(layers: str, run: Run) -> None:
    """
    --dry-run removes nothing, and says what would come back or why it could not.
    """
    assert run("rm", "web", "--dry-run", "--bytes") == (0, "8192\n", "")
    assert run("rm", "base", "web", "v", "--dry-run") == (0, "8.0 KiB\n", "")
    assert run("rm", "base", "--dry-run").code == 1
    assert run("rm", "none", "--dry-run").code == 4
    assert [info[0] for info in infos(run)] == ["base", "v", "web"]
