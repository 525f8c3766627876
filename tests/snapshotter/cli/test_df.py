"""
``snapshotter df`` and ``frees``.
"""

import json

import pytest

from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Shown

pytestmark = pytest.mark.btrfs


def test_df(web_store: Snapshotter, shown: Shown) -> None:
    """
    df sums what is in the store by kind, and what is left of what was.
    """
    with mounted(web_store.mounts("web")):
        web_store.remove("web")
        found = json.loads(shown("df", "--json"))
    assert {name: found[name]["count"] for name in ("committed", "active", "view", "pending", "orphaned")} == {
        "committed": 1,
        "active": 0,
        "view": 1,
        "pending": 1,
        "orphaned": 0,
    }
    assert found["pending"] == {"count": 1, "size": 8192, "reclaimable": 0}
    assert found["filesystem"]["unallocated"] == found["filesystem"]["size"] - found["filesystem"]["allocated"]
    text = shown("df")
    assert text.startswith("TYPE       COUNT")
    assert "\nmetadata, single " in text


def test_frees(web_store: Snapshotter, shown: Shown) -> None:
    """
    frees says what all of them together give back.
    """
    web_store.fork("web", "fork")
    assert shown("frees", "web") == "0 B\n"
    assert shown("frees", "fork", "web") == "8.0 KiB\n"
    assert shown("frees", "fork", "web", "--bytes") == "8192\n"
    assert json.loads(shown("frees", "web", "fork", "--json")) == {"keys": ["web", "fork"], "size": 8192}
