"""
Every damage of a store: the report of doctor, and the repair by --fix.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from pybtrfs import subvolume, syscall
from snapshotter import Problem, Snapshotter
from snapshotter.errors import FailedPreconditionError, StoreHeldError
from snapshotter.maintenance import doctor, quarantine, repair
from snapshotter.mounting import mounted
from snapshotter.store import records
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.layout import Directory
from snapshotter.store.record_storage import XATTR
from snapshotter.testing import settle
from tests.faults.failpoints import Points, fail, stopped
from tests.snapshotter.cli.commands import Run

pytestmark = pytest.mark.btrfs


class Damaged(NamedTuple):
    """
    A store with a committed "base", and on it an active "web", a committed "top" and a view "v". Each but the view has
    a file of its name.
    """

    root: Path
    directories: dict[str, Path]

    def record(self, key: str) -> bytes:
        return os.getxattr(self.directories[key], XATTR)

    def write(self, key: str, record: bytes) -> None:
        os.setxattr(self.directories[key], XATTR, record)

    def problems(self) -> list[Problem]:
        # The image is sparse.
        return [problem for problem in doctor.examine(self.root) if "image" not in problem.subject]

    def names(self) -> list[str]:
        with Snapshotter(self.root, read_only=True) as store:
            return sorted(info.name for info in store.walk())

    def content(self, key: str) -> list[str]:
        with Snapshotter(self.root, read_only=True) as store:
            return sorted(os.listdir(store.subvolume(key)))

    def quarantine(self) -> list[str]:
        return sorted(os.path.basename(path) for path in quarantine.quarantined(str(self.root)))


@pytest.fixture
def damaged(btrfs: Path) -> Damaged:
    root = btrfs / "store"
    with Snapshotter.create(root) as store:

        def make(key: str, parent: str = "") -> None:
            with mounted(store.prepare(key, parent)) as path:
                Path(path, key).touch()

        make("base-")
        store.commit("base", "base-")
        make("web", "base")
        make("top-", "base")
        store.commit("top", "top-", {"a": "b"})
        store.view("v", "base")
        settle(store)
    directories = {}
    for entry in os.scandir(root / "snapshots"):
        record = records.decode(os.getxattr(entry, XATTR), int(entry.name))
        directories[record.key] = Path(entry)
    damaged = Damaged(root, directories)
    assert damaged.problems() == []
    assert repair.fix(root) == []
    return damaged


WHOLE = ["base", "top", "v", "web"]


def test_flipped_record(damaged: Damaged) -> None:
    """
    A record with a flipped bit is reported and restored, wherever the bit is.
    """
    record = damaged.record("web")
    for at in (3, len(record) // 2, len(record) - 3):
        flipped = bytearray(record)
        flipped[at] ^= 4
        damaged.write("web", bytes(flipped))
        [problem] = damaged.problems()
        assert problem.subject == str(damaged.directories["web"])
        assert problem.what == "its record is damaged: checksum does not match"
        assert "doctor --fix" in problem.cure
        assert repair.fix(damaged.root) == [repair.Repair("web", "repaired its record: one bit had flipped")]
        assert damaged.record("web") == record
        assert damaged.problems() == []


MANY_LABELS = {f"label {number}": f"{number}" * 1000 for number in range(20)}


def enlarge(damaged: Damaged, key: str) -> None:
    """
    Give *key* labels that need pieces.
    """
    with Snapshotter(damaged.root) as store:
        store.update(store.stat(key)._replace(labels=MANY_LABELS))


def xattrs(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


@pytest.mark.parametrize(("piece", "position"), [("", 3), ("", 26), ("", 40), (".2", 7000), (".1", 9)])
def test_flipped_record_in_pieces(damaged: Damaged, piece: str, position: int) -> None:
    """
    A flipped bit is restored in a record that names pieces, and in a piece.
    """
    enlarge(damaged, "web")
    path = damaged.directories["web"]
    flipped = bytearray(os.getxattr(path, XATTR + piece))
    flipped[position] ^= 4
    os.setxattr(path, XATTR + piece, flipped)
    [problem] = damaged.problems()
    assert (problem.subject, problem.what) == (str(path), "its record is damaged: checksum does not match")
    assert repair.fix(damaged.root) == [repair.Repair("web", "repaired its record: one bit had flipped")]
    assert damaged.problems() == []
    with Snapshotter(damaged.root) as store:
        assert store.stat("web").labels == MANY_LABELS
    assert len(xattrs(path)) == 1 + len(records.named_pieces(damaged.record("web")))


def test_missing_piece(damaged: Damaged) -> None:
    """
    A record without one of its pieces is moved away with its content; the others stay.
    """
    enlarge(damaged, "web")
    os.removexattr(damaged.directories["web"], f"{XATTR}.2")
    before = xattrs(damaged.directories["web"])
    [done] = repair.fix(damaged.root)
    assert done.what == "its record is damaged: checksum does not match: moved to the quarantine"
    assert damaged.names() == ["base", "top", "v"]
    assert xattrs(damaged.root / "quarantine" / damaged.directories["web"].name) == before


@pytest.mark.parametrize("large", [["web"], ["top"], ["web", "top"]])
def test_swapped_records_in_pieces(damaged: Damaged, large: list[str]) -> None:
    """
    Records in each other's directories are moved back with their pieces, and leave none behind.
    """
    for key in large:
        enlarge(damaged, key)
    both = [damaged.directories[key] for key in ("web", "top")]
    found = [xattrs(path) for path in both]
    for path, old, new in zip(both, found, reversed(found), strict=True):
        for name in old:
            os.removexattr(path, name)
        for name, value in new.items():
            os.setxattr(path, name, value)
    assert {done.what for done in repair.fix(damaged.root)} == {
        "moved its record back from the directory of another snapshot"
    }
    assert damaged.problems() == []
    with Snapshotter(damaged.root, read_only=True) as store:
        assert [store.stat(key).labels == MANY_LABELS for key in ("web", "top")] == [
            key in large for key in ("web", "top")
        ]
    assert [len(xattrs(path)) for path in both] == [
        1 + len(records.named_pieces(damaged.record(key))) for key in ("web", "top")
    ]


def test_truncated_record(damaged: Damaged) -> None:
    """
    A truncated record is reported, and its directory is moved away with its content. The children stay.
    """
    damaged.write("base", damaged.record("base")[:-9])
    [problem] = damaged.problems()
    assert (problem.subject, problem.what) == (
        str(damaged.directories["base"]),
        "its record is damaged: checksum does not match",
    )
    [done] = repair.fix(damaged.root)
    assert (done.subject, done.what) == (problem.subject, f"{problem.what}: moved to the quarantine")
    number = damaged.directories["base"].name
    assert damaged.quarantine() == [number]
    assert os.listdir(damaged.root / "quarantine" / number / "layer") == ["base-"]
    assert damaged.names() == ["top", "v", "web"]
    assert damaged.content("web") == ["base-", "web"]
    [left] = damaged.problems()
    assert (left.subject, left.what) == (f"{damaged.root}/quarantine/{number}", "it belongs to no snapshot")
    assert "snapshotter purge" in left.cure


def test_missing_record(damaged: Damaged) -> None:
    """
    A directory without a record is reported and moved away.
    """
    os.removexattr(damaged.directories["web"], XATTR)
    [problem] = damaged.problems()
    assert (problem.subject, problem.what) == (str(damaged.directories["web"]), "it has no record")
    assert "doctor --fix" in problem.cure
    assert [done.what for done in repair.fix(damaged.root)] == ["it has no record: moved to the quarantine"]
    assert damaged.names() == ["base", "top", "v"]
    assert damaged.quarantine() == [damaged.directories["web"].name]


def swap(damaged: Damaged, one: str, other: str) -> None:
    records = damaged.record(one), damaged.record(other)
    damaged.write(one, records[1])
    damaged.write(other, records[0])


@pytest.mark.parametrize(("one", "other"), [("web", "top"), ("v", "base"), ("web", "v")])
def test_swapped_records(damaged: Damaged, one: str, other: str) -> None:
    """
    Records in each other's directories are reported and moved back.
    """
    before = {key: damaged.record(key) for key in WHOLE}
    swap(damaged, one, other)
    problems = damaged.problems()
    assert {problem.subject for problem in problems} == {str(damaged.directories[key]) for key in (one, other)}
    assert all("its record is damaged: record of snapshot" in problem.what for problem in problems)
    done = repair.fix(damaged.root)
    assert {each.subject for each in done} == {one, other}
    assert {each.what for each in done} == {"moved its record back from the directory of another snapshot"}
    assert {key: damaged.record(key) for key in WHOLE} == before
    assert damaged.problems() == []


def without_uuid(damaged: Damaged, *keys: str) -> None:
    """
    Make the records of *keys* those of a release that recorded no uuids.
    """
    for key in keys:
        record = records.decode(damaged.record(key), int(damaged.directories[key].name))
        assert record.uuid
        damaged.write(key, records.encode(record._replace(uuid="")))


def test_swapped_records_alike(damaged: Damaged) -> None:
    """
    If two snapshots of one kind have records without uuids, and these are swapped, both are moved away.
    """
    without_uuid(damaged, "base", "top")
    swap(damaged, "base", "top")
    assert [each.what for each in repair.fix(damaged.root)] == [
        f"its record is damaged: record of snapshot {damaged.directories[other].name} "
        f"in the directory of snapshot {damaged.directories[key].name}: moved to the quarantine"
        for key, other in (("base", "top"), ("top", "base"))
    ]
    assert damaged.names() == ["v", "web"]


@pytest.mark.parametrize("old", [[], ["base"], ["top"]])
def test_swapped_by_uuid(damaged: Damaged, old: list[str]) -> None:
    """
    Two snapshots of one kind are told apart by the uuids in their records; one of them suffices.
    """
    without_uuid(damaged, *old)
    swap(damaged, "base", "top")
    assert {each.what for each in repair.fix(damaged.root)} == {
        "moved its record back from the directory of another snapshot"
    }
    assert damaged.problems() == []


@pytest.mark.parametrize("damage", ["records", "directories", "subvolumes"])
@pytest.mark.parametrize(("first", "second"), [(10**18, 10**18), (10**18, 1), (1, 10**18)])
def test_clock_is_not_asked(damaged: Damaged, damage: str, first: int, second: int) -> None:
    """
    Subvolumes are paired with their records whatever the times in the records are.
    """
    for key, created in (("base", first), ("top", second), ("web", second)):
        record = records.decode(damaged.record(key), int(damaged.directories[key].name))
        damaged.write(key, records.encode(record._replace(created=created, updated=created)))
    base, top = damaged.directories["base"], damaged.directories["top"]
    if damage == "records":
        swap(damaged, "base", "top")
    elif damage == "directories":
        base.rename(base.with_name("x"))
        top.rename(base)
        base.with_name("x").rename(top)
    else:
        for directory, name in ((base, "layer"), (top, "layer"), (damaged.directories["web"], "fs")):
            (directory / name).rename(directory / "away")
    repair.fix(damaged.root)
    assert damaged.problems() == []
    assert damaged.content("base") == ["base-"]
    assert damaged.content("top") == ["base-", "top-"]


def test_swapped_directories(damaged: Damaged) -> None:
    """
    Directories that were renamed to each other are reported and renamed back.
    """
    web, top = damaged.directories["web"], damaged.directories["top"]
    web.rename(web.with_name("x"))
    top.rename(web)
    web.with_name("x").rename(top)
    assert {problem.subject for problem in damaged.problems()} == {str(web), str(top)}
    done = repair.fix(damaged.root)
    assert {(each.subject, each.what) for each in done} == {
        ("web", f"renamed its directory back from '{top.name}'"),
        ("top", f"renamed its directory back from '{web.name}'"),
    }
    assert damaged.problems() == []
    assert damaged.content("web") == ["base-", "web"]


@pytest.mark.parametrize("name", ["away", "9999", "17.moved"])
def test_renamed_directory(damaged: Damaged, name: str) -> None:
    """
    A renamed directory is reported and renamed back.
    """
    path = damaged.directories["web"]
    path.rename(path.with_name(name))
    assert [problem.subject for problem in damaged.problems()] == [str(path.with_name(name))]
    assert [each.subject for each in repair.fix(damaged.root)] == ["web"]
    assert damaged.problems() == []
    assert damaged.content("web") == ["base-", "web"]


def test_copied_directory(damaged: Damaged) -> None:
    """
    A copy of a directory is not a snapshot: next to the directory, in its place, or in the place of another.
    """
    web, top = damaged.directories["web"], damaged.directories["top"]
    for copy in ("copy", "copy2"):
        subprocess.run(["cp", "--archive", web, web.with_name(copy)], check=True)
    web.rename(web.with_name("x"))
    top.rename(web)
    web.with_name("x").rename(top)
    assert {each.subject for each in repair.fix(damaged.root)} == {
        "web",
        "top",
        *(str(web.with_name(copy)) for copy in ("copy", "copy2")),
    }
    assert damaged.quarantine() == ["copy", "copy2"]
    assert damaged.names() == WHOLE
    assert damaged.content("web") == ["base-", "web"]


@pytest.mark.parametrize(("key", "name"), [("web", "fs"), ("top", "layer")])
def test_renamed_subvolume(damaged: Damaged, key: str, name: str) -> None:
    """
    A renamed subvolume is reported and renamed back.
    """
    directory = damaged.directories[key]
    (directory / name).rename(directory / "away")
    [problem] = damaged.problems()
    assert (problem.subject, problem.what) == (key, "its subvolume is missing: was it renamed to 'away'?")
    assert "doctor --fix" in problem.cure
    [done] = repair.fix(damaged.root)
    assert (done.subject, done.what) == (key, "renamed its subvolume back from 'away'")
    assert damaged.problems() == []
    assert damaged.content(key) == ["base-", "top-" if key == "top" else key]


@pytest.mark.parametrize(("key", "name"), [("web", "fs"), ("top", "layer")])
def test_another_subvolume(damaged: Damaged, key: str, name: str) -> None:
    """
    Another subvolume than the snapshot's own is moved away, even one of the same moment, and the snapshot can be
    removed.
    """
    directory = damaged.directories[key]
    subvolume.snapshot(directory / name, directory / "other", read_only=name == "layer")
    subvolume.delete(directory / name)
    assert [each.subject for each in repair.fix(damaged.root)] == [str(directory / "other")]
    assert damaged.quarantine() == [f"{directory.name}-other"]
    with Snapshotter(damaged.root) as store:
        store.remove(key)
        store.cleanup()
    assert not directory.exists()


@pytest.mark.parametrize("settled", [False, True])
def test_uuid_of_a_fork(damaged: Damaged, *, settled: bool) -> None:
    """
    The record of a fork never names the subvolume of its source.
    """
    source = records.decode(damaged.record("web"), int(damaged.directories["web"].name))
    with Snapshotter(damaged.root) as store:
        store.fork("web", "copy")
        directory = max((damaged.root / "snapshots").iterdir(), key=lambda path: int(path.name))
        if settled:
            settle(store)
        record = records.decode(os.getxattr(directory, XATTR), int(directory.name))
        assert record.key == "copy"
        assert record.uuid in ("", subvolume.get_info(directory / "fs").raw.uuid.hex())
        assert record.uuid != source.uuid
        assert bool(record.uuid) or not settled


def test_renamed_beside_another(damaged: Damaged) -> None:
    """
    The renamed subvolume is told from others in its directory by its uuid; without one in the record all are moved
    away.
    """
    directory = damaged.directories["web"]
    (directory / "fs").rename(directory / "b")
    for name in "ac":
        subvolume.create(directory / name)
    assert repair.fix(damaged.root)[0] == repair.Repair("web", "renamed its subvolume back from 'b'")
    assert damaged.content("web") == ["base-", "web"]
    without_uuid(damaged, "web")
    for name in "ac":
        subvolume.delete(directory / name)
    (directory / "fs").rename(directory / "b")
    assert damaged.problems()
    assert [each.subject for each in repair.fix(damaged.root)] == [str(directory / "b")]


def test_renamed_beside_an_unreadable_one(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A subvolume whose uuid cannot be read does not keep the right one from being renamed back.
    """
    directory = damaged.directories["web"]
    (directory / "fs").rename(directory / "b")
    subvolume.create(directory / "a")
    uuid = BtrfsVolumes.uuid

    def read(volumes: BtrfsVolumes, there: Directory, name: str) -> str:
        if name == "a":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return uuid(volumes, there, name)

    monkeypatch.setattr(BtrfsVolumes, "uuid", read)
    assert repair.fix(damaged.root)[0] == repair.Repair("web", "renamed its subvolume back from 'b'")
    assert damaged.content("web") == ["base-", "web"]


