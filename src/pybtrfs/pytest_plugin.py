"""
Fixtures for pytest: a temporary btrfs on a loop device, and a fake that needs no root.

A conftest.py takes them with ``pytest_plugins = ["pybtrfs.pytest_plugin"]``. No entry point registers them, because
pytest would then import pybtrfs, and rewrite its modules, in every run of the environment.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import image, subvolume, testing

_SIZE = 8 << 30  # bytes; the file is sparse
_numbers = count()


@pytest.fixture
def btrfs_mount() -> Iterator[Callable[..., Path]]:
    """
    Provide a function that mounts a new btrfs and returns its mount point. After the test it is removed.

    The function takes the arguments of `pybtrfs.image.temporary`. It skips the test if no btrfs can be mounted.
    """
    with ExitStack() as stack:

        def mount(size: int = 256 << 20, **options: Any) -> Path:
            return stack.enter_context(_mounted(size, **options))

        yield mount


@pytest.fixture(scope="session")
def btrfs_image() -> Iterator[Path]:
    """
    Provide the mount point of a btrfs that all tests share, or skip the test if no btrfs can be mounted.
    """
    with _mounted(_SIZE) as path:
        yield path


@pytest.fixture
def btrfs(btrfs_image: Path) -> Iterator[Path]:
    """
    Provide an empty directory on btrfs. After the test it is removed with its subvolumes.
    """
    path = btrfs_image / str(next(_numbers))
    path.mkdir()
    yield path
    _remove(path)


@pytest.fixture
def fake_btrfs(tmp_path: Path) -> Iterator[Path]:
    """
    Provide an empty directory on a fake btrfs, whose subvolumes are plain directories; see
    `pybtrfs.testing.fake_btrfs`.
    """
    with testing.fake_btrfs(tmp_path):
        yield tmp_path


@contextmanager
def _mounted(size: int, **options: Any) -> Iterator[Path]:
    if why := testing.why_no_btrfs():
        pytest.skip(why)
    with image.temporary(size, **options) as path:
        path.parent.chmod(0o755)  # tests may drop privileges
        yield path


def _remove(path: Path) -> None:
    if subvolume.is_subvolume(path):
        subvolume.delete(path, recursive=True)
        return
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove(entry)
        else:
            entry.unlink()
    path.rmdir()
