"""
Records: encoding and decoding are inverse, and every damage is detected.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snapshotter.errors import FailedPreconditionError
from snapshotter.model import Kind, Measured, Usage
from snapshotter.store import records
from snapshotter.store.counters import Counters
from snapshotter.store.records import Commitment, DamagedError, Record, State

texts = st.text(min_size=1)  # without surrogates, which keys cannot have
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
    write_errors=st.builds(
        Counters,
        numbers,
        st.none() | st.dictionaries(numbers, numbers, max_size=4),
        numbers,
        st.just(frozenset()),
    ),
    suspect=st.booleans(),
    source=st.text(),
    claim=numbers,
    uuid=st.text(),
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
    write_errors=Counters(2, {1: 0, 2: 2}, 1),
    suspect=True,
    source="default/2/a key",
    claim=18,
    uuid="0123456789abcdef0123456789abcdef",
    usage=Measured(Usage(1, 2), Usage(3, 4)),
    commitment=Commitment("name", {"a": "b"}, 3),
)


@given(any_record)
@example(FULL)
def test_round_trip(record: Record) -> None:
    """
    Decoding returns the record that was encoded, for any text in keys and labels.
    """
    assert records.decode(records.encode(record), record.id) == record


def test_layout() -> None:
    """
    A record is JSON with the format number and without unset fields, and its names stay the same across releases.
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
        *("born", "errors", "devices", "survives", "suspect", "source", "claim", "uuid", "usage", "commit"),
    ]


def test_sum_of_errors() -> None:
    """
    A record of release 0.1.0 has the sum of the counters only, and a newer one has it still, for 0.1.0 to read.
    """
    old = records.seal({"id": 3, "state": "active", "key": "k", "created": 0, "updated": 0, "errors": 7})
    assert records.decode(old, 3).write_errors == Counters(7)
    new = json.loads(records.encode(Record(3, State.ACTIVE, "k", write_errors=Counters(7, {1: 0, 2: 7}))))
    assert (new["format"], new["errors"], new["devices"]) == (1, 7, {"1": 0, "2": 7})


def test_flipped_bytes() -> None:
    """
    A record with any one byte changed is rejected.
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
    A truncated record is rejected, and so is a record with bytes appended.
    """
    data = records.encode(FULL)
    for length in range(len(data)):
        with pytest.raises(DamagedError):
            records.decode(data[:length], FULL.id)
    with pytest.raises(DamagedError):
        records.decode(data + b"\0", FULL.id)


def test_of_another() -> None:
    """
    An intact record in another snapshot's directory is rejected, and the error names both ids.
    """
    with pytest.raises(DamagedError, match="record of snapshot 17 in the directory of snapshot 18"):
        records.decode(records.encode(FULL), 18)


def test_newer_format() -> None:
    """
    A record of a newer release is refused with both format numbers, not reported as damaged.
    """
    newer = records.seal({"format": 8, "state": "frozen", "who": ["knows"]})
    with pytest.raises(
        FailedPreconditionError, match="format 8 was written by a newer release; this one reads up to 2, so upgrade"
    ):
        records.decode(newer, 1)


@given(st.integers(0), st.integers(0, 10**6))
def test_named_pieces(first: int, count: int) -> None:
    """
    A record in pieces names their numbers, and has format 2; a record in one xattr names none, in either format.
    """
    pieces = range(first, first + count)
    data = records.seal_pieces(pieces)
    assert records.named_pieces(data) == pieces
    assert records.is_spilled(data)
    whole = records.encode(FULL)
    marked = records.reformatted(whole, records.SPILLED)
    assert (records.is_spilled(whole), records.is_spilled(marked)) == (False, True)
    for each in (whole, marked):
        assert len(records.named_pieces(each)) == 0
        assert records.decode(each, FULL.id) == FULL
    assert records.reformatted(marked, records.WHOLE) == whole


