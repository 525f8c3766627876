"""
Streams of subvolumes, as ``btrfs send`` writes them.
"""

from pybtrfs.send.send import get_stream_version, send

__all__ = ["get_stream_version", "send"]
