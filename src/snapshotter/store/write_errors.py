"""
Write errors: detection of data that the disk refused, so that no such data is committed.
"""

from collections.abc import Iterable

from snapshotter.errors import DataLossError, quoted
from snapshotter.events import Event
from snapshotter.store.index import Snapshot
from snapshotter.store.store import Store
from snapshotter.store.volumes import Volumes


class WriteErrors:
    """
    The write errors of the filesystem of an open store.

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
                "repair the disk, then prepare the snapshot again; `snapshotter doctor` explains the reason"
            )

    def is_suspect(self, active: Snapshot) -> bool:
        """
        Return whether the disk may have refused data of *active*.
        """
        if self.is_reported(active):
            return True
        # Errors from before this open are not reported by syncfs, so compare the counters of the devices.
        return active.id < self._first_id and active.record.write_errors.may_have_lost(self._volumes.write_errors())

    def is_reported(self, active: Snapshot) -> bool:
        """
        Return whether the loss of data of *active* is on record, so that the counters of the devices do not matter.
        """
        return active.record.suspect or active.id < self._store.header.suspect

    def unreported(self, actives: Iterable[Snapshot]) -> list[Snapshot]:
        """
        Return the snapshots of *actives* whose loss only the counters of the devices show, which can be reset later.
        """
        candidates = [active for active in actives if not self.is_reported(active)]
        if not self._verify or not candidates:
            return []
        now = self._volumes.write_errors()
        return [active for active in candidates if active.record.write_errors.may_have_lost(now)]
