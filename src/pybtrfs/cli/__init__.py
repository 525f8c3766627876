"""
The command ``pybtrfs``.
"""
