"""
``snapshotter info``.
"""

import json
import os
from typing import Any

import pytest

from snapshotter import Snapshotter
from tests.snapshotter.cli.commands import Shown

pytestmark = pytest.mark.btrfs


def test_info(web_store: Snapshotter, shown: Shown) -> None:
    """
    info describes a snapshot of each kind.
    """
    known: dict[str, Any] = json.loads(shown("info", "web", "--json"))
    assert known == next(info for info in json.loads(shown("ls", "--json")) if info["name"] == "web") | {
        "size": 8192,
        "inodes": 1,
        "subvolume": os.path.relpath(web_store.subvolume("web"), web_store.root),
        "subvolid": known["subvolid"],
        "mounted": False,
        "problem": "",
        "children": [],
    }
    assert f"subvolid={known['subvolid']}" in web_store.mounts("web")[0].options
    text = shown("info", "base")
    assert "label      a=b=c\n" in text
    assert "child      v\n           web\n" in text
    assert "size       8192\n" in shown("info", "web", "--bytes")
    assert json.loads(shown("info", "v", "--json"))["subvolume"] is None
