"""
A subvolume for each test, on real btrfs, and again on the fake for those marked so.
"""

from pathlib import Path

import pytest

from pybtrfs import subvolume


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("fake"):
        fake = pytest.param("fake_btrfs", marks=pytest.mark.btrfs(needed=False))
        metafunc.parametrize("backing", ["btrfs", fake], indirect=True)


@pytest.fixture(scope="session")
def backing(request: pytest.FixtureRequest) -> str:
    """
    The fixture that gives the directory.
    """
    name = getattr(request, "param", "btrfs")
    if name == "btrfs":
        request.getfixturevalue("btrfs_image")  # now, or the first test would be blamed for leaving it
    return str(name)


@pytest.fixture
def btrfs(request: pytest.FixtureRequest, backing: str) -> Path:
    """
    An empty directory for subvolumes.
    """
    path: Path = request.getfixturevalue(backing)
    return path


@pytest.fixture
def base(btrfs: Path) -> Path:
    """
    A subvolume for the test.
    """
    subvolume.create(btrfs / "base")
    return btrfs / "base"
