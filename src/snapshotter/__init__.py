"""
containerd's snapshotter semantics on btrfs.
"""
