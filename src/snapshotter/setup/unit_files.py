"""
The systemd units of the daemon, for a given root and socket.
"""

import os
import re
import shlex
from collections.abc import Sequence
from importlib import resources

from pybtrfs import mountinfo
from pybtrfs.path import owned
from snapshotter.daemon.config import Config
from snapshotter.errors import InvalidArgumentError

NAMES = ("btrfs-snapshotter.service", "btrfs-snapshotter.socket")
COMMAND = ("/usr/bin/snapshotter",)

# Mount points of filesystems that a running system needs, so that nobody unmounts them.
_SYSTEM = ("/", "/home", "/opt", "/root", "/var", "/var/lib")
_PLAIN = re.compile(r"[\w@/.,:=+-]+")


def text(name: str, root: str, address: str, command: Sequence[str] = COMMAND) -> str:
    """
    Return the text of the unit *name*, with *root*, *address* and the *command* that starts the daemon.

    Raises:
        InvalidArgumentError: A path has characters that a unit file cannot contain.
    """
    unit = resources.files("snapshotter.setup").joinpath("units", name).read_text()
    default = Config()
    serve = ("serve", "--no-create", "--root")
    started = shlex.join([*COMMAND, *serve, default.root, "--address", default.address])
    unit = unit.replace(started, " ".join(map(_word, [*command, *serve, root, "--address", address])))
    unit = unit.replace(f"RequiresMountsFor={default.root}\n", f"RequiresMountsFor={_word(root)}\n")
    # In ListenStream only the percent sign is special.
    unit = unit.replace(f"ListenStream={default.address}\n", f"ListenStream={_percent(_line(address))}\n")
    if root != default.root:
        made = "StateDirectory=btrfs-snapshotter\nStateDirectoryMode=0700\n"
        unit = unit.replace(made, f"ReadWritePaths={_word(_writable(root))}\n")
    return unit


def _writable(root: str) -> str:
    """
    Return the path that the service may write to: the mount point of *root* if the mount is no system's.

    To make less of a mount writable, systemd binds a copy of that part in the mount namespace of the service. With the
    copy, a dead filesystem stays in use after an administrator has unmounted it, and a new mount shows it again.
    """
    path = root
    while not os.path.exists(path):
        path = os.path.dirname(path)
    with owned(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        mount = mountinfo.own(fd)
    return root if mount is None or mount.point in _SYSTEM else mount.point


def _word(value: str) -> str:
    """
    Return *value* quoted as one word of a command line.
    """
    value = _percent(_line(value)).replace("$", "$$")
    return value if _PLAIN.fullmatch(value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _percent(value: str) -> str:
    return value.replace("%", "%%")


def _line(value: str) -> str:
    if not value.isprintable():
        raise InvalidArgumentError(f"{value!r} has characters that a unit file cannot contain: choose another path")
    return value
