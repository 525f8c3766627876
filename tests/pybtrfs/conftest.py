"""
A subvolume for each test.
"""

from pathlib import Path

import pytest

from pybtrfs import subvolume


@pytest.fixture
def base(btrfs: Path) -> Path:
    """
    A subvolume for the test.
    """
    subvolume.create(btrfs / "base")
    return btrfs / "base"
