"""
Filesystems with nodes of any size, which only mkfs.btrfs can make.
"""

import os
from pathlib import Path

from tests.multidevice import progs

SIZES = (4096, 16_384, 65_536)


def make_image(path: Path, node_size: int, size: int) -> None:
    """
    Make the image of a btrfs with nodes of *node_size* bytes at *path*.
    """
    path.touch()
    os.truncate(path, size)
    progs("mkfs.btrfs", "-q", "-n", node_size, "-s", 4096, path)
