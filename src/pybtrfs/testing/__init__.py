"""
btrfs for tests: a fake kernel, which needs neither root nor btrfs, and the requirements of a real btrfs.

::

    with fake_btrfs(tmp_path):
        subvolume.create(tmp_path / "work")
        subvolume.snapshot(tmp_path / "work", tmp_path / "copy", read_only=True)
"""

from pybtrfs.testing.fake import fake_btrfs
from pybtrfs.testing.real import why_no_btrfs
from pybtrfs.testing.trees import copy_tree, remove_tree

__all__ = ["copy_tree", "fake_btrfs", "remove_tree", "why_no_btrfs"]
