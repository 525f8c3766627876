"""
Installation: containerd's configuration, systemd's units, image files.
"""
