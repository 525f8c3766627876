import os
from pathlib import Path
from typing import Any

import pytest

from tests.snapshotter.archive.trees import make


@pytest.fixture
def tree(btrfs: Path) -> Path:
    """
    A directory with each kind of file.
    """
    root = btrfs / "tree"
    root.mkdir()
    values: list[Any] = [0o640, (1, 70000), 1_600_000_000_123_456_789, {"user.a": b"\xff"}]
    name = os.fsencode("ü") + b"\xff"
    make(
        root,
        [
            ([name, b"file"], "file", b"content", *values),
            ([name, b"other"], "link", b"", *values),
            ([b"sparse"], "sparse", b"data", *values),
            ([b"symlink"], "symlink", b"/etc/passwd", *values[:3], {}),
            ([b"fifo"], "fifo", b"", *values[:3], {}),
            ([b"device"], "device", b"", *values[:3], {}),
            ([b"long" * 40, b"name" * 50], "directory", b"", *values),
        ],
    )
    return root
