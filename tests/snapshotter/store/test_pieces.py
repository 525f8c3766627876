"""
Records in pieces: replaced atomically, readable after every stop, and gone without a trace.
"""

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from snapshotter import Info, Kind, Snapshotter
from snapshotter.contract.labels import MAX_KEY_SIZE
from snapshotter.errors import FailedPreconditionError, UnavailableError
from snapshotter.store import pieces, records
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.layout import Directory, Place
from snapshotter.store.operations import MAX_TEXT_SIZE
from snapshotter.store.record_storage import XATTR
from snapshotter.store.records import DamagedError
from snapshotter.store.store import Store
from snapshotter.store.volumes import Contents, MountMode
from snapshotter.testing import settle

pytestmark = pytest.mark.btrfs

LIMIT = 300


class SmallLimit(BtrfsVolumes):
    """
    Volumes where small records need pieces.
    """

    def __init__(self, root: str, mount_mode: MountMode) -> None:
        super().__init__(root, mount_mode)
        self.record_limit = LIMIT


class StoppedError(Exception):
    """
    A kill.
    """


@contextmanager
def stopped(at: int, error: Exception) -> Iterator[None]:
    """
    Raise *error* before the change number *at* of an xattr.
    """
    changes = itertools.count(1)

    def around(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*arguments: object) -> None:
            if next(changes) == at:
                raise error
            change(*arguments)

        return changed

    with ExitStack() as stack:
        for name in ("setxattr", "removexattr"):
            stack.enter_context(mock.patch.object(os, name, around(getattr(os, name))))
        yield


def xattrs(path: str | Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}


def check_tidy(path: str | Path) -> None:
    """
    Check that the directory *path* has the pieces that its record names, and no others.
    """
    found = xattrs(path)
    data = found.pop(XATTR)
    named = records.named_pieces(data)
    assert sorted(found) == sorted(f"{XATTR}.{number}" for number in named)
    assert json.loads(data)["format"] == (2 if named else 1)


class End(Enum):
    """
    The end of a change.
    """

    STANDS = auto()
    REFUSED = auto()  # an error at some change of an xattr, or at the barrier
    KILLED = auto()


SIZES = st.integers(1, LIMIT) | st.integers(LIMIT, 4 * LIMIT)
STEPS = st.lists(st.tuples(SIZES, st.sampled_from(End), st.integers(1, 9)), max_size=5)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(first=SIZES, steps=STEPS)
@example(first=900, steps=[(10, End.KILLED, 2)])
@example(first=900, steps=[(10, End.REFUSED, 9)])
@example(first=10, steps=[(900, End.KILLED, 3)])
def test_any_changes(root: Path, first: int, steps: list[tuple[int, End, int]]) -> None:
    """
    After any changes, errors and kills a directory has the last record, or the next one after a kill, and no other
    piece.
    """
    texts = itertools.count(100)

    def new(size: int) -> bytes:
        return records.seal({"text": f"{next(texts)}" + "x" * size})

    with ExitStack() as stack:
        volumes = SmallLimit(str(root), "btrfs")
        stack.callback(volumes.close)

        def opened() -> Store:
            store = Store(str(root), volumes)
            stack.callback(store.close)
            return store

        store = opened()
        number = 1 + max(map(int, store.names()))
        record = new(first)
        directory = stack.enter_context(store.make_directory(number, record))
        for size, end, at in steps:
            check_tidy(directory.path)
            former, record = record, new(size)
            if end is End.STANDS:
                store.write(directory, record)
                store.tidy(directory)
            elif end is End.REFUSED:
                with suppress(OSError), stopped(at, OSError(errno.ENOSPC, "full")):
                    store.write(directory, record)
                store.restore(directory, former)
                record = former
            else:
                with suppress(StoppedError), stopped(at, StoppedError()):
                    store.write(directory, record)
                    store.tidy(directory)
                store = opened()
                store.whole(number, os.getxattr(directory.path, XATTR))
                store.tidy_recovered(number)
                if store.read(directory) == former:
                    record = former
            assert store.read(directory) == record
        check_tidy(directory.path)
        store.remove_directory(number)


LABELS = {f"label {number}": f"{number}" * 1000 for number in range(200)}


def filled(key: str, letter: str) -> dict[str, str]:
    """
    Return labels that make the snapshot *key* nearly as large as a snapshot may be.
    """
    count = (MAX_TEXT_SIZE - MAX_KEY_SIZE) // 4010
    return {f"{letter}{number}": letter * 4000 for number in range(count)}


