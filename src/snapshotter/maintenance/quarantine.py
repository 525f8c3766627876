"""
Quarantine of a store: the entries that a repair moved away because they belong to no snapshot.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable

from pybtrfs import tree_search
from pybtrfs.mountinfo import MountTable
from pybtrfs.path import open_directory, owned
from snapshotter.analysis import inventory
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, UnavailableError, is_damage, quoted, translating
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.layout import QUARANTINE, Directory, is_subvolume


def quarantined(root: str) -> list[str]:
    """
    Return the paths of the entries in the quarantine of the store at *root*.
    """
    directory = os.path.join(root, QUARANTINE)
    names = sorted(os.listdir(directory)) if os.path.exists(directory) else []
    return [os.path.join(directory, name) for name in names]


def damage(path: str) -> str:
    """
    Return the kernel's error at reading the entry *path* of a quarantine; empty if the entry can be read.

    After an entry that cannot be read is deleted, the kernel meets the same block, and turns the filesystem read-only.
    """
    try:
        with owned(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            subvolumes = [name for name in os.listdir(fd) if is_subvolume(fd, name)]
            inside = contextlib.suppress(PermissionError)  # without CAP_SYS_ADMIN, trees cannot be searched
            for name in subvolumes:
                with inside, owned(open_directory(fd, name)) as subvolume_fd:
                    tree_search.read(subvolume_fd)
    except OSError as error:
        return os.strerror(error.errno or 0) if is_damage(error) else ""
    return ""


def purge(store: Snapshotter, paths: Iterable[str]) -> None:
    """
    Delete the entries *paths* of the quarantine of an open *store*. Not durable.

    Needs no lock, so the store may be open read-only while another process holds it. Every entry is tried, even if one
    cannot be deleted.

    Raises:
        FailedPreconditionError: Something is mounted in an entry.
        UnavailableError: The kernel cannot read an entry, and so cannot delete it.
    """
    with translating(f"purge store {store.root!r}"), contextlib.ExitStack() as stack:
        volumes = BtrfsVolumes(store.root, "btrfs")
        stack.callback(volumes.close)
        orphaned = [os.path.join(store.root, volume.path) for volume in inventory.take(store, measured=False).orphaned]
        mounts = volumes.mounts()
        for path in paths:
            if mounts.has_mount_below(path):
                raise FailedPreconditionError(f"something is mounted in {path!r}: unmount it first")
        failed = []
        for path in paths:
            try:
                _delete(volumes, path, [inner for inner in orphaned if f"{inner}/".startswith(f"{path}/")], mounts)
            except OSError as error:
                if not is_damage(error):
                    raise
                failed.append(path)
        if failed:
            raise UnavailableError(
                f"the kernel cannot read, and so cannot delete, {', '.join(map(quoted, failed))}: "
                "look at the unmounted filesystem with `btrfs check`"
            )


def _delete(volumes: BtrfsVolumes, path: str, subvolumes: Iterable[str], mounts: MountTable) -> None:
    for inner in subvolumes:
        above, name = os.path.split(inner)
        with Directory(os.open(above, os.O_RDONLY | os.O_DIRECTORY), above) as directory:
            volumes.destroy(directory, name, mounts)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
