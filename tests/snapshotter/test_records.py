"""
Records: what is written is what is read, whatever is damaged is seen, and there is room for every one that is accepted.
"""

import contextlib
import errno
import json
import os
import random
import stat
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pybtrfs import image, subvolume
from snapshotter import records
from snapshotter.errors import FailedPreconditionError
from snapshotter.records import Commitment, DamagedError, Record, State
from snapshotter.snapshot import Kind, Measured, Usage
from snapshotter.volumes import BtrfsVolumes

texts = st.text(min_size=1)  # surrogates cannot be encoded, and are no key
labels = st.dictionaries(texts, texts, max_size=5)
numbers = st.integers(0, 2**64 - 1)
usages = st.builds(Usage, numbers, numbers)
commitments = st.builds(Commitment, texts, labels, numbers, st.booleans())
any_record = st.builds(
    Record,
    id=numbers,
    state=st.sampled_from(State),
    key=st.text(),
    parent=st.none() | numbers,
    labels=labels,
    created=numbers,
    updated=numbers,
    born=st.none() | numbers,
    errors=numbers,
    suspect=st.booleans(),
    usage=st.none() | st.builds(Measured, usages, usages),
    commitment=st.none() | commitments,
)
FULL = Record(
    17,
    State.COMMITTING,
    "default/3/a key",
    5,
    {"containerd.io/snapshot.ref": "sha256:é"},
    1_600_000_000_000_000_001,
    1_600_000_000_000_000_002,
    born=9,
    errors=2,
    suspect=True,
    usage=Measured(Usage(1, 2), Usage(3, 4)),
    commitment=Commitment("name", {"a": "b"}, 3),
)


@given(any_record)
@example(FULL)
def test_round_trip(record: Record) -> None:
    """
    What is decoded equals what was encoded, for any text in keys and labels.
    """
    assert records.decode(records.encode(record), record.id) == record


def test_layout() -> None:
    """
    A record is JSON, with the format's number and nothing that is unset: the next release has to read it.
    """
    assert json.loads(records.encode(Record(3, State.VIEW, "k"))) == {
        "crc": "809b41dd",
        "format": 1,
        "id": 3,
        "state": "view",
        "key": "k",
        "created": 0,
        "updated": 0,
    }
    assert list(json.loads(records.encode(FULL))) == [
        *("crc", "format", "id", "state", "key", "parent", "labels", "created", "updated"),
        *("born", "errors", "suspect", "usage", "commit"),
    ]


def test_flipped_bytes() -> None:
    """
    No record with one byte changed, to whatever value, is believed.
    """
    data = records.encode(FULL)
    for position in range(len(data)):
        for bits in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(data)
            damaged[position] ^= bits
            with pytest.raises(DamagedError):
                records.decode(bytes(damaged), FULL.id)


def test_truncated() -> None:
    """
    No part of a record is believed, nor one with something behind it.
    """
    data = records.encode(FULL)
    for length in range(len(data)):
        with pytest.raises(DamagedError):
            records.decode(data[:length], FULL.id)
    with pytest.raises(DamagedError):
        records.decode(data + b"\0", FULL.id)


def test_of_another() -> None:
    """
    A whole record in another snapshot's directory is not believed, and both are named.
    """
    with pytest.raises(DamagedError, match="record of snapshot 17 in the directory of 18"):
        records.decode(records.encode(FULL), 18)


