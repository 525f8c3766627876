"""
Records: the state of each snapshot on disk, as one small JSON object.

A record carries its own id and a checksum, so a damaged or misplaced record is rejected.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from snapshotter.errors import FailedPreconditionError, quoted
from snapshotter.model import Kind, Measured, Usage
from snapshotter.store.counters import Counters

WHOLE = 1  # the format of a record in one xattr
SPILLED = 2  # the format of a record in pieces, and of a record in one xattr whose directory may have pieces


class State(StrEnum):
    """
    The state of a snapshot, including the operation in progress.

    Attributes:
        kind: The kind that callers see. A snapshot stays active until its commit is done.
    """

    PREPARING = "preparing"
    ACTIVE = "active"
    VIEW = "view"
    COMMITTING = "committing"
    COMMITTED = "committed"
    REMOVED = "removed"

    def __init__(self, value: str) -> None:
        self.kind = {"view": Kind.VIEW, "committed": Kind.COMMITTED}.get(value, Kind.ACTIVE)


class Commitment(NamedTuple):
    """
    The committed snapshot that a commit in progress makes of an active one.

    Attributes:
        time: Nanoseconds since the epoch, UTC.
        verified: The disk has confirmed all data of the layer.
    """

    name: str
    labels: Mapping[str, str]
    time: int
    verified: bool = False


class Record(NamedTuple):
    """
    The state of one snapshot on disk.

    Attributes:
        id: The name of the snapshot's directory; never reused.
        parent: The id of the parent, or None.
        created: Nanoseconds since the epoch, UTC.
        updated: Nanoseconds since the epoch, UTC.
        base_transid: The generation at which the snapshot began, for its usage; None to read it from the subvolume.
        write_errors: The counters of refused writes when the active snapshot was prepared.
        suspect: The disk may have refused data of this snapshot.
        source: The key that a committed snapshot was committed from; empty when unknown, or once the key is used again.
        claim: The id that the commit took at its start: lower ids were taken before, higher ids after; 0 when unknown.
        uuid: The uuid of the snapshot's own subvolume, in hexadecimal digits; empty until the record is settled.
        usage: The usage of a committed snapshot; None until measured.
        commitment: The commit in progress, in state COMMITTING.
    """

    id: int
    state: State
    key: str
    parent: int | None = None
    labels: Mapping[str, str] = MappingProxyType({})
    created: int = 0
    updated: int = 0
    base_transid: int | None = None
    write_errors: Counters = Counters()
    suspect: bool = False
    source: str = ""
    claim: int = 0
    uuid: str = ""
    usage: Measured | None = None
    commitment: Commitment | None = None

    def active(self) -> Self:
        """
        Return the record of the active snapshot, with its preparation done or its commit rolled back.
        """
        return self if self.state is State.ACTIVE else self._replace(state=State.ACTIVE, claim=0, commitment=None)

    def committed(self) -> Self:
        """
        Return the record of the committed snapshot that the commit in progress makes.

        Raises:
            ValueError: No commit is in progress.
        """
        if self.commitment is None:
            raise ValueError(f"no commit of snapshot {quoted(self.key)} is in progress")
        return self._replace(
            state=State.COMMITTED,
            key=self.commitment.name,
            labels=self.commitment.labels,
            created=self.commitment.time,
            updated=self.commitment.time,
            source=self.key,
            uuid="",
            commitment=None,
        )


class DamagedError(ValueError):
    """
    The bytes are not the record that was written.
    """


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode


def seal(values: Mapping[str, Any]) -> bytes:
    """
    Encode *values* as a JSON object with the format number and a checksum of all other bytes.
    """
    return _sealed(_to_json({"format": WHOLE, **values})[1:].encode())


def _sealed(body: bytes) -> bytes:
    return b'{"crc":"%08x",' % zlib.crc32(body) + body


_BODY = len(b'{"crc":"00000000",')
_CRC = slice(len(b'{"crc":"'), _BODY - len(b'",'))
_POLYNOMIAL = 0xEDB88320  # of the CRC-32 in zlib, its bits reversed
_FORMAT = len(b'"format":0')


def _check(data: bytes) -> None:
    if data[:_BODY] != b'{"crc":"%08x",' % zlib.crc32(data[_BODY:]):
        raise DamagedError("checksum does not match")


def unseal(data: bytes) -> dict[str, Any]:
    """
    Decode the bytes of a sealed object.

    Raises:
        DamagedError: The checksum does not match, or the bytes are not a sealed object.
        FailedPreconditionError: A newer release wrote the object.
    """
    _check(data)
    try:
        values: dict[str, Any] = _from_json(data.decode())
        newer = values["format"] > SPILLED
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"its content is not a record: {error!r}") from error
    if newer:
        raise FailedPreconditionError(
            f"format {values['format']} was written by a newer release; this one reads up to {SPILLED}, so upgrade"
        )
    return values


def seal_pieces(pieces: range) -> bytes:
    """
    Encode the numbers of the pieces that hold a record, in format 2.

    Release 0.1.0 reads format 1 only, so it refuses the store instead of losing the record.
    """
    return seal({"format": SPILLED, "pieces": [pieces.start, len(pieces)]})


def is_spilled(data: bytes) -> bool:
    """
    Return whether *data*, which may be damaged, has format 2.
    """
    return data.startswith(b'"format":2,', _BODY)


def named_pieces(data: bytes) -> range:
    """
    Return the numbers of the pieces that the sealed *data* names; empty if *data* is a record in one xattr.

    Raises:
        DamagedError: The checksum does not match, or the numbers are not numbers.
        FailedPreconditionError: A newer release wrote *data*.
    """
    match unseal(data).get("pieces", [0, 0]):
        case [int(first), int(count)]:
            return range(first, first + count)
    raise DamagedError("it names no pieces")


def reformatted(data: bytes, format_number: int) -> bytes:
    """
    Return the sealed *data* with another format number of one digit.

    Raises:
        DamagedError: The checksum does not match.
    """
    _check(data)
    return _sealed(b'"format":%d' % format_number + data[_BODY + _FORMAT :])


def text_size(key: str, labels: Mapping[str, str]) -> int:
    """
    Return the number of bytes of *key* and *labels* in a record.
    """
    return len(_to_json([key, dict(labels)]).encode())


def encode(record: Record) -> bytes:
    """
    Encode *record*, without the fields that are unset.
    """
    values: dict[str, Any] = {"id": record.id, "state": record.state, "key": record.key}
    if record.parent is not None:
        values["parent"] = record.parent
    if record.labels:
        values["labels"] = dict(record.labels)
    values["created"] = record.created
    values["updated"] = record.updated
    if record.base_transid is not None:
        values["born"] = record.base_transid
    if record.write_errors.total:
        values["errors"] = record.write_errors.total
    if record.write_errors.devices is not None:
        # Devices without errors as well, because a device that has been removed since is one whose errors are unknown.
        values["devices"] = dict(record.write_errors.devices)
    if record.write_errors.survives:
        values["survives"] = record.write_errors.survives
    if record.suspect:
        values["suspect"] = True
    if record.source:
        values["source"] = record.source
    if record.claim:
        values["claim"] = record.claim
    if record.uuid:
        values["uuid"] = record.uuid
    if record.usage is not None:
        added, containerd = record.usage.added, record.usage.containerd
        values["usage"] = [added.size, added.inodes, containerd.size, containerd.inodes]
    if record.commitment is not None:
        values["commit"] = _commit_values(record.commitment, record.labels)
    return seal(values)


def _commit_values(commitment: Commitment, labels: Mapping[str, str]) -> list[Any]:
    """
    Return the JSON values of *commitment*, with its labels as the difference to the *labels* of the active snapshot.

    containerd gives both the same labels, so the difference is small.
    """
    changed = {key: value for key, value in commitment.labels.items() if labels.get(key) != value}
    dropped = [key for key in labels if key not in commitment.labels]
    return [commitment.name, changed, dropped, commitment.time, commitment.verified]


def _commitment(values: list[Any], labels: Mapping[str, str]) -> Commitment:
    name, changed, dropped, time, verified = _checked(list, values)
    kept = {key: value for key, value in labels.items() if key not in _checked(list, dropped)}
    return Commitment(_checked(str, name), kept | _labels(changed), _checked(int, time), _checked(bool, verified))


def _labels(values: Any) -> dict[str, str]:
    return {key: _checked(str, value) for key, value in _checked(dict, values).items()}


def _checked(kind: Any, value: Any) -> Any:
    """
    Return *value* if JSON gave it the type *kind*.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.64} is not of type {kind.__name__}")
    return value


