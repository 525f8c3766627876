"""
Write errors: data that the disk refused, or may have refused, is never committed.
"""

import errno
import os

import pytest

from snapshotter.errors import DataLossError
from snapshotter.store.counters import Counters
from snapshotter.store.header import Header
from snapshotter.store.index import Snapshot
from snapshotter.store.records import Record, State
from snapshotter.store.write_errors import WriteErrors

NO_ERRORS = Counters()
FIRST_ID = 10  # the first id of this open of the store
REFUSED = "the disk may have refused data of snapshot 'k': repair the disk, then prepare the snapshot again; "


class FakeStore:
    root = "/root"

    def __init__(self) -> None:
        self.header = Header("uuid", {}, id_limit=FIRST_ID)

    def suspect_all(self) -> None:
        self.header = self.header._replace(suspect=20)


class FakeVolumes:
    def __init__(self) -> None:
        self.refused = False
        self.errors = Counters()

    def verify(self) -> None:
        if self.refused:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write_errors(self) -> Counters:
        return self.errors


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def volumes() -> FakeVolumes:
    return FakeVolumes()


def make(store: FakeStore, volumes: FakeVolumes, *, verify: bool = True) -> WriteErrors:
    return WriteErrors(store, volumes, verify=verify)  # type: ignore[arg-type]  # all of them that is used


def active(id: int, *, write_errors: Counters = NO_ERRORS, suspect: bool = False) -> Snapshot:
    return Snapshot(Record(id, State.ACTIVE, "k", write_errors=write_errors, suspect=suspect), None)


def test_accepted(store: FakeStore, volumes: FakeVolumes) -> None:
    """
    Without errors nothing is suspect.
    """
    errors = make(store, volumes)
    errors.verify(active(1))
    errors.verify(active(FIRST_ID))


def test_refused(store: FakeStore, volumes: FakeVolumes, caplog: pytest.LogCaptureFixture) -> None:
    """
    If a sync fails, every snapshot that exists is suspect, also after a later sync that succeeds; a newer one is not.
    """
    errors = make(store, volumes)
    volumes.refused = True
    with pytest.raises(DataLossError, match=REFUSED):
        errors.verify(active(FIRST_ID))
    assert "data-refused" in caplog.text
    volumes.refused = False
    with pytest.raises(DataLossError, match=REFUSED):
        errors.verify(active(19))
    errors.verify(active(20))


def test_suspect_record(store: FakeStore, volumes: FakeVolumes) -> None:
    """
    A snapshot whose record says that it is suspect stays suspect.
    """
    with pytest.raises(DataLossError, match=REFUSED):
        make(store, volumes).check(active(FIRST_ID, suspect=True))


@pytest.mark.parametrize(("now", "suspect"), [(0, True), (3, False), (4, True)])
def test_device_counters(now: int, suspect: bool, store: FakeStore, volumes: FakeVolumes) -> None:
    """
    For a snapshot from before this open, the error counters of the devices decide; for a newer one, they do not matter.
    """
    errors = make(store, volumes)
    before = Counters(3, {1: 3})
    volumes.errors = Counters(now, {1: now})
    old, new = active(FIRST_ID - 1, write_errors=before), active(FIRST_ID, write_errors=before)
    assert errors.is_suspect(old) is suspect
    assert not errors.is_suspect(new)
    assert errors.unreported([old]) == ([old] if suspect else [])
    reported = active(FIRST_ID - 1, write_errors=before, suspect=True)
    assert errors.is_reported(reported)
    assert errors.unreported([reported]) == make(store, volumes, verify=False).unreported([old]) == []


def test_without_verification(store: FakeStore, volumes: FakeVolumes) -> None:
    """
    With verification off, the disk is not asked and every snapshot is accepted.
    """
    errors = make(store, volumes, verify=False)
    volumes.refused = True
    errors.verify(active(1, suspect=True))
    assert store.header.suspect == 0
