"""
Records: what is written is what is read, and whatever is damaged is seen.
"""

import contextlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snapshotter.errors import FailedPreconditionError
from snapshotter.model import Kind, Measured, Usage
from snapshotter.store import records
from snapshotter.store.records import Commitment, DamagedError, Record, State

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
    base_transid=st.none() | numbers,
    write_errors=numbers,
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
    base_transid=9,
    write_errors=2,
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
    active = FULL._replace(state=State.ACTIVE, commitment=None)
    assert FULL.active() == active
    assert FULL.committed() == active._replace(
        state=State.COMMITTED, key="name", labels={"a": "b"}, created=3, updated=3
    )
    with pytest.raises(ValueError, match="no commit of 'default/3/a key' is under way"):
        active.committed()