def decode(data: bytes, snapshot_id: int) -> Record:
    """
    Decode the record of snapshot *snapshot_id*.

    Raises:
        DamagedError: The record is damaged, or belongs to another snapshot.
        FailedPreconditionError: A newer release wrote the record.
    """
    values = unseal(data)
    try:
        return _record(values, snapshot_id)
    except (ValueError, TypeError, LookupError) as error:
        raise DamagedError(str(error)) from error


_OPTIONAL = {
    "parent": ("parent", int),
    "born": ("base_transid", int),
    "suspect": ("suspect", bool),
    "source": ("source", str),
    "claim": ("claim", int),
    "uuid": ("uuid", str),
}


def _record(values: Mapping[str, Any], snapshot_id: int) -> Record:
    if values["id"] != snapshot_id:
        raise ValueError(f"record of snapshot {values['id']} in the directory of snapshot {snapshot_id}")
    fields = {field: _checked(kind, values[name]) for name, (field, kind) in _OPTIONAL.items() if name in values}
    fields["write_errors"] = _counters(values)
    if "labels" in values:
        fields["labels"] = _labels(values["labels"])
    if "usage" in values:
        fields["usage"] = _usage(values["usage"])
    if "commit" in values:
        fields["commitment"] = _commitment(values["commit"], fields.get("labels", {}))
    return Record(
        snapshot_id,
        State(values["state"]),
        _checked(str, values["key"]),
        created=_checked(int, values["created"]),
        updated=_checked(int, values["updated"]),
        **fields,
    )


