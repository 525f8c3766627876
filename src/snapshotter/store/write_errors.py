"""
Whether the disk took what was written to an active snapshot: data that it refused is never committed.
"""

from snapshotter.errors import DataLossError, quoted
from snapshotter.events import Event
from snapshotter.store.index import Snapshot
from snapshotter.store.store import Store
from snapshotter.store.volumes import Volumes


class WriteErrors:
    """
    What is known of the data of a store that is open for writing.

    Args:
        verify: Off, nothing is asked of the disk, and all is trusted.
    """

    def __init__(self, store: Store, volumes: Volumes, *, verify: bool) -> None:
        self._store = store
        self._volumes = volumes
        self._verify = verify
        self._first_id = store.header.id_limit

    def verify(self, active: Snapshot) -> None:
        """
        Have the disk say whether it took everything so far.

        Raises:
            DataLossError: Data of the filesystem was lost while *active* was there to lose some.
        """
        if self._verify:
            try:
                self._volumes.verify()
            except OSError as error:
                # The kernel tells once, and not whose data it was.
                Event.DATA_REFUSED.emit(root=self._store.root, error=str(error))
                self._store.suspect_all()
        self.check(active)

    def check(self, active: Snapshot) -> None:
        """
        Raises:
            DataLossError: *active* is suspect.
        """
        if self._verify and self.is_suspect(active):
            raise DataLossError(
                f"the disk may have refused data of snapshot {quoted(active.key)}: mend the disk and make it again"
            )

    def is_suspect(self, active: Snapshot) -> bool:
        """
        Whether the disk may have refused data of *active*.
        """
        if active.record.suspect or active.id < self._store.header.suspect:
            return True
        # Before this opening nobody listened for write-back errors: the devices' counters have to do.
        return active.id < self._first_id and self._volumes.write_errors() > active.record.write_errors
