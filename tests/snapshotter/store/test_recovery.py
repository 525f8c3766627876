"""
Recovery of a store at open: each row of the table of verdicts, by rule and on a btrfs prepared to match it.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import subvolume
from snapshotter import Kind, Snapshotter
from snapshotter.errors import DataLossError, Error, FailedPreconditionError, NotFoundError
from snapshotter.model import EPOCH
from snapshotter.store import records
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.counters import Counters
from snapshotter.store.layout import Place
from snapshotter.store.record_storage import XATTR
from snapshotter.store.records import Commitment, Record, State
from snapshotter.store.recovery import Recovered, Verdict, judge, resolve_duplicate_keys
from snapshotter.store.volumes import Contents
from snapshotter.testing import settle

TABLE = {
    # (state of the record, fs, layer): verdict
    (State.PREPARING, "fs", "layer"): Verdict.ACTIVE,
    (State.PREPARING, "fs", ""): Verdict.ACTIVE,
    (State.PREPARING, "", "layer"): Verdict.REMOVED,
    (State.PREPARING, "", ""): Verdict.REMOVED,
    (State.ACTIVE, "fs", "layer"): Verdict.ACTIVE,
    (State.ACTIVE, "fs", ""): Verdict.ACTIVE,
    (State.ACTIVE, "", "layer"): Verdict.QUARANTINED,
    (State.ACTIVE, "", ""): Verdict.QUARANTINED,
    (State.VIEW, "fs", "layer"): Verdict.VIEW,
    (State.VIEW, "fs", ""): Verdict.VIEW,
    (State.VIEW, "", "layer"): Verdict.VIEW,
    (State.VIEW, "", ""): Verdict.VIEW,
    (State.COMMITTING, "fs", "layer"): Verdict.COMMITTED,
    (State.COMMITTING, "fs", ""): Verdict.ACTIVE,
    (State.COMMITTING, "", "layer"): Verdict.COMMITTED,
    (State.COMMITTING, "", ""): Verdict.QUARANTINED,
    (State.COMMITTED, "fs", "layer"): Verdict.COMMITTED,
    (State.COMMITTED, "fs", ""): Verdict.QUARANTINED,
    (State.COMMITTED, "", "layer"): Verdict.COMMITTED,
    (State.COMMITTED, "", ""): Verdict.QUARANTINED,
    (State.REMOVED, "fs", "layer"): Verdict.REMOVED,
    (State.REMOVED, "fs", ""): Verdict.REMOVED,
    (State.REMOVED, "", "layer"): Verdict.REMOVED,
    (State.REMOVED, "", ""): Verdict.REMOVED,
    (None, "fs", "layer"): Verdict.ORPHAN,
    (None, "fs", ""): Verdict.ORPHAN,
    (None, "", "layer"): Verdict.ORPHAN,
    (None, "", ""): Verdict.REMOVED,
}


def test_table_is_complete() -> None:
    """
    The table has a row for each state and each combination of subvolumes.
    """
    assert set(TABLE) == set(itertools.product([*State, None], ["fs", ""], ["layer", ""]))


@pytest.mark.parametrize(("row", "verdict"), TABLE.items())
def test_judge(row: tuple[State | None, str, str], verdict: Verdict) -> None:
    """
    Each row has the verdict of the table; an unverified commit differs in one row only.
    """
    state, fs, layer = row
    found = Contents(bool(fs), bool(layer), bool(fs or layer))
    assert judge(state, found, verified=True) is verdict
    unverified = Verdict.ACTIVE if row == (State.COMMITTING, "fs", "layer") else verdict
    assert judge(state, found) is unverified


def test_judge_unexpected() -> None:
    """
    An entry other than `fs` and `layer` makes a directory without a record an orphan, and has no other effect.
    """
    unexpected = Contents(False, False, True)
    assert judge(None, unexpected) is Verdict.ORPHAN
    assert judge(State.REMOVED, unexpected) is Verdict.REMOVED
    assert judge(State.COMMITTED, unexpected) is Verdict.QUARANTINED


# On btrfs

LOST = 900  # the id of a snapshot made by hand; the store has reserved ids beyond it


@pytest.fixture
def root(btrfs: Path) -> Path:
    """
    A closed store with the layers "base" and "other", and the active "active" on "base".
    """
    root = btrfs / "root"
    with Snapshotter.create(root) as store:
        for name in ("base", "other"):
            store.prepare("k")
            (root / "snapshots" / str(newest(root)) / "fs" / "name").write_text(name)
            store.commit(name, "k")
        store.prepare("active", "base")
        store.cleanup()
    return root


def newest(root: Path) -> int:
    return max(int(name) for name in os.listdir(root / "snapshots"))


@pytest.fixture
def reopen(root: Path) -> Iterator[Callable[..., Snapshotter]]:
    """
    A function that opens the store.
    """
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Snapshotter(root, **options))


def make(
    root: Path,
    state: State | None,
    fs: str = "",
    layer: str = "",
    id: int = LOST,
    key: str = "lost",
    verified: bool = True,
    **values: Any,
) -> Path:
    """
    Make the directory of a snapshot by hand, as a crash or a person could have left it.
    """
    path = root / "snapshots" / str(id)
    path.mkdir()
    for name in filter(None, (fs, layer)):
        subvolume.create(path / name)
        (path / name / "content").write_text(name)
        subvolume.set_read_only(path / name, read_only=name == "layer")
    if state:
        commitment = Commitment("new name", {"of": "commit"}, 7, verified) if state is State.COMMITTING else None
        write(path, Record(id, state, key, labels={"of": "active"}, commitment=commitment, **values))
    return path


def write(path: Path, record: Record) -> None:
    os.setxattr(path, XATTR, records.encode(record))


def read(path: Path) -> Record:
    return records.decode(os.getxattr(path, XATTR), int(path.name))


KINDS = {Verdict.ACTIVE: Kind.ACTIVE, Verdict.VIEW: Kind.VIEW, Verdict.COMMITTED: Kind.COMMITTED}


@pytest.mark.btrfs
@pytest.mark.parametrize(("row", "verdict"), TABLE.items())
def test_on_disk(
    row: tuple[State | None, str, str], verdict: Verdict, root: Path, reopen: Callable[..., Snapshotter]
) -> None:
    """
    Each row gets the verdict of the table, and superfluous subvolumes are destroyed.

    The rest of the store is unchanged, and the next open finds the same.
    """
    state, fs, layer = row
    path = make(root, state, fs, layer)
    name = "new name" if state is State.COMMITTING and verdict is not Verdict.ACTIVE else "lost"
    for _ in range(2):
        with reopen() as store:
            store.cleanup()
            known = {info.name: info for info in store.walk()}
            problems = [problem.subject for problem in store.problems()]
            assert {"base", "other", "active"} <= set(known)
            assert store.stat("active").parent == "base"
            if verdict in KINDS:
                assert known[name].kind is KINDS[verdict]
                assert known[name].labels == {"of": "commit" if name == "new name" else "active"}
                assert problems == []
            elif verdict is Verdict.QUARANTINED:
                assert problems == [name]
                assert known[name].kind is (Kind.ACTIVE if state is State.ACTIVE else Kind.COMMITTED)
            else:
                assert set(known) == {"base", "other", "active"}
                assert problems == ([str(path)] if verdict is Verdict.ORPHAN else [])
        left = {
            Verdict.ACTIVE: {"fs"},
            Verdict.COMMITTED: {"layer"},
            Verdict.REMOVED: None,
        }.get(verdict, {fs, layer} - {""})
        assert (set(os.listdir(path)) if path.exists() else None) == left


@pytest.mark.btrfs
@pytest.mark.parametrize("state", [State.COMMITTING, State.COMMITTED, State.ACTIVE])
def test_writable_layer(state: State, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A writable `layer` is not a committed layer: a commit in progress is rolled back, and a committed snapshot is
    quarantined.
    """
    path = make(root, state, "fs", "layer")
    subvolume.set_read_only(path / "layer", read_only=False)
    store = reopen()
    store.cleanup()
    if state is State.COMMITTED:
        with pytest.raises(DataLossError, match="'lost' cannot be used: its layer is writable"):
            store.prepare("k", "lost")
    else:
        assert store.stat("lost").kind is Kind.ACTIVE
        store.commit("again", "lost")
        assert (path / "layer" / "content").read_text() == "fs"
        assert subvolume.get_read_only(path / "layer")


