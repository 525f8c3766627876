"""
``snapshotter diff``.
"""

import json

import pytest

from pybtrfs import filesystem
from snapshotter import Snapshotter
from tests.snapshotter.cli.commands import Shown

pytestmark = pytest.mark.btrfs


def test_diff(web_store: Snapshotter, shown: Shown) -> None:
    """
    diff lists changes with sizes, of two snapshots or of one and its parent.
    """
    filesystem.sync(web_store.root)
    assert shown("diff", "base", "web", "--bytes").splitlines() == [
        "CHANGE  TYPE  BEFORE  SIZE  PATH",
        "added   file          8000  file",
    ]
    assert json.loads(shown("diff", "web", "--json")) == [
        {"path": "file", "change": "added", "type": "file", "size": 8000, "size_before": None, "source": ""}
    ]
    assert shown("diff", "web", "base").splitlines()[1].split() == ["deleted", "file", "7.8", "KiB", "file"]
