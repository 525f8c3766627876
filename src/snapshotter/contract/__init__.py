"""
The rules of containerd's contract.
"""

from snapshotter.contract.snapshotter import Options, Snapshotter

__all__ = ["Options", "Snapshotter"]
