"""
btrfs from Python with nothing but the kernel.
"""
