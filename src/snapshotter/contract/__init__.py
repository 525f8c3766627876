"""
The rules of containerd's snapshotter contract.
"""

from snapshotter.contract.opening import Options
from snapshotter.contract.snapshotter import Snapshotter

__all__ = ["Options", "Snapshotter"]
