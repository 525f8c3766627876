"""
``snapshotter label``.
"""

import json

import pytest

from tests.snapshotter.cli.commands import Run

pytestmark = pytest.mark.btrfs


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