def test_deleted_subvolume(damaged: Damaged) -> None:
    """
    A deleted subvolume is reported. No repair restores it, and the snapshot can be removed.
    """
    subvolume.delete(damaged.directories["web"] / "fs")
    [problem] = damaged.problems()
    assert problem == Problem("web", "its subvolume is missing", "remove the snapshot and its descendants")
    assert repair.fix(damaged.root) == []
    assert damaged.problems() == [problem]
    with Snapshotter(damaged.root) as store:
        store.remove("web")
        store.cleanup()
    assert damaged.problems() == []


@pytest.mark.parametrize(("key", "name"), [("web", "fs"), ("top", "layer")])
def test_symlink(damaged: Damaged, btrfs: Path, key: str, name: str) -> None:
    """
    A symbolic link in the place of a subvolume is reported and never followed. It is moved away, and the snapshot can
    be removed.
    """
    directory = damaged.directories[key]
    subvolume.set_read_only(directory / name, read_only=False)
    (directory / name).rename(btrfs / "moved")
    (directory / name).symlink_to(btrfs / "moved")
    [problem] = damaged.problems()
    assert (problem.subject, problem.what) == (
        key,
        f"its subvolume is missing: '{name}' is not a subvolume",
    )
    [done] = repair.fix(damaged.root)
    assert (done.subject, done.what) == (
        str(directory / name),
        "it is not a subvolume of the snapshot: moved to the quarantine",
    )
    assert damaged.quarantine() == [f"{directory.name}-{name}"]
    with Snapshotter(damaged.root) as store:
        store.remove(key)
        store.cleanup()
    assert not directory.exists()
    assert os.listdir(btrfs / "moved") != []


