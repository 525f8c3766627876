"""
A snapshotter for containerd on btrfs.
"""

from snapshotter.contract import Snapshotter
from snapshotter.model import Info, Kind, Mount, Problem, Usage

__all__ = ["Info", "Kind", "Mount", "Problem", "Snapshotter", "Usage"]
