"""
Quarantine of a store: the entries that a repair moved away because they belong to no snapshot.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable

from snapshotter.analysis import inventory
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, translating
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.layout import QUARANTINE, Directory


def quarantined(root: str) -> list[str]:
    """
    Return the paths of the entries in the quarantine of the store at *root*.
    """
    directory = os.path.join(root, QUARANTINE)
    names = sorted(os.listdir(directory)) if os.path.exists(directory) else []
    return [os.path.join(directory, name) for name in names]


def purge(store: Snapshotter, paths: Iterable[str]) -> None:
    """
    Delete the entries *paths* of the quarantine of an open *store*. Not durable.

    Needs no lock, so the store may be open read-only while another process holds it.

    Raises:
        FailedPreconditionError: Something is mounted in an entry.
    """
    with translating(f"purge store {store.root!r}"), contextlib.ExitStack() as stack:
        volumes = BtrfsVolumes(store.root, "btrfs")
        stack.callback(volumes.close)
        orphaned = [os.path.join(store.root, volume.path) for volume in inventory.take(store, measured=False).orphaned]
        mounts = volumes.mounts()
        for path in paths:
            if mounts.has_mount_below(path):
                raise FailedPreconditionError(f"something is mounted in {path!r}: unmount it first")
        for path in paths:
            for inner in orphaned:
                if f"{inner}/".startswith(f"{path}/"):
                    above, name = os.path.split(inner)
                    with Directory(os.open(above, os.O_RDONLY | os.O_DIRECTORY), above) as directory:
                        volumes.destroy(directory, name, mounts)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            elif os.path.lexists(path):
                os.unlink(path)
