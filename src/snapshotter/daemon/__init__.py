"""
The daemon that serves a store to containerd.
"""
