"""
Write errors: detection of data that the disk refused, so that no such data is committed.
"""

from snapshotter.errors import DataLossError, quoted
from snapshotter.events import Event
from snapshotter.store.index import Snapshot
from snapshotter.store.store import Store
from snapshotter.store.volumes import Volumes


class WriteErrors:
    """
    The write errors of the filesystem of a store that is open for writing.

    Args:
        verify: Ask the disk; without it, all data is trusted.
    """

    def __init__(self, store: Store, volumes: Volumes, *, verify: bool) -> None:
        self._store = store
        self._volumes = volumes
        self._verify = verify
        self._first_id = store.header.id_limit

    def verify(self, active: Snapshot) -> None:
        """
        Sync the filesystem and check that the disk took all data of *active*.

        Raises:
            DataLossError: The disk refused data of the filesystem since *active* was prepared.
        """
        if self._verify:
            try:
                self._volumes.verify()
            except OSError as error:
                # The kernel reports an error once, without the file, so every active snapshot becomes suspect.
                Event.DATA_REFUSED.emit(root=self._store.root, error=str(error))
                self._store.suspect_all()
        self.check(active)

    def check(self, active: Snapshot) -> None:
        """
        Raise an error if the disk may have refused data of *active*.

        Raises:
            DataLossError: *active* is suspect.
        """
        if self._verify and self.is_suspect(active):
            raise DataLossError(
                f"the disk may have refused data of snapshot {quoted(active.key)}: "
                "repair the disk, then prepare the snapshot again"
            )

    def is_suspect(self, active: Snapshot) -> bool:
        """
        Return whether the disk may have refused data of *active*.
        """
        if active.record.suspect or active.id < self._store.header.suspect:
            return True
        # Errors from before this open are not reported by syncfs, so compare the error counters of the devices.
        return active.id < self._first_id and self._volumes.write_errors() > active.record.write_errors
