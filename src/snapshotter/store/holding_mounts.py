"""
Mounts that keep a subvolume from being destroyed, with the processes or files that keep their mount namespaces.
"""

import shlex
from collections.abc import Iterable
from typing import NamedTuple

from pybtrfs import mountinfo
from pybtrfs.mountinfo import Keeper, MountPoint


class HoldingMount(NamedTuple):
    """
    A mount and its mount namespace.

    Args:
        subvolid: The mounted subvolume; None if something else is mounted in the subvolume.
        path: The mount point, as the processes of its mount namespace see it.
        pid: A process or thread in the mount namespace, or with the namespace open; None if no visible process is.
        namespace: A file that leads to the mount namespace; empty if no such file is visible.
    """

    subvolid: int | None
    path: str
    pid: int | None
    namespace: str
    read_only: bool

    @property
    def text(self) -> str:
        """
        The mount point and the mount namespace, for people.
        """
        if not self.namespace:
            return f"{self.path} in a mount namespace that no visible process or file keeps"
        process = f" of process {self.pid}" if self.pid is not None else ""
        return f"{self.path} in the mount namespace{process} ({self.namespace})"

    @property
    def cure(self) -> str:
        """
        The command that unmounts it.
        """
        enter = f"nsenter --mount={shlex.quote(self.namespace)} " if self.namespace else ""
        return f"{enter}umount {shlex.quote(self.path)}"


def locate(mounts: Iterable[MountPoint]) -> tuple[HoldingMount, ...]:
    """
    Return *mounts* with their mount namespaces, each mount once.
    """
    mounts = tuple(dict.fromkeys(mounts))
    keepers = mountinfo.keepers({mount.namespace for mount in mounts})
    none = Keeper("", None)
    found = (
        HoldingMount(mount.subvolid, mount.path, keeper.pid, keeper.path, mount.read_only)
        for mount in mounts
        for keeper in (keepers.get(mount.namespace, none),)
    )
    return tuple(dict.fromkeys(found))