def test_writable_layer(damaged: Damaged) -> None:
    """
    A layer that was made writable is reported, and made read-only again if its content has not changed.
    """
    layer = damaged.directories["top"] / "layer"
    subvolume.set_read_only(layer, read_only=False)
    [problem] = damaged.problems()
    assert (problem.subject, problem.what) == ("top", "its layer is writable, so it may differ from the commit")
    assert "doctor --fix" in problem.cure
    [done] = repair.fix(damaged.root)
    assert (done.subject, done.what) == ("top", "made its layer read-only again: its content had not changed")
    assert subvolume.get_read_only(layer)
    assert damaged.problems() == []
    subvolume.set_read_only(layer, read_only=False)
    (layer / "top-").write_text("changed")
    assert repair.fix(damaged.root) == []
    assert damaged.problems() == [problem]


def test_writable_and_renamed(damaged: Damaged) -> None:
    """
    Two damages of one snapshot are repaired together.
    """
    layer = damaged.directories["top"] / "layer"
    subvolume.set_read_only(layer, read_only=False)
    layer.rename(layer.with_name("away"))
    assert len(repair.fix(damaged.root)) == 2
    assert damaged.problems() == []


def test_copy(damaged: Damaged, btrfs: Path) -> None:
    """
    A copy of a store is reported and left alone.
    """
    subvolume.snapshot(damaged.root, btrfs / "copy")
    copy = Damaged(btrfs / "copy", {})
    assert "it is a copy of a store, and can only be read" in [problem.what for problem in copy.problems()]
    before = os.listdir(btrfs / "copy" / "snapshots")
    with pytest.raises(FailedPreconditionError, match="it one with `snapshotter init --adopt`"):
        repair.fix(btrfs / "copy")
    assert os.listdir(btrfs / "copy" / "snapshots") == before


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_store_record(damaged: Damaged, damage: str) -> None:
    """
    The store's own record is reported, and restored or replaced by a record without a client. No id is reused.
    """
    path = damaged.root / "store"
    record = os.getxattr(path, XATTR)
    with Snapshotter(damaged.root) as store:
        store.prepare("last")
        last = max(map(int, os.listdir(damaged.root / "snapshots")))
    if damage == "missing":
        os.removexattr(path, XATTR)
        with pytest.raises(FailedPreconditionError, match="is not a store"):
            doctor.examine(damaged.root)
    else:
        flipped = record[:-3] + bytes([record[-3] ^ 1]) + record[-2:]
        os.setxattr(path, XATTR, record[:-2] if damage == "truncated" else flipped)
        [problem] = damaged.problems()
        assert "the record of store" in problem.what
        assert "is damaged" in problem.what
        assert "doctor --fix" in problem.cure
    [done] = repair.fix(damaged.root)
    assert done.subject == str(damaged.root)
    if damage == "flipped":
        assert done.what == "repaired the record of the store: one bit had flipped"
        assert os.getxattr(path, XATTR) == record
    else:
        assert done.what.startswith("replaced the record of the store: ")
    assert damaged.problems() == []
    assert damaged.names() == sorted([*WHOLE, "last"])
    with Snapshotter(damaged.root, client="somebody" if damage != "flipped" else "local") as store:
        store.prepare("new", "base")
    assert max(map(int, os.listdir(damaged.root / "snapshots"))) > last


