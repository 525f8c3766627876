"""
Snapshots as tar files.
"""
