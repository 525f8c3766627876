"""
btrfs for tests.
"""

from pybtrfs.testing.fake import copy_tree, fake_btrfs, remove_tree, why_no_btrfs

__all__ = ["copy_tree", "fake_btrfs", "remove_tree", "why_no_btrfs"]
