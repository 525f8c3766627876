"""
A store for each test of this folder.
"""

from pathlib import Path

import pytest

from snapshotter import Snapshotter
from tests.snapshotter.store.stores import works


@pytest.fixture
def root(btrfs: Path) -> Path:
    """
    A store with the layer "base" and two views.
    """
    works(Snapshotter.create(btrfs / "root"))
    return btrfs / "root"
