"""
``snapshotter rm`` and ``cleanup``.
"""

import os

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter, cli
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Run, infos

pytestmark = pytest.mark.btrfs


def test_rm(layers: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """
    rm removes what it can, complains of each other, and its directories are gone when it returns.
    """
    capsys.readouterr()
    assert cli.main(["rm", "web", "nothing", "base"]) == 4
    assert [line.partition("snapshot ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "'nothing' does not exist: did you mean 'web'?",
        "'base' with child 'v': remove the children first",
    ]
    assert len(os.listdir(f"{layers}/snapshots")) == 2
    assert run("rm", "v", "base") == (0, "", "")
    assert os.listdir(f"{layers}/snapshots") == []


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


def test_cleanup(layers: str, run: Run) -> None:
    """
    rm and cleanup name what is held, and a later cleanup destroys it.
    """
    with Snapshotter(layers, read_only=True) as store, mounted(store.mounts("web")) as path:
        for command, name in (("rm web", "'web'"), ("cleanup", "/fs'")):
            code, out, err = run(*command.split())
            assert (code, out) == (0, "")
            assert f"{name} is not free yet, because it is mounted at {path} in the mount namespace of process " in err
            assert err.endswith("): unmount it, then run `snapshotter cleanup`\n")
        assert len(os.listdir(f"{layers}/snapshots")) == 3
    assert run("cleanup") == (0, "", "")
    assert len(os.listdir(f"{layers}/snapshots")) == 2
