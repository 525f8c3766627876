"""
Installation of the daemon: containerd's configuration, systemd units and image files.
"""
