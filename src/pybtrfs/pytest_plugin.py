"""
Fixtures for pytest, which finds this module by its entry point: a real btrfs to throw away, and one without root.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

# Each fixture imports what it needs: this module is loaded with every run of pytest that sees the distribution.

_SIZE = 8 << 30  # bytes; the file is sparse
_numbers = count()


@pytest.fixture
def btrfs_mount() -> Iterator[Callable[..., Path]]:
    """
    A function that mounts a new btrfs of *size* bytes, which is gone after the test, and returns the mount point.

    It has the arguments of `pybtrfs.image.temporary`. Where there can be no btrfs the test is skipped.
    """
    with ExitStack() as stack:

        def mount(size: int = 256 << 20, **options: Any) -> Path:
            return stack.enter_context(_mounted(size, **options))

        yield mount


@pytest.fixture(scope="session")
def btrfs_image() -> Iterator[Path]:
    """
    The mount point of the btrfs that tests share; where there can be none they are skipped.
    """
    with _mounted(_SIZE) as path:
        yield path


@pytest.fixture
def btrfs(btrfs_image: Path) -> Iterator[Path]:
    """
    An empty directory on btrfs; it and its subvolumes are gone after the test.
    """
    path = btrfs_image / str(next(_numbers))
    path.mkdir()
    yield path
    _remove(path)


@pytest.fixture
def fake_btrfs(tmp_path: Path) -> Iterator[Path]:
    """
    An empty directory whose subvolumes are plain directories, as `pybtrfs.testing.fake_btrfs` says. Needs nothing.
    """
    from pybtrfs import testing

    with testing.fake_btrfs(tmp_path):
        yield tmp_path


@contextmanager
def _mounted(size: int, **options: Any) -> Iterator[Path]:
    from pybtrfs import image, testing

    if why := testing.why_no_btrfs():
        pytest.skip(why)
    with image.temporary(size, **options) as path:
        path.parent.chmod(0o755)  # tests may drop privileges
        yield path


def _remove(path: Path) -> None:
    from pybtrfs import subvolume

    if subvolume.is_subvolume(path):
        subvolume.delete(path, recursive=True)
        return
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove(entry)
        else:
            entry.unlink()
    path.rmdir()