def test_no_store(btrfs: Path) -> None:
    """
    A directory that only looks like a store is left alone.
    """
    for name in ("store", "snapshots/1/snapshot", "snapshots/x"):
        (btrfs / name).mkdir(parents=True)
    with pytest.raises(FailedPreconditionError, match="is not a store"):
        repair.fix(btrfs)
    assert sorted(str(path.relative_to(btrfs)) for path in btrfs.rglob("*")) == [
        "snapshots",
        "snapshots/1",
        "snapshots/1/snapshot",
        "snapshots/x",
        "store",
    ]


def test_empty_store(btrfs: Path) -> None:
    """
    A damaged store without snapshots is repaired.
    """
    Snapshotter.create(btrfs / "s").close()
    os.setxattr(btrfs / "s" / "store", XATTR, b"damaged")
    assert [each.subject for each in repair.fix(btrfs / "s")] == [str(btrfs / "s")]
    Snapshotter(btrfs / "s").close()


@pytest.mark.parametrize("damage", ["missing", "writable", "directory", "symlink", "full"])
def test_empty(damaged: Damaged, damage: str) -> None:
    """
    If the subvolume for views without a parent is missing or altered, it is reported and recreated.
    """
    empty = damaged.root / "empty"
    subvolume.set_read_only(empty, read_only=False)
    if damage == "full":
        (empty / "file").touch()
    elif damage != "writable":
        subvolume.delete(empty)
    if damage == "directory":
        empty.mkdir()
    if damage == "symlink":
        empty.symlink_to("/")
    [problem] = damaged.problems()
    assert problem.subject == str(empty)
    assert "doctor --fix" in problem.cure
    moved = "" if damage == "missing" else ": its predecessor was moved to the quarantine"
    assert repair.fix(damaged.root) == [repair.Repair(str(empty), f"recreated the empty, read-only subvolume{moved}")]
    assert [left for left in damaged.problems() if "quarantine" not in left.subject] == []
    assert damaged.quarantine() == ([] if damage == "missing" else ["empty"])
    with Snapshotter(damaged.root) as store, mounted(store.view("nothing")) as path:
        assert os.listdir(path) == []


