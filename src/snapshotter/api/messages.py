"""
Conversion between the contract's values and containerd's messages.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from snapshotter import errors
from snapshotter.api import mount_pb2, snapshots_pb2
from snapshotter.model import EPOCH, Info, Kind, Mount, Usage

__all__ = [
    "CODES",
    "code_of",
    "info_from",
    "info_to",
    "mounts_from",
    "mounts_to",
    "usage_from",
    "usage_to",
]

# The gRPC status code of each error, by name. A client raises the base class for a code that is not listed.
CODES: dict[type[errors.Error], str] = {
    errors.NotFoundError: "NOT_FOUND",
    errors.AlreadyExistsError: "ALREADY_EXISTS",
    errors.InvalidArgumentError: "INVALID_ARGUMENT",
    errors.FailedPreconditionError: "FAILED_PRECONDITION",
    errors.ResourceExhaustedError: "RESOURCE_EXHAUSTED",
    errors.UnavailableError: "UNAVAILABLE",
    errors.DataLossError: "DATA_LOSS",
    errors.NotSupportedError: "UNIMPLEMENTED",
    errors.Error: "UNKNOWN",
}


_KINDS: dict[Kind, snapshots_pb2.Kind] = {
    Kind.VIEW: snapshots_pb2.VIEW,
    Kind.ACTIVE: snapshots_pb2.ACTIVE,
    Kind.COMMITTED: snapshots_pb2.COMMITTED,
}
_KINDS_FROM = {number: kind for kind, number in _KINDS.items()}


def code_of(error: errors.Error) -> str:
    """
    Return the name of the status code for *error*.
    """
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def info_to(info: Info) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created),
        updated_at=_timestamp(info.updated),
        labels=info.labels,
    )


def info_from(message: snapshots_pb2.Info) -> Info:
    # Like containerd, read an unknown kind as committed.
    return Info(
        kind=_KINDS_FROM.get(message.kind, Kind.COMMITTED),
        name=message.name,
        parent=message.parent,
        labels=dict(message.labels),
        created=message.created_at.ToDatetime(UTC),
        updated=message.updated_at.ToDatetime(UTC),
    )


def mounts_to(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    return [
        mount_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        for mount in mounts
    ]


def mounts_from(messages: Iterable[mount_pb2.Mount]) -> tuple[Mount, ...]:
    return tuple(Mount(message.type, message.source, message.target, tuple(message.options)) for message in messages)


def usage_to(usage: Usage) -> snapshots_pb2.UsageResponse:
    return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)


def usage_from(message: snapshots_pb2.UsageResponse) -> Usage:
    return Usage(message.size, message.inodes)


def _timestamp(moment: datetime) -> Timestamp:
    # Timestamp.FromDatetime is slower, and a list converts thousands of times.
    since = moment - EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)
