"""
Faulty volumes.

The store has to cope with volumes that refuse. Volumes that skip a durable step show that a harness can fail.
"""

import itertools
import os

from pybtrfs import subvolume
from snapshotter.errors import FailedPreconditionError
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.layout import FS, LAYER, Directory


class RefusesCommits(BtrfsVolumes):
    """
    Refuses every fourth commit after it has made the layer, as if a subvolume had appeared concurrently.
    """

    _layers_made = itertools.count()

    def freeze(self, directory: Directory) -> None:
        super().freeze(directory)
        if next(self._layers_made) % 4 == 3:
            raise FailedPreconditionError("refused")


class WithoutBarrier(BtrfsVolumes):
    """
    Skips the fsync of the snapshot's directory.
    """

    def barrier(self, fd: int) -> None:
        pass


class FlagInsteadOfCopy(BtrfsVolumes):
    """
    Commits by renaming the active subvolume and setting a flag: two steps, and no data is written back.
    """

    def freeze(self, directory: Directory) -> None:
        os.rename(FS, LAYER, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
        subvolume.set_read_only(os.path.join(directory.path, LAYER))