def test_strangers(damaged: Damaged) -> None:
    """
    Foreign entries among the snapshots, of any type, are moved away and replace nothing in the quarantine.
    """
    snapshots = damaged.root / "snapshots"
    (snapshots / "file").touch()
    (snapshots / "link").symlink_to("/")
    (snapshots / "directory").mkdir()
    subvolume.create(snapshots / "subvolume")
    subvolume.set_read_only(snapshots / "subvolume")
    assert len(repair.fix(damaged.root)) == 4
    (snapshots / "file").touch()
    assert len(repair.fix(damaged.root)) == 1
    assert damaged.quarantine() == ["directory", "file", "file.2", "link", "subvolume"]
    assert damaged.names() == WHOLE


def test_stopped(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A repair that is interrupted at any step is completed by the next.
    """
    web, top, base = (damaged.directories[key] for key in ("web", "top", "base"))
    real = BtrfsVolumes.barrier
    count = 0

    def stop(volumes: BtrfsVolumes, fd: int) -> None:
        nonlocal count
        count -= 1
        if not count:
            raise KeyboardInterrupt
        real(volumes, fd)

    monkeypatch.setattr(BtrfsVolumes, "barrier", stop)
    for step in range(1, 100):
        web.rename(web.with_name("x"))
        top.rename(web)
        web.with_name("x").rename(top)
        (base / "layer").rename(base / "away")
        (damaged.root / "snapshots" / f"stranger{step}").touch()
        count = step
        with contextlib.suppress(KeyboardInterrupt):
            repair.fix(damaged.root)
        count, stopped = 0, count == 0
        repair.fix(damaged.root)
        assert damaged.names() == WHOLE
        assert all("quarantine" in problem.subject for problem in damaged.problems())
        if not stopped:
            break
    assert step > 8
    assert len(damaged.quarantine()) == step


REFUSED = "remove snapshots, then run `snapshotter doctor --fix` again"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("sticky", [False, True])
def test_full_disk(damaged: Damaged, number: int, *, sticky: bool) -> None:
    """
    A write that the full disk refuses, whichever it is, keeps no other repair from being made, and loses no snapshot.
    """
    web, top, base = (damaged.directories[key] for key in ("web", "top", "base"))
    flipped = bytearray(damaged.record("v"))
    flipped[9] ^= 4
    at, hit = 0, "first"
    while hit:
        at += 1
        web.rename(web.with_name("x"))
        top.rename(web)
        web.with_name("x").rename(top)
        (base / "layer").rename(base / "away")
        damaged.write("v", bytes(flipped))
        (damaged.root / "snapshots" / f"stranger{at}").touch()
        with stopped(Points(at, fail(errno.errorcode[number]), sticky, filling=True)) as points:
            repairs = repair.fix(damaged.root)
        hit = points.hit
        refused = [each for each in repairs if each.what.endswith(REFUSED)]
        assert refused or not hit or "pwrite" in hit, hit
        assert all(os.strerror(number) in each.what for each in refused)
        repair.fix(damaged.root)
        assert damaged.names() == WHOLE, hit
        assert all("quarantine" in problem.subject for problem in damaged.problems()), hit
    assert at > 15
    assert len(damaged.quarantine()) == at


def test_held(damaged: Damaged, run: Run) -> None:
    """
    Nothing is repaired while another process holds the store.
    """
    with Snapshotter(damaged.root), pytest.raises(StoreHeldError):
        repair.fix(damaged.root)
    with Snapshotter(damaged.root):
        refused = run("doctor", "--fix", "--root", str(damaged.root))
    assert refused.code == 3
    assert "doctor --fix needs exclusive access to the store" in refused.err


class TestCommands:
    @pytest.fixture
    def quarantined(self, damaged: Damaged, run: Run, monkeypatch: pytest.MonkeyPatch) -> Damaged:
        monkeypatch.setenv("SNAPSHOTTER_ROOT", str(damaged.root))
        os.removexattr(damaged.directories["web"], XATTR)
        (damaged.root / "snapshots" / "plain" / "deep").mkdir(parents=True)
        (damaged.root / "snapshots" / "file").touch()
        fixed = run("doctor", "--fix")
        assert fixed.code == 5
        assert "web: " not in fixed.out
        assert f"{damaged.directories['web']}: it has no record: moved to the quarantine\n" in fixed.out
        return damaged

    def test_json(self, damaged: Damaged, run: Run) -> None:
        """
        --fix prints the repairs and the remaining problems.
        """
        swap(damaged, "web", "top")
        said = json.loads(run("doctor", "--fix", "--json", "--root", str(damaged.root)).out)
        assert {each["subject"] for each in said["repairs"]} == {"web", "top"}
        assert [each.keys() for each in said["problems"]] == [{"subject", "what", "cure"}]

    def test_purge(self, quarantined: Damaged, run: Run) -> None:
        """
        purge deletes the entries of the quarantine after a confirmation.
        """
        number = quarantined.directories["web"].name
        dry = run("purge", "--dry-run", "--bytes")
        assert dry.code == 0
        directory = f"{quarantined.root}/quarantine"
        assert dry.out.splitlines() == [
            *(f"{directory}/{name}" for name in sorted([number, "file", "plain"])),
            "entries in the quarantine: 3; deleting their subvolumes frees 0",
        ]
        assert "give --yes" in run("purge").err
        assert quarantined.quarantine() == sorted([number, "file", "plain"])
        assert run("purge", "--yes").code == 0
        assert quarantined.quarantine() == []
        assert run("purge", "--yes") == (0, "the quarantine is empty\n", "")
        assert quarantined.problems() == []
        assert quarantined.names() == ["base", "top", "v"]

    @pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 3), ("", 3), ("^D", 3)])
    def test_asked(
        self, quarantined: Damaged, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
    ) -> None:
        """
        On a terminal purge asks for confirmation.
        """
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

        def ask(question: str) -> str:
            if answer == "^D":
                raise EOFError
            return answer

        monkeypatch.setattr("builtins.input", ask)
        assert run("purge").code == 0
        assert len(quarantined.quarantine()) == left

    def test_asked_once(self, quarantined: Damaged, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        On a store of containerd, which is gone, purge asks once.
        """
        with Snapshotter(quarantined.root, client=None) as store:
            store.bind("plugin")
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        answers = ["y"]
        monkeypatch.setattr("builtins.input", lambda question: answers.pop())
        assert "give --containerd-is-gone" in run("purge").err
        assert run("purge", "--containerd-is-gone").code == 0
        assert (answers, quarantined.quarantine()) == ([], [])

    def test_purge_mounted(self, quarantined: Damaged, run: Run, tmp_path: Path) -> None:
        """
        An entry that is mounted, or has a mount in it, is not deleted.
        """
        number = quarantined.directories["web"].name
        inside = quarantined.root / "quarantine" / "plain" / "deep"
        syscall.mount("none", inside, "tmpfs")
        try:
            refused = run("purge", "--yes")
        finally:
            syscall.umount2(inside)
        assert refused.code == 1
        assert "something is mounted in" in refused.err
        shutil.rmtree(inside.parent)
        fs = quarantined.root / "quarantine" / number / "fs"
        syscall.mount(str(fs), tmp_path, "", syscall.MS_BIND)
        try:
            assert "the subvolume is mounted: unmount it first" in run("purge", "--yes").err
            assert sorted(os.listdir(fs)) == ["base-", "web"]
        finally:
            syscall.umount2(tmp_path)