@pytest.mark.btrfs
@pytest.mark.parametrize("name", ["fs", "layer"])
def test_directories_are_no_subvolumes(name: str, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A plain directory or a symlink in place of a subvolume, as in a copy of a store, counts as missing.
    """
    state = State.ACTIVE if name == "fs" else State.COMMITTED
    directory, link = make(root, state, id=LOST, key="directory"), make(root, state, id=LOST + 1, key="link")
    (directory / name).mkdir()
    (link / name).symlink_to(root / "snapshots" / "1" / "layer")
    store = reopen()
    assert {(problem.subject, problem.what) for problem in store.problems()} == {
        (subject, f"its subvolume is missing: {name!r} is not a subvolume") for subject in ("directory", "link")
    }


@pytest.mark.btrfs
@pytest.mark.parametrize("name", ["fs", "layer", "unexpected"])
def test_unexpected_in_a_removed_snapshot(name: str, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    An entry that is not a subvolume keeps the directory of a removed snapshot.

    The entry is reported once the subvolumes are destroyed, and never deleted. Without it the directory is removed.
    """
    path = make(root, State.REMOVED, fs="" if name == "fs" else "fs")
    (path / name).mkdir()
    (path / name / "content").write_text("precious")
    with reopen() as store:
        store.cleanup()
    for _ in range(2):
        with reopen() as store:
            store.cleanup()
            (problem,) = store.problems()
            assert problem.subject == str(path / name)
            assert problem.cure == "`snapshotter doctor --fix` repairs it, or moves it to the quarantine"
    assert (path / name / "content").read_text() == "precious"
    shutil.rmtree(path / name)
    with reopen() as store:
        store.cleanup()
        assert store.problems() == []
    assert not path.exists()


@pytest.mark.btrfs
def test_commit_of_refused_data(root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A commit interrupted before its verification is rolled back, and the snapshot is suspect if devices refused writes.
    """
    path = make(root, State.COMMITTING, "fs", "layer", verified=False, write_errors=Counters(-1))
    with reopen() as store:
        assert store.stat("lost").labels == {"of": "active"}
        with pytest.raises(NotFoundError):
            store.stat("new name")
        assert os.listdir(path) == ["fs"]
        with pytest.raises(DataLossError, match="the disk may have refused data of snapshot 'lost'"):
            store.commit("again", "lost")
    write(path, Record(LOST, State.COMMITTED, "lost", write_errors=Counters(-1)))
    subvolume.snapshot(path / "fs", path / "layer", read_only=True)
    assert reopen().stat("lost").kind is Kind.COMMITTED


@pytest.mark.btrfs
@pytest.mark.parametrize(
    ("state", "fs", "layer", "settled"),
    [
        (State.PREPARING, "fs", "", State.ACTIVE),
        (State.COMMITTING, "fs", "", State.ACTIVE),
        (State.COMMITTING, "fs", "layer", State.COMMITTED),
        (State.COMMITTED, "", "layer", State.COMMITTED),
    ],
)
def test_records_are_settled(
    state: State,
    fs: str,
    layer: str,
    settled: State,
    root: Path,
    reopen: Callable[..., Snapshotter],
) -> None:
    """
    The record is updated in the background; that of a committed snapshot gets the usage.
    """
    path = make(root, state, fs, layer)
    settle(reopen())
    assert read(path).state is settled
    assert read(path).commitment is None
    assert (read(path).usage is not None) == (settled is State.COMMITTED)


@pytest.mark.btrfs
@pytest.mark.parametrize("state", [State.ACTIVE, State.COMMITTED])
def test_quarantine(state: State, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A snapshot without its subvolume is listed and can be removed, but not used; other snapshots are unaffected.
    """
    path = make(root, state)
    store = reopen()
    calls: list[Callable[[], object]] = [lambda: store.usage("lost")]
    if state is State.COMMITTED:
        calls += [lambda: store.prepare("k", "lost"), lambda: store.view("k", "lost")]
    else:
        calls += [lambda: store.mounts("lost"), lambda: store.commit("c", "lost"), lambda: store.fork("lost", "k")]
    for call in calls:
        with pytest.raises(DataLossError, match="snapshot 'lost' cannot be used: its subvolume is missing"):
            call()
    assert store.update(store.stat("lost")).labels == {"of": "active"}
    assert {info.name for info in store.walk()} == {"base", "other", "active", "lost"}
    store.prepare("k", "other")
    store.commit("grown", "k")
    store.remove("grown")
    store.remove("lost")
    store.cleanup()
    assert not path.exists()
    assert store.problems() == []
    store.prepare("lost")


@pytest.mark.btrfs
def test_renamed_subvolume(root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    If a subvolume is missing and another entry is there, the problem names the entry.
    """
    path = make(root, State.ACTIVE, "fs")
    (path / "fs").rename(path / "kept")
    (problem,) = reopen().problems()
    assert (problem.subject, problem.what) == ("lost", "its subvolume is missing: was it renamed to 'kept'?")


@pytest.mark.btrfs
@pytest.mark.parametrize("name", ["fs", "layer"])
def test_deleted_while_open(name: str, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A subvolume deleted by hand while the store is open affects its snapshot only, which can be removed.
    """
    store = reopen()
    snapshot = store.root + ("/snapshots/5" if name == "fs" else "/snapshots/3")
    key = "active" if name == "fs" else "other"
    subvolume.delete(f"{snapshot}/{name}")
    calls: list[Callable[[], object]] = [lambda: store.prepare("k", key)]
    if name == "fs":
        calls = [lambda: store.commit("c", key), lambda: store.mounts(key), lambda: store.fork(key, "k")]
    for call in calls:
        with pytest.raises(DataLossError, match="somebody deleted its subvolume"):
            call()
    store.prepare("fine", "base")
    store.remove(key)
    store.cleanup()
    assert not os.path.exists(snapshot)


@pytest.mark.btrfs
@pytest.mark.parametrize("loss", ["record", "damage", "directory", "file"])
def test_lost_parent(loss: str, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    The children of a snapshot that lost its record, or its whole directory, can be used and removed.

    They name a parent that no snapshot can be made of.
    """
    base = root / "snapshots" / "1"
    if loss == "record":
        os.removexattr(base, XATTR)
    elif loss == "damage":
        os.setxattr(base, XATTR, records.encode(read(base)).replace(b"base", b"best"))
    else:
        subvolume.delete(base / "layer")
        base.rmdir()
        if loss == "file":
            base.touch()
    store = reopen()
    if loss != "directory":
        (problem,) = store.problems()
        assert problem.subject == str(base)
    parent = store.stat("active").parent
    assert parent
    with pytest.raises(Error):
        store.prepare("k", parent)
    with pytest.raises(NotFoundError):
        store.stat("base")
    assert store.mounts("active")
    store.commit("grown", "active")
    store.prepare("k", "grown")
    store.remove("k")
    store.remove("grown")
    store.cleanup()
    assert sorted(os.listdir(root / "snapshots")) == (["3"] if loss == "directory" else ["1", "3"])


@pytest.mark.btrfs
def test_unexpected_entries(root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    Entries that are not snapshots are reported by path and never deleted, except an empty directory named by an id.
    """
    snapshots = root / "snapshots"
    (snapshots / "17").symlink_to(snapshots / "1")
    (snapshots / "18").write_text("a file")
    for name in ("19", "007", "0x10", "٣", "alien", "0"):
        (snapshots / name).mkdir()
        (snapshots / name / "content").write_text("precious")
    os.mkfifo(snapshots / "20")
    os.mkdir(os.fsencode(snapshots) + b"/\xff")
    (snapshots / "21").mkdir()
    (snapshots / "empty").mkdir()
    before = set(os.listdir(snapshots))
    store = reopen()
    store.cleanup()
    assert set(os.listdir(snapshots)) == before - {"21"}
    assert {problem.subject for problem in store.problems()} == {
        str(snapshots / name) for name in before - {"1", "3", "5", "21"}
    }
    assert (snapshots / "19" / "content").read_text() == "precious"
    store.prepare("k", "base")
    store.remove("k")


@pytest.mark.btrfs
@pytest.mark.parametrize("content", ["", "content"])
def test_next_id_is_taken(content: str, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A directory named by a future id is left alone, and the id is skipped.
    """
    unexpected = root / "snapshots" / "1025"
    with reopen() as store:
        unexpected.mkdir()
        if content:
            (unexpected / content).touch()
        store.prepare("k", "base")
        store.commit("c", "k")
    assert unexpected.exists()
    assert reopen().stat("c").parent == "base"


@pytest.mark.btrfs
def test_damaged_records(root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A snapshot with a damaged record, or with a key of another snapshot, is reported and its subvolume kept.
    """
    damaged = make(root, State.COMMITTED, "", "layer", key="damaged")
    os.setxattr(damaged, XATTR, os.getxattr(damaged, XATTR)[:-1])
    moved = make(root, State.COMMITTED, "", "layer", id=LOST + 1)
    os.setxattr(moved, XATTR, os.getxattr(root / "snapshots" / "1", XATTR))
    doubled = make(root, State.COMMITTED, "", "layer", id=LOST + 2, key="base")
    store = reopen()
    store.cleanup()
    assert {problem.subject: problem.what for problem in store.problems()} == {
        str(damaged): "its record is damaged: checksum does not match",
        str(moved): f"its record is damaged: record of snapshot 1 in the directory of snapshot {LOST + 1}",
        str(doubled): "its key 'base' belongs to another snapshot",
    }
    for path in (damaged, moved, doubled):
        assert (path / "layer" / "content").read_text() == "layer"
    assert {info.name for info in store.walk()} == {"base", "other", "active"}


@pytest.mark.btrfs
def test_newer_record(root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A store with a record of a newer release is neither opened nor changed.
    """
    newer = make(root, None, "fs", "layer")
    os.setxattr(newer, XATTR, records.seal({"format": 3, "id": LOST, "state": "removed"}))
    with pytest.raises(
        FailedPreconditionError, match="format 3 was written by a newer release; this one reads up to 2"
    ):
        reopen()
    assert set(os.listdir(newer)) == {"fs", "layer"}


@pytest.mark.btrfs
def test_read_only_changes_nothing(root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A read-only open lists the same snapshots, and changes nothing on disk.
    """
    for number, (state, fs, layer) in enumerate(TABLE):
        make(root, state, fs, layer, id=LOST + number, key=f"k{number}", write_errors=Counters())

    def everything() -> dict[str, object]:
        return {
            str(path): (sorted(os.listdir(path)), os.listxattr(path) and os.getxattr(path, XATTR))
            for path in (root / "snapshots").iterdir()
        }

    before = everything()
    with reopen(read_only=True) as store:
        assert len(list(store.walk())) > 3
        with pytest.raises(FailedPreconditionError, match="cannot be changed: it was opened read-only"):
            store.cleanup()
    assert everything() == before


@pytest.mark.btrfs
@pytest.mark.parametrize("removed", [False, True])
def test_reading_during_a_commit(*, removed: bool, root: Path, reopen: Callable[..., Snapshotter]) -> None:
    """
    A read-only open during a commit or removal sees the snapshot before or after it, never without its subvolume.
    """
    store = reopen()
    steps = [lambda: store.commit("c", "active"), *([lambda: store.remove("c")] if removed else [])]

    class Changing(BtrfsVolumes):
        def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
            record, found = super().inspect(place)
            if place.name == "5" and steps:
                steps.pop(0)()
                store.cleanup()
                found = super().inspect(place)[1]
            return record, found

    reader = reopen(read_only=True, volumes=Changing)
    assert not steps
    assert reader.problems() == []
    assert {info.name for info in reader.walk()} == {"base", "other", *([] if removed else ["c"])}


# Duplicate keys

CLAIMS = {
    # name of the claim to the key "k": state of the record, fs, layer
    "preparing": (State.PREPARING, "fs", ""),
    "active": (State.ACTIVE, "fs", ""),
    "view": (State.VIEW, "", ""),
    "committing": (State.COMMITTING, "fs", "layer"),
    "committed, not brought up to date": (State.COMMITTING, "", "layer"),
    "committed": (State.COMMITTED, "", "layer"),
}
PAIRS = [
    (failed, answered, failed_first)
    for failed in ("preparing", "view", "committing")
    for answered in CLAIMS
    for failed_first in (True, False)
    if failed_first or answered.startswith("committ")  # only a commit gives a key to an older snapshot
]
CLOCKS = [(1, 2), (2, 1), (1, 1)]  # times of the failed call and of the answered one, in milliseconds


def claim(name: str, id: int, claim: int, time: int) -> Record:
    state = CLAIMS[name][0]
    if state is State.COMMITTING:
        commitment = Commitment("k", {}, time * 1_000_000, verified=True)
        return Record(id, state, f"active {id}", claim=claim, commitment=commitment)
    return Record(id, state, "k", claim=claim if state is State.COMMITTED else 0, created=time * 1_000_000)


def claims(failed: str, answered: str, clock: tuple[int, int], *, failed_first: bool) -> list[Record]:
    """
    Return the records of two claims to one key; the failed one came before the answered one, whatever the clock says.
    """
    ids = (LOST, LOST + 1) if failed_first else (LOST + 1, LOST)
    return [claim(failed, ids[0], LOST + 2, clock[0]), claim(answered, ids[1], LOST + 3, clock[1])]


@pytest.mark.btrfs
@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize(("failed", "answered", "failed_first"), PAIRS)
def test_failed_without_rollback(
    failed: str,
    answered: str,
    failed_first: bool,
    clock: tuple[int, int],
    root: Path,
    reopen: Callable[..., Snapshotter],
) -> None:
    """
    The call that succeeded keeps its key beside an earlier call that failed and could not be rolled back.

    The clock does not matter. A failed commit leaves its active snapshot. A failed creation is removed.
    """
    paths = []
    for name, record in zip(
        (failed, answered), claims(failed, answered, clock, failed_first=failed_first), strict=True
    ):
        if name == "committing" and answered in ("preparing", "active", "view"):
            record = record._replace(claim=LOST)  # before the creation, which took LOST + 1
        _, fs, layer = CLAIMS[name]
        paths.append(make(root, None, fs, layer, id=record.id))
        write(paths[-1], record)
    left = paths[0]
    for _ in range(2):
        with reopen() as store:
            store.cleanup()
            assert store.stat("k").created == EPOCH + timedelta(milliseconds=clock[1])
            assert store.stat("k").kind is KINDS[judge(CLAIMS[answered][0], Contents(True, True, True), verified=True)]
            others = {info.name for info in store.walk()} - {"base", "other", "active", "k"}
            assert others == ({f"active {left.name}"} if failed == "committing" else set())
            assert store.problems() == []
        if failed == "committing":
            assert os.listdir(left) == ["fs"]
        else:
            assert not left.exists()


def recovered(*records: tuple[str, Record]) -> dict[int, Recovered]:
    """
    Return the entries with these claims by id, after the resolution of their keys.
    """
    items = []
    for name, record in sorted(records, key=lambda claim: claim[1].id):
        state, fs, layer = CLAIMS[name]
        found = Contents(bool(fs), bool(layer), bool(fs or layer))
        current = record.committed() if record.commitment else record
        items.append(Recovered(str(record.id), judge(state, found, verified=True), record.id, current, record, found))
    return {item.id: item for item in resolve_duplicate_keys(items)}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("answered", ["preparing", "active", "view"])
def test_old_commit(answered: str, clock: tuple[int, int]) -> None:
    """
    A commit without the id of its claim, of an older release, gives way to a later creation and keeps its data.
    """
    failed, owner = claims("committing", answered, clock, failed_first=True)
    resolved = recovered(("committing", failed._replace(claim=0)), (answered, owner))
    assert resolved[owner.id].record == owner
    assert resolved[failed.id].record == failed.active()


@pytest.mark.parametrize("clock", CLOCKS)
def test_two_commits(clock: tuple[int, int]) -> None:
    """
    The later of two interrupted commits to one name wins, in either order of their snapshots.
    """
    for failed_first in (True, False):
        failed, owner = claims("committing", "committing", clock, failed_first=failed_first)
        resolved = recovered(("committing", failed), ("committing", owner))
        assert resolved[owner.id].record == owner.committed()
        assert resolved[failed.id].record == failed.active()


def test_impossible_duplicates() -> None:
    """
    A snapshot that certainly has its key keeps it, and one that no failed call can have left is reported.
    """
    settled = claim("committed", 1, 2, 1)
    for later in ("preparing", "active", "view", "committed"):
        resolved = recovered(("committed", settled), (later, claim(later, 3, 4, 2)))
        assert resolved[1].record == settled
        assert (resolved[3].verdict, resolved[3].record) == (Verdict.ORPHAN, None)