def test_newer_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A newer release's record is no damage: it is refused with both numbers, whatever else it says.
    """
    monkeypatch.setattr(records, "FORMAT", 8)
    newer = records.seal({"state": "frozen", "who": ["knows"]})
    monkeypatch.undo()
    with pytest.raises(FailedPreconditionError, match=r"format 8 was written by a newer release.* reads up to 1"):
        records.decode(newer, 1)


@given(st.binary())
@example(b"")
@example(b'{"crc":"00000000",')
def test_any_bytes(data: bytes) -> None:
    """
    Bytes that nobody sealed are damage, and nothing else.
    """
    with pytest.raises(DamagedError):
        records.decode(data, 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=5) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(json.loads(records.encode(FULL)))[1:]) | st.text(), json_values))
@example({"format": 1})
@example({"format": "1", "id": 17})
@example({"id": 17, "state": "frozen", "key": "k", "created": 0, "updated": 0})
@example({"id": 17, "state": "active", "key": "k", "created": 0, "updated": 0, "usage": [1]})
def test_any_values(values: Mapping[str, Any]) -> None:
    """
    An intact object that says something else than a record does is damage, too.
    """
    with contextlib.suppress(DamagedError, FailedPreconditionError):
        assert records.decode(records.seal(values), 17).id == 17


@pytest.mark.parametrize("body", [b"}", b'"format":1,"id":NaN}', b"\xff}", b'"format":1} {}', b'"format":[]}'])
def test_no_json(body: bytes) -> None:
    """
    Intact bytes that are no JSON object are damage.
    """
    with pytest.raises(DamagedError):
        records.decode(b'{"crc":"%08x",' % zlib.crc32(body) + body, 17)


def test_states() -> None:
    """
    What callers see of each state, and what a commit under way makes of a record.
    """
    assert {state: state.kind for state in State} == {
        State.PREPARING: Kind.ACTIVE,
        State.ACTIVE: Kind.ACTIVE,
        State.VIEW: Kind.VIEW,
        State.COMMITTING: Kind.ACTIVE,
        State.COMMITTED: Kind.COMMITTED,
        State.REMOVED: Kind.ACTIVE,
    }
    active = replace(FULL, state=State.ACTIVE, commitment=None)
    assert FULL.active() == active
    assert FULL.committed() == replace(
        active, state=State.COMMITTED, key="name", labels={"a": "b"}, created=3, updated=3
    )
    with pytest.raises(ValueError, match="no commit of 'default/3/a key' is under way"):
        active.committed()


# On disk


def test_write_and_read(backend: str, work: Path) -> None:
    """
    A record is replaced whole, in an xattr on btrfs, elsewhere in a file, and nothing is left beside it.
    """
    fd = os.open(work, os.O_RDONLY)
    try:
        medium = records.medium(fd)
        assert medium.read(fd) is None
        for data in (b"first", b"a longer one", b"short", bytes(7680)):
            medium.write(fd, data)
            assert medium.read(fd) == data
        assert os.listdir(work) == ([] if backend == "btrfs" else ["record"])
        (work / "record.new").touch()  # as a killed process leaves it
        assert medium.read(fd) == bytes(7680)
        medium.delete(fd)
        assert os.listdir(work) == (["record.new"] if backend == "btrfs" else [])
    finally:
        os.close(fd)


def test_make_directory(backend: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A directory is made with its record, for its owner alone, or not at all; one that is there is left alone.
    """
    work_fd = os.open(work, os.O_RDONLY)
    try:
        medium = records.medium(work_fd)
        fd = medium.make_directory(work_fd, "1", b"first")
        assert medium.read(fd) == b"first"
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
        assert not os.get_inheritable(fd)
        with pytest.raises(FileExistsError):
            medium.make_directory(work_fd, "1", b"second")
        assert medium.read(fd) == b"first"
        os.close(fd)
        if backend == "btrfs":
            with pytest.raises(OSError, match="No space left"):  # as the kernel calls an xattr too large for a node
                medium.make_directory(work_fd, "2", bytes(17_000))
        else:
            monkeypatch.setattr(os, "rename", Mock(side_effect=OSError(errno.ENOSPC, "")))
            with pytest.raises(OSError):
                medium.make_directory(work_fd, "2", b"")
        assert os.listdir(work) == ["1"]
    finally:
        os.close(work_fd)


@pytest.fixture
def small_nodes() -> Iterator[Path]:
    """
    A btrfs with the smallest nodes there are, which only mkfs.btrfs makes.
    """
    with tempfile.TemporaryDirectory() as own:
        path, target = Path(own, "image"), Path(own, "mount")
        target.mkdir()
        path.touch()
        os.truncate(path, image.MINIMUM_SIZE)
        subprocess.run(["mkfs.btrfs", "-q", "-n", "4096", "-s", "4096", path], check=True, stdout=subprocess.DEVNULL)
        with image.mount(path, target):
            yield target


@pytest.mark.btrfs
@pytest.mark.parametrize("nodesize", [4096, 16384])
def test_room(nodesize: int, request: pytest.FixtureRequest, btrfs_mount: Callable[..., Path]) -> None:
    """
    The kernel takes every record up to the limit, in place of any other, wherever in a leaf it stands: where it grew in
    a crowded leaf it would be refused as on a full disk.
    """
    root: Path = request.getfixturevalue("small_nodes") if nodesize == 4096 else btrfs_mount()
    volumes = BtrfsVolumes(str(root), "btrfs")
    limit = volumes.record_limit
    volumes.close()
    assert nodesize * 0.4 < limit
    sizes = random.Random(0)
    snapshots = [root / str(number) for number in range(200)]
    written = {}
    for snapshot in snapshots:
        snapshot.mkdir()
        subvolume.create(snapshot / "fs")
        written[snapshot] = sizes.choice([300, limit // 2, limit * 3 // 4, limit])
        os.setxattr(snapshot, records.XATTR, bytes(written[snapshot]))
    for _ in range(15):
        for snapshot in sizes.sample(snapshots, len(snapshots)):
            grown = min(limit, written[snapshot] + sizes.randrange(120))
            written[snapshot] = grown if sizes.random() < 0.8 else sizes.randrange(200, limit + 1)
            os.setxattr(snapshot, records.XATTR, bytes(written[snapshot]))
    subvolume.snapshot(snapshots[0] / "fs", snapshots[0] / "layer", read_only=True)
    os.setxattr(snapshots[0], records.XATTR, bytes(limit))