@given(st.binary() | st.dictionaries(st.just("pieces"), st.integers() | st.lists(st.none() | st.integers())))
def test_any_named_pieces(values: bytes | Mapping[str, Any]) -> None:
    """
    Anything but the numbers of pieces is damaged.
    """
    data = values if isinstance(values, bytes) else records.seal(values)
    with contextlib.suppress(DamagedError):
        assert isinstance(records.named_pieces(data), range)
    with contextlib.suppress(DamagedError):
        assert records.unseal(records.reformatted(data, records.SPILLED))["format"] == 2


@given(st.binary())
@example(b"")
@example(b'{"crc":"00000000",')
def test_any_bytes(data: bytes) -> None:
    """
    Arbitrary bytes raise DamagedError and no other error.
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
    An intact object with other fields or values than a record raises DamagedError.
    """
    with contextlib.suppress(DamagedError, FailedPreconditionError):
        assert records.decode(records.seal(values), 17).id == 17


@pytest.mark.parametrize("body", [b"}", b'"format":1,"id":NaN}', b"\xff}", b'"format":1} {}', b'"format":[]}'])
def test_no_json(body: bytes) -> None:
    """
    Bytes with the right checksum that are not a JSON object raise DamagedError.
    """
    with pytest.raises(DamagedError, match=r"its content is not a record: |record of snapshot nan in "):
        records.decode(b'{"crc":"%08x",' % zlib.crc32(body) + body, 17)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("key", 1, "str"), ("parent", "1", "int"), ("suspect", 1, "bool"), ("labels", [], "dict"), ("usage", {}, "list")],
)
def test_wrong_type(name: str, value: object, expected: str) -> None:
    """
    A field with a value of another type raises DamagedError, which names the value and the expected type.
    """
    values = {"id": 17, "state": "active", "key": "k", "created": 0, "updated": 0, name: value}
    with pytest.raises(DamagedError, match=re.escape(f"{value!r} is not of type {expected}")):
        records.decode(records.seal(values), 17)


def test_repair_bit_flip() -> None:
    """
    Every single flipped bit is found and flipped back; two flipped bits are not.
    """

    def read(data: bytes) -> Record:
        return records.decode(data, 3)

    data = records.encode(Record(3, State.VIEW, "k"))
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            assert records.repair_bit_flip(bytes(damaged), read) == data
            damaged[(position + 1) % len(data)] ^= 1 << bit
            if bit == 0:
                assert records.repair_bit_flip(bytes(damaged), read) is None


@pytest.mark.parametrize("position", [8, 17, 300_000, 599_999])
def test_repair_bit_flip_in_a_large_record(position: int) -> None:
    """
    A flipped bit is found in any place of a large record, without a checksum for each of its bits.
    """
    data = records.seal({"text": "x" * 600_000})
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    reads = iter(range(200))

    def read(data: bytes) -> object:
        next(reads)
        return records.unseal(data)

    assert records.repair_bit_flip(bytes(damaged), read) == data


def test_states() -> None:
    """
    Each state has the kind that callers see, and a commit in progress yields the record of the committed snapshot.
    """
    assert {state: state.kind for state in State} == {
        State.PREPARING: Kind.ACTIVE,
        State.ACTIVE: Kind.ACTIVE,
        State.VIEW: Kind.VIEW,
        State.COMMITTING: Kind.ACTIVE,
        State.COMMITTED: Kind.COMMITTED,
        State.REMOVED: Kind.ACTIVE,
    }
    active = FULL._replace(state=State.ACTIVE, claim=0, commitment=None)
    assert FULL.active() == active
    assert FULL.committed() == active._replace(
        state=State.COMMITTED,
        key="name",
        labels={"a": "b"},
        created=3,
        updated=3,
        source="default/3/a key",
        claim=18,
        uuid="",
    )
    with pytest.raises(ValueError, match="no commit of snapshot 'default/3/a key' is in progress"):
        active.committed()
