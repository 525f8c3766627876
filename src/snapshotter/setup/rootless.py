"""
Places of a daemon for rootless containerd, in the directories of its user.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

UNIT = "btrfs-snapshotter-rootless.service"


class Places(NamedTuple):
    """
    The paths of a rootless daemon and of its containerd.

    Args:
        root: The store.
        address: The daemon's socket.
        main: The main configuration file of containerd.
        units: The directory of the user's systemd units.
    """

    root: str
    address: str
    main: str
    units: str


def places(environment: Mapping[str, str]) -> Places:
    """
    Return the places for a user, by the XDG directories in *environment*.
    """
    home = os.path.expanduser("~")
    data = environment.get("XDG_DATA_HOME") or os.path.join(home, ".local/share")
    config = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return Places(
        os.path.join(data, "btrfs-snapshotter"),
        os.path.join(runtime, "btrfs-snapshotter/snapshotter.sock"),
        os.path.join(config, "containerd/config.toml"),
        os.path.join(config, "systemd/user"),
    )
