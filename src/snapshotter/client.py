"""
A client of a store that another process serves, through containerd's API and our extension of it.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Self, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from grpclib.client import Channel
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from snapshotter.api import extension_pb2
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.api.extension_grpc import ExtensionStub
from snapshotter.api.messages import CODES, info_from, info_to, mounts_from, usage_from
from snapshotter.api.snapshots_grpc import SnapshotsStub
from snapshotter.errors import Error, FailedPreconditionError, InvalidArgumentError, UnavailableError, quoted
from snapshotter.model import Info, Mount, Usage

__all__ = ["Client", "check_serving"]

_ERRORS = {code: kind for kind, code in CODES.items()}

_NOTICE_SECONDS = 3.0

T = TypeVar("T")


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
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="snapshotter-client", daemon=True)
        self._thread.start()
        self._channel = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        self._stub = SnapshotsStub(self._channel)
        self._extension = ExtensionStub(self._channel)
        self._health = HealthStub(self._channel)

    async def _connect(self) -> Channel:
        return Channel(path=self.address)

    def close(self) -> None:
        """
        Close the connection. Closing again does nothing.
        """
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _disconnect(self) -> None:
        self._channel.close()
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next iteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def serving(self) -> bool:
        """
        Return whether the service has its store open.
        """
        reply = self._wait(self._health.Check(HealthCheckRequest(), timeout=self._timeout))
        return reply.status == HealthCheckResponse.SERVING

    def stat(self, key: str) -> Info:
        with _checking():
            request = pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
        return info_from(self._wait(self._stub.Stat(request, timeout=self._timeout)).info)

    def walk(self, *filter_list: str) -> Iterator[Info]:
        with _checking():
            request = pb.ListSnapshotsRequest(snapshotter=self.snapshotter, filters=filter_list)
        replies = self._wait(self._stub.List(request, timeout=self._timeout))
        return (info_from(message) for reply in replies for message in reply.info)

    def usage(self, key: str) -> Usage:
        with _checking():
            request = pb.UsageRequest(snapshotter=self.snapshotter, key=key)
        return usage_from(self._wait(self._stub.Usage(request, timeout=self._timeout)))

    def mounts(self, key: str) -> tuple[Mount, ...]:
        with _checking():
            request = pb.MountsRequest(snapshotter=self.snapshotter, key=key)
        return mounts_from(self._wait(self._stub.Mounts(request, timeout=self._timeout)).mounts)

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        with _checking():
            request = pb.PrepareSnapshotRequest(
                snapshotter=self.snapshotter, key=key, parent=parent, labels=labels or {}
            )
        return mounts_from(self._wait(self._stub.Prepare(request, timeout=self._timeout)).mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        with _checking():
            request = pb.ViewSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels or {})
        return mounts_from(self._wait(self._stub.View(request, timeout=self._timeout)).mounts)

    def fork(self, key: str, new_key: str) -> tuple[Mount, ...]:
        with _checking():
            request = extension_pb2.ForkRequest(snapshotter=self.snapshotter, key=key, new_key=new_key)
        return mounts_from(self._wait(self._extension.Fork(request, timeout=self._timeout)).mounts)

    def missed(self) -> list[str]:
        """
        Return the keys that `stat` did not find, by any client, since the previous call; at most 1000.
        """
        return list(self._wait(self._extension.Missed(extension_pb2.MissedRequest(), timeout=self._timeout)).keys)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        with _checking():
            request = pb.CommitSnapshotRequest(
                snapshotter=self.snapshotter, name=name, key=key, labels=labels or {}, parent=parent
            )
        self._wait(self._stub.Commit(request, timeout=self._timeout))

    def update(self, info: Info, *fieldpaths: str) -> Info:
        with _checking():
            request = pb.UpdateSnapshotRequest(
                snapshotter=self.snapshotter, info=info_to(info), update_mask=FieldMask(paths=fieldpaths)
            )
        return info_from(self._wait(self._stub.Update(request, timeout=self._timeout)).info)

    def remove(self, key: str) -> None:
        with _checking():
            request = pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
        self._wait(self._stub.Remove(request, timeout=self._timeout))

    def cleanup(self) -> None:
        request = pb.CleanupRequest(snapshotter=self.snapshotter)
        self._wait(self._stub.Cleanup(request, timeout=self._timeout))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            call.close()
            raise FailedPreconditionError(f"the client of {self.address!r} is closed")
        try:
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
            if self._waiting and not concurrent.futures.wait([future], _NOTICE_SECONDS).done:
                self._waiting()
            return future.result()
        except GRPCError as error:
            if error.status.name == "DEADLINE_EXCEEDED" and self._timeout is not None:
                raise self._late() from error
            raise _ERRORS.get(error.status.name, Error)(error.message or error.status.name) from error
        except TimeoutError as error:
            raise self._late() from error
        except (OSError, ProtocolError, StreamTerminatedError) as error:
            raise UnavailableError(f"no answer from {self.address!r}: {error}") from error

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
