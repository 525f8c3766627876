"""
Records: what a store remembers of each snapshot, as one small JSON object.

A record carries its own id and a checksum, so that one that was damaged, or moved to
another snapshot's directory, is seen and never believed.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from snapshotter.errors import FailedPreconditionError, quoted
from snapshotter.model import Kind, Measured, Usage

FORMAT = 1


class State(StrEnum):
    """
    What a snapshot is, or what is being done to it.

    Attributes:
        kind: What callers see; a commit under way has not happened yet.
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
    What a commit under way will make of the active snapshot; *verified* once the disk is known to have all its data.
    """

    name: str
    labels: Mapping[str, str]
    time: int
    verified: bool = False


class Record(NamedTuple):
    """
    One snapshot as it stands on disk.

    Attributes:
        id: The name of the snapshot's directory; never reused.
        parent: The parent's id, or None.
        created: Nanoseconds since the epoch, UTC; likewise *updated*.
        base_transid: The generation from which usage counts, where the subvolume itself does not tell it.
        write_errors: The devices' write errors as they were when the active was prepared.
        suspect: Data of this snapshot may have been refused by the disk.
        usage: Of a committed snapshot, once known.
        commitment: Of a committing one.
    """

    id: int
    state: State
    key: str
    parent: int | None = None
    labels: Mapping[str, str] = MappingProxyType({})
    created: int = 0
    updated: int = 0
    base_transid: int | None = None
    write_errors: int = 0
    suspect: bool = False
    usage: Measured | None = None
    commitment: Commitment | None = None

    def active(self) -> Self:
        """
        The record of an active snapshot whose preparation is done, or whose commit is not.
        """
        return self if self.state is State.ACTIVE else self._replace(state=State.ACTIVE, commitment=None)

    def committed(self) -> Self:
        """
        What the commit under way makes of it.
        """
        if self.commitment is None:
            raise ValueError(f"no commit of {quoted(self.key)} is under way")
        return self._replace(
            state=State.COMMITTED,
            key=self.commitment.name,
            labels=self.commitment.labels,
            created=self.commitment.time,
            updated=self.commitment.time,
            commitment=None,
        )


class DamagedError(ValueError):
    """
    A record that does not decode; the store goes on without it.
    """


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode


def seal(values: Mapping[str, Any]) -> bytes:
    """
    Encode a JSON object with the format's number and a checksum over the rest.
    """
    body = _to_json({"format": FORMAT, **values})[1:].encode()
    return b'{"crc":"%08x",' % zlib.crc32(body) + body


_BODY = len(b'{"crc":"00000000",')


def unseal(data: bytes) -> dict[str, Any]:
    """
    Decode what `seal` made.

    Raises:
        DamagedError: The bytes are not what was written.
        FailedPreconditionError: A newer release wrote them.
    """
    if data[:_BODY] != b'{"crc":"%08x",' % zlib.crc32(data[_BODY:]):
        raise DamagedError("checksum does not match")
    try:
        values: dict[str, Any] = _from_json(data.decode())
        newer = values["format"] > FORMAT
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"it says something else: {error!r}") from error
    if newer:
        raise FailedPreconditionError(
            f"format {values['format']} was written by a newer release; this one reads up to {FORMAT}: upgrade"
        )
    return values


def encode(record: Record) -> bytes:
    """
    The bytes of *record*; what is unset is left out.
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
    if record.write_errors:
        values["errors"] = record.write_errors
    if record.suspect:
        values["suspect"] = True
    if record.usage is not None:
        added, containerd = record.usage.added, record.usage.containerd
        values["usage"] = [added.size, added.inodes, containerd.size, containerd.inodes]
    if record.commitment is not None:
        values["commit"] = _commit_values(record.commitment, record.labels)
    return seal(values)


def _commit_values(commitment: Commitment, labels: Mapping[str, str]) -> list[Any]:
    """
    *commitment*, its labels as what changes of the active's *labels*: containerd gives the same to both.
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
    *value*, which has to be of the kind: JSON has others.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.64} is no {kind}")
    return value


def decode(data: bytes, snapshot_id: int) -> Record:
    """
    The record of snapshot *snapshot_id*.

    Raises:
        DamagedError: The bytes are damaged, or another snapshot's.
        FailedPreconditionError: A newer release wrote them.
    """
    values = unseal(data)
    try:
        return _record(values, snapshot_id)
    except (ValueError, TypeError, LookupError) as error:
        raise DamagedError(str(error)) from error


_MAY_BE_UNSET = {
    "parent": ("parent", int),
    "born": ("base_transid", int),
    "errors": ("write_errors", int),
    "suspect": ("suspect", bool),
}


def _record(values: Mapping[str, Any], snapshot_id: int) -> Record:
    if values["id"] != snapshot_id:
        raise ValueError(f"record of snapshot {values['id']} in the directory of {snapshot_id}")
    fields = {field: _checked(kind, values[name]) for name, (field, kind) in _MAY_BE_UNSET.items() if name in values}
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


def _usage(values: Any) -> Measured:
    size, inodes, containerd_size, containerd_inodes = (_checked(int, value) for value in _checked(list, values))
    return Measured(Usage(size, inodes), Usage(containerd_size, containerd_inodes))


def repair_bit_flip(data: bytes, read: Callable[[bytes], object]) -> bytes | None:
    """
    *data* with one bit flipped back, if *read* takes that for what was written: a checksum finds one of them.
    """
    flipped = bytearray(data)
    for at in range(len(flipped)):
        for bit in range(8):
            flipped[at] ^= 1 << bit
            with contextlib.suppress(DamagedError):
                read(bytes(flipped))
                return bytes(flipped)
            flipped[at] ^= 1 << bit
    return None
