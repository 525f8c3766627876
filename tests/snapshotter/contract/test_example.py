"""
The example in the documentation of the class.
"""

import inspect
import re
import textwrap
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.mounting import mounted


@pytest.mark.btrfs
def test_the_life_of_a_snapshot(btrfs: Path) -> None:
    """
    The example runs as it stands, and makes two layers on top of each other.
    """
    root = btrfs / "store"
    [example] = re.findall(r"::\n\n((?:    .*\n|\n)+)", inspect.getdoc(Snapshotter) or "")
    exec(textwrap.dedent(example), {"Path": Path, "Snapshotter": Snapshotter, "mounted": mounted, "root": root})
    with Snapshotter(root, read_only=True) as snapshotter:
        layers = {info.name: (info.kind, info.parent) for info in snapshotter.walk()}
        assert layers == {"layer-1": (Kind.COMMITTED, ""), "layer-2": (Kind.COMMITTED, "layer-1")}
        assert Path(snapshotter.subvolume("layer-1"), "file").read_text() == "from the image"
        assert Path(snapshotter.subvolume("layer-2"), "file").read_text() == "changed"
