"""
``snapshotter prepare``, ``view`` and ``fork``.
"""

import json

import pytest

from tests.snapshotter.cli.commands import Run, infos

pytestmark = pytest.mark.btrfs


def test_made(layers: str, run: Run) -> None:
    """
    The prepared, viewed and committed snapshots are listed.
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
