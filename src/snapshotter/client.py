"""
A client of a store that another process serves, through containerd's API and our extension of it.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from snapshotter.api import extension_pb2, health_pb2
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.api.messages import CODES, info_from, info_to, mounts_from, usage_from
from snapshotter.errors import Error, FailedPreconditionError, InvalidArgumentError, UnavailableError, quoted
from snapshotter.model import Info, Mount, Usage
from snapshotter.transport.channel import CallError, Channel
from snapshotter.transport.status import Status

__all__ = ["Client", "check_serving"]

_ERRORS = {code: kind for kind, code in CODES.items()}

_NOTICE_SECONDS = 3.0

_SNAPSHOTS = pb.DESCRIPTOR.services_by_name["Snapshots"].full_name
_EXTENSION = extension_pb2.DESCRIPTOR.services_by_name["Extension"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Reply = TypeVar("Reply", bound=Message)


class Client:
    """
    A client of a snapshotter service.

    The methods have the arguments, results and errors of `snapshotter.Snapshotter`, and may be called from any thread.
    UnavailableError also means that no service answers at *address*.

    Args:
        address: The path of the service's socket.
        snapshotter: The name of this client; see *client* of `Snapshotter`.
        timeout: The time limit of each call, in seconds; None leaves the limit to the service.
        waiting: Called each time that a call has lasted three seconds.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        snapshotter: str = "local",
        timeout: float | None = None,
        waiting: Callable[[], object] | None = None,
    ) -> None:
        self.address = os.fspath(address)
        self.snapshotter = snapshotter
        self._timeout = timeout
        self._waiting = waiting
        self._channel = Channel(self.address)

    def close(self) -> None:
        """
        Close the connection. Closing again does nothing.
        """
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def serving(self) -> bool:
        """
        Return whether the service has its store open.
        """
        [reply] = self._call(_HEALTH, "Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse)
        return reply.status == health_pb2.HealthCheckResponse.SERVING

    def stat(self, key: str) -> Info:
        with _checking():
            request = pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
        [reply] = self._call(_SNAPSHOTS, "Stat", request, pb.StatSnapshotResponse)
        return info_from(reply.info)

    def walk(self, *filter_list: str) -> Iterator[Info]:
        with _checking():
            request = pb.ListSnapshotsRequest(snapshotter=self.snapshotter, filters=filter_list)
        replies = self._call(_SNAPSHOTS, "List", request, pb.ListSnapshotsResponse)
        return (info_from(message) for reply in replies for message in reply.info)

    def usage(self, key: str) -> Usage:
        with _checking():
            request = pb.UsageRequest(snapshotter=self.snapshotter, key=key)
        [reply] = self._call(_SNAPSHOTS, "Usage", request, pb.UsageResponse)
        return usage_from(reply)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        with _checking():
            request = pb.MountsRequest(snapshotter=self.snapshotter, key=key)
        [reply] = self._call(_SNAPSHOTS, "Mounts", request, pb.MountsResponse)
        return mounts_from(reply.mounts)

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        with _checking():
            request = pb.PrepareSnapshotRequest(
                snapshotter=self.snapshotter, key=key, parent=parent, labels=labels or {}
            )
        [reply] = self._call(_SNAPSHOTS, "Prepare", request, pb.PrepareSnapshotResponse)
        return mounts_from(reply.mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        with _checking():
            request = pb.ViewSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels or {})
        [reply] = self._call(_SNAPSHOTS, "View", request, pb.ViewSnapshotResponse)
        return mounts_from(reply.mounts)

    def fork(self, key: str, new_key: str) -> tuple[Mount, ...]:
        with _checking():
            request = extension_pb2.ForkRequest(snapshotter=self.snapshotter, key=key, new_key=new_key)
        [reply] = self._call(_EXTENSION, "Fork", request, extension_pb2.ForkResponse)
        return mounts_from(reply.mounts)

    def missed(self) -> list[str]:
        """
        Return the keys that `stat` did not find, by any client, since the previous call; at most 1000.
        """
        [reply] = self._call(_EXTENSION, "Missed", extension_pb2.MissedRequest(), extension_pb2.MissedResponse)
        return list(reply.keys)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        with _checking():
            request = pb.CommitSnapshotRequest(
                snapshotter=self.snapshotter, name=name, key=key, labels=labels or {}, parent=parent
            )
        self._call(_SNAPSHOTS, "Commit", request, Empty)

    def update(self, info: Info, *fieldpaths: str) -> Info:
        with _checking():
            request = pb.UpdateSnapshotRequest(
                snapshotter=self.snapshotter, info=info_to(info), update_mask=FieldMask(paths=fieldpaths)
            )
        [reply] = self._call(_SNAPSHOTS, "Update", request, pb.UpdateSnapshotResponse)
        return info_from(reply.info)

    def remove(self, key: str) -> None:
        with _checking():
            request = pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
        self._call(_SNAPSHOTS, "Remove", request, Empty)

    def cleanup(self) -> None:
        request = pb.CleanupRequest(snapshotter=self.snapshotter)
        self._call(_SNAPSHOTS, "Cleanup", request, Empty)

    def _call(self, service: str, method: str, request: Message, reply: type[Reply]) -> list[Reply]:
        if self._channel.closed:
            raise FailedPreconditionError(f"the client of {self.address!r} is closed")
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            with self._noticed():
                return self._channel.call(f"/{service}/{method}", request, reply, deadline=deadline)
        except CallError as error:
            if error.status is Status.DEADLINE_EXCEEDED and self._timeout is not None:
                raise self._late() from error
            raise _ERRORS.get(error.status.name, Error)(str(error)) from error
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise UnavailableError(f"no answer from {self.address!r}: {error}") from error

    @contextlib.contextmanager
    def _noticed(self) -> Iterator[None]:
        """
        Call *waiting* if the ``with`` takes long.
        """
        if not self._waiting:
            yield
            return
        timer = threading.Timer(_NOTICE_SECONDS, self._waiting)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _late(self) -> UnavailableError:
        limit = "in time" if self._timeout is None else f"within {self._timeout:g} s"
        return UnavailableError(f"no answer from {self.address!r} {limit}: it may still finish the call")


def check_serving(address: str | os.PathLike[str], timeout: float = 5.0) -> None:
    """
    Raise an error unless a service at *address* answers and has its store open.

    Args:
        timeout: The time limit, in seconds.

    Raises:
        UnavailableError: No service answers in time, or its store is not open.
    """
    with Client(address, timeout=timeout) as client:
        if not client.serving():
            raise UnavailableError(f"the daemon at {client.address!r} is opening its store, or its filesystem failed")


@contextlib.contextmanager
def _checking() -> Iterator[None]:
    """
    Raise InvalidArgumentError for a value that a message cannot hold, while a request is built in the ``with``.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{quoted(error.object)} cannot be encoded as UTF-8") from error
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error
