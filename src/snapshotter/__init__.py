"""
containerd's snapshotter semantics on btrfs.
"""

from snapshotter.contract import Problem, Snapshotter
from snapshotter.snapshot import Info, Kind, Mount, Usage

__all__ = ["Info", "Kind", "Mount", "Problem", "Snapshotter", "Usage"]