def test_node_sizes(nodes: Path) -> None:
    """
    The largest snapshots are made, updated, forked, committed and removed with nodes of any size.
    """
    root = nodes / "root"
    key, name, fork = ("k" * MAX_KEY_SIZE, "n" * MAX_KEY_SIZE, "f" * MAX_KEY_SIZE)
    with Snapshotter.create(root) as store:
        store.prepare("small")
        store.commit("base", "small")
        store.prepare(key, "base", filled(key, "a"))
        store.prepare("empty", labels=filled("empty", "a"))
        store.view("view", "base", filled("view", "b"))
        store.fork(key, fork)
        store.commit(name, key, filled(name, "b"))
        for path in (root / "snapshots").iterdir():
            check_tidy(path)
        store.update(Info(Kind.ACTIVE, fork, labels=filled(fork, "c")))
        store.update(Info(Kind.VIEW, "view"))
        store.prepare("small")  # the layer of "base" forgets the key that it was committed from
        store.prepare(key, name)
        settle(store)
        before = {info.name: info for info in store.walk()}
        assert before[name].labels == filled(name, "b")
        assert before[fork].labels == filled(fork, "c")
        for path in (root / "snapshots").iterdir():
            check_tidy(path)
    with Snapshotter(root) as store:
        assert {info.name: info for info in store.walk()} == before
        assert store.problems() == []
        for each in ("empty", "view", key, fork, name, "small", "base"):
            store.remove(each)
        settle(store)
        assert os.listdir(root / "snapshots") == []


@pytest.fixture
def spilled(btrfs: Path) -> Path:
    """
    A closed store with an active snapshot "large", whose record is in pieces, and an active snapshot "small".
    """
    with Snapshotter.create(btrfs / "root") as store:
        store.prepare("large", labels=LABELS)
        store.prepare("small")
        settle(store)
    return btrfs / "root"


def labels(root: Path, key: str) -> dict[str, str]:
    with Snapshotter(root) as store:
        return dict(store.stat(key).labels)


def test_unnamed_pieces_are_removed(spilled: Path) -> None:
    """
    An open for writing removes the pieces that an interrupted change left; a read-only open leaves them alone.
    """
    path = spilled / "snapshots/1"
    before = xattrs(path)
    os.setxattr(path, f"{XATTR}.77", b"unnamed")
    Snapshotter(spilled, read_only=True).close()
    assert f"{XATTR}.77" in xattrs(path)
    assert labels(spilled, "large") == LABELS
    assert xattrs(path) == before


def test_stopped_before_the_first_piece(spilled: Path) -> None:
    """
    A record that fits and has format 2, because its directory was about to get pieces, gets format 1 again.
    """
    path = spilled / "snapshots/2"
    before = xattrs(path)
    os.setxattr(path, XATTR, records.reformatted(before[XATTR], records.SPILLED))
    os.setxattr(path, f"{XATTR}.1", b"unnamed")
    assert labels(spilled, "small") == {}
    assert xattrs(path) == before


