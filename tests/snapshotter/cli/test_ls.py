"""
``snapshotter ls``.
"""

import json

import pytest

from snapshotter import Snapshotter, cli
from tests.snapshotter.cli.commands import Shown

pytestmark = pytest.mark.btrfs


def test_ls(web_store: Snapshotter, shown: Shown) -> None:
    """
    ls has the columns and the order that are asked for, and asks for no more than them.
    """
    assert shown("ls", "--columns=size,key,mounted,labels", "--sort=-size", "--bytes").splitlines() == [
        "SIZE  KEY   MOUNTED  LABELS",
        "8192  web            owner=me",
        "   0  base           a=b=c",
        "   0  v",
    ]
    assert [info["name"] for info in json.loads(shown("ls", "--json", "--sort=-created"))] == ["v", "web", "base"]
    assert [line.split()[0] for line in shown("ls", "kind!=view", "--sort=subvolid").splitlines()] == [
        "KEY",
        "base",
        "web",
    ]
    assert cli.main(["ls", "--sort=none"]) == cli.main(["ls", "--columns=key,"]) == 2
