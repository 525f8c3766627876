"""
A store for each test of this folder.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pybtrfs import image
from snapshotter import Snapshotter
from tests.nodes import SIZES, make_image
from tests.snapshotter.store.stores import works


@pytest.fixture
def root(btrfs: Path) -> Path:
    """
    A store with the layer "base" and two views.
    """
    works(Snapshotter.create(btrfs / "root"))
    return btrfs / "root"


@pytest.fixture(params=SIZES, ids="nodes of {} bytes".format)
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """
    The mount point of a btrfs with nodes of 4, 16 and 64 KiB.
    """
    target = tmp_path / "mount"
    target.mkdir()
    make_image(tmp_path / "image", request.param, 2 * image.MINIMUM_SIZE)
    with image.mount(tmp_path / "image", target):
        yield target