def test_release_0_1_0(spilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A release that reads format 1 only refuses a store with a record in pieces, with both numbers.
    """
    monkeypatch.setattr(records, "SPILLED", 1)
    with pytest.raises(
        FailedPreconditionError, match="format 2 was written by a newer release; this one reads up to 1"
    ):
        records.unseal(os.getxattr(spilled / "snapshots/1", XATTR))
    assert records.unseal(os.getxattr(spilled / "snapshots/2", XATTR))["key"] == "small"


def test_newer_pieces(spilled: Path) -> None:
    """
    A record in pieces that a newer release wrote is refused with both numbers.
    """
    path = spilled / "snapshots/1"
    for number in records.named_pieces(os.getxattr(path, XATTR)):
        os.setxattr(path, f"{XATTR}.{number}", b"")
    os.setxattr(path, f"{XATTR}.{number}", records.seal({"format": 3, "id": 1}))
    with pytest.raises(FailedPreconditionError, match=r"format 3 .* reads up to 2"):
        Snapshotter(spilled)


def flip(path: Path, name: str, position: int) -> None:
    data = bytearray(os.getxattr(path, name))
    data[position] ^= 1
    os.setxattr(path, name, data)


@pytest.mark.parametrize("damage", ["missing", "flipped", "record", "no numbers"])
def test_damaged_pieces(spilled: Path, damage: str) -> None:
    """
    A missing or damaged piece, or a damaged record that names pieces, is the damage of one snapshot.
    """
    path = spilled / "snapshots/1"
    piece = f"{XATTR}.{records.named_pieces(os.getxattr(path, XATTR))[1]}"
    if damage == "missing":
        os.removexattr(path, piece)
    elif damage == "flipped":
        flip(path, piece, 100)
    elif damage == "record":
        flip(path, XATTR, -3)
    else:
        os.setxattr(path, XATTR, records.seal({"format": 2, "pieces": ["1", 2]}))
    before = xattrs(path)
    with Snapshotter(spilled) as store:
        assert [info.name for info in store.walk()] == ["small"]
        (problem,) = store.problems()
        assert problem.subject == str(path)
        assert problem.what.startswith("its record is damaged: ")
        store.prepare("large")
    assert xattrs(path) == before


def test_record_that_is_damaged_while_open(spilled: Path) -> None:
    """
    A damaged record is replaced by one in pieces as by any other, and no piece is deleted while it is damaged.
    """
    path = spilled / "snapshots/2"
    with Snapshotter(spilled) as store:
        flip(path, XATTR, -3)
        store.update(Info(Kind.ACTIVE, "small", labels=LABELS))
        check_tidy(path)
    assert labels(spilled, "small") == LABELS
    flip(path, XATTR, -3)
    before = xattrs(path)
    with Directory(os.open(path, os.O_RDONLY), str(path)) as directory, pytest.raises(DamagedError):
        pieces.tidy(directory.fd)
    assert xattrs(path) == before


def test_unreadable_piece(spilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A piece that cannot be read makes its snapshot unreadable, and no other.
    """
    getxattr = os.getxattr

    def failing(path: int, name: str) -> bytes:
        if name != XATTR:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return getxattr(path, name)

    monkeypatch.setattr(os, "getxattr", failing)
    with Snapshotter(spilled) as store:
        assert [info.name for info in store.walk()] == ["small"]
        assert [problem.what for problem in store.problems()] == ["it cannot be read: Input/output error"]


def test_reading_during_a_change(spilled: Path) -> None:
    """
    A read-only open during a change of a record in pieces sees the record before or after the change.
    """
    with ExitStack() as stack:
        store = stack.enter_context(Snapshotter(spilled))
        changes: list[dict[str, str]] = [{}, {**LABELS, "another": "one"}]

        class Changing(BtrfsVolumes):
            def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
                found = super().inspect(place)
                if place.name == "1" and changes:
                    store.update(Info(Kind.ACTIVE, "large", labels=changes.pop()))
                return found

        reader = stack.enter_context(Snapshotter(spilled, read_only=True, volumes=Changing))
        assert not changes
        assert reader.problems() == []
        assert reader.stat("large").labels == {}


def test_records_that_fit_cost_nothing(spilled: Path) -> None:
    """
    A snapshot whose record fits is made, committed, updated, removed and recovered without a look for pieces.
    """
    with Snapshotter(spilled) as store:
        store.remove("large")
        settle(store)
    refused = mock.Mock(side_effect=AssertionError)
    with (
        mock.patch.multiple(os, listxattr=refused, removexattr=refused),
        Snapshotter(spilled) as store,
        mock.patch.object(os, "getxattr", refused),
    ):
        store.commit("base", "small", {"a": "b"})
        store.prepare("small", "base")
        store.fork("small", "fork")
        store.view("view", "base")
        store.update(Info(Kind.VIEW, "view", labels={"a": "b"}))
        store.remove("view")


def test_removal_on_a_full_disk(spilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The removal of a snapshot with a long key needs no pieces. If the disk has no room for its record, it is gone
    nevertheless.
    """
    with Snapshotter(spilled) as store:
        store.prepare("k" * MAX_KEY_SIZE, labels=LABELS)
        settle(store)
        with mock.patch.object(os, "setxattr", wraps=os.setxattr) as written:
            store.remove("k" * MAX_KEY_SIZE)
            assert [call.args[1] for call in written.call_args_list] == [XATTR]
        with stopped(1, OSError(errno.ENOSPC, "full")):
            store.remove("large")
        settle(store)
        assert os.listdir(spilled / "snapshots") == ["2"]
    with Snapshotter(spilled) as store:
        assert [info.name for info in store.walk()] == ["small"]


def test_failed_undoing(spilled: Path) -> None:
    """
    Where the disk refuses a change and its undoing, the next change undoes both.
    """
    path = spilled / "snapshots/1"
    with Snapshotter(spilled) as store:
        refused = mock.Mock(side_effect=OSError(errno.ENOSPC, "full"))
        with mock.patch.object(os, "setxattr", refused), pytest.raises(Exception, match="full"):
            store.update(Info(Kind.ACTIVE, "large", labels={"a": "b"}))
        assert store.stat("large").labels == LABELS
        check_tidy(path)
        with mock.patch.object(os, "removexattr", refused):
            store.update(Info(Kind.ACTIVE, "large", labels={"a": "b"}))
        assert len(xattrs(path)) > 2
        store.update(Info(Kind.ACTIVE, "large", labels={"c": "d"}))
        check_tidy(path)
    assert labels(spilled, "large") == {"c": "d"}


def test_record_that_cannot_be_read(spilled: Path) -> None:
    """
    A change that fails at its first step has changed nothing, and undoes nothing.
    """
    path = spilled / "snapshots/1"
    before = xattrs(path)
    with Snapshotter(spilled) as store:
        refused = mock.Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO)))
        with mock.patch.object(os, "getxattr", refused), pytest.raises(UnavailableError, match="Input/output error"):
            store.update(Info(Kind.ACTIVE, "large", labels={"a": "b"}))
        assert xattrs(path) == before
    assert labels(spilled, "large") == LABELS