def _counters(values: Mapping[str, Any]) -> Counters:
    """
    Return the counters of a record. Release 0.1.0 wrote only their sum, and ignores the rest.
    """
    devices = tuple(_checked(dict, values["devices"]).items()) if "devices" in values else None
    return _shared_counters(_checked(int, values.get("errors", 0)), devices, _checked(int, values.get("survives", 0)))


@lru_cache(maxsize=16)
def _shared_counters(errors: int, devices: tuple[tuple[str, Any], ...] | None, survives: int) -> Counters:
    """
    Return the same object for equal counters, because thousands of records of a store have them.
    """
    counters = None if devices is None else {int(devid): _checked(int, count) for devid, count in devices}
    return Counters(errors, counters, survives)


def _usage(values: Any) -> Measured:
    size, inodes, containerd_size, containerd_inodes = (_checked(int, value) for value in _checked(list, values))
    return Measured(Usage(size, inodes), Usage(containerd_size, containerd_inodes))


def repair_bit_flip(data: bytes, read: Callable[[bytes], object]) -> bytes | None:
    """
    Return *data* with one bit flipped back, or None if no single flip makes *read* accept it.

    The checksum detects every single flipped bit, so at most one flip is right.

    Args:
        read: Decodes the data; raises DamagedError if it is damaged.
    """
    flipped = bytearray(data)
    for at, bit in _possible_flips(data):
        flipped[at] ^= bit
        with contextlib.suppress(DamagedError):
            read(bytes(flipped))
            return bytes(flipped)
        flipped[at] ^= bit
    return None


def _possible_flips(data: bytes) -> Iterator[tuple[int, int]]:
    """
    Yield the place and the value of each bit of *data* whose flip may make the checksum match.
    """
    for at in range(min(_BODY, len(data))):
        for bit in range(8):
            yield at, 1 << bit
    with contextlib.suppress(ValueError):
        # Each bit of the body changes the checksum in a way that depends on its distance from the end only. So one pass
        # finds the bit, where a checksum for every bit would take hours for a record of 1 MiB.
        difference = int(data[_CRC], 16) ^ zlib.crc32(data[_BODY:])
        change = _POLYNOMIAL
        for at in reversed(range(_BODY, len(data))):
            for bit in reversed(range(8)):
                if change == difference:
                    yield at, 1 << bit
                change = change >> 1 ^ (_POLYNOMIAL if change & 1 else 0)
