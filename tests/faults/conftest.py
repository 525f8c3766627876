"""
The image that disks start as.
"""

from pathlib import Path

import pytest

from pybtrfs import image


@pytest.fixture
def base(tmp_path: Path) -> str:
    """
    An image of 256 MiB with an empty btrfs.
    """
    path = str(tmp_path / "base")
    image.create(path, 256 << 20, sparse=True)
    return path
