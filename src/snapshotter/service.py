"""
containerd's Snapshots service over a store: bytes to calls, calls to threads, errors to codes.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.health.check import ServiceStatus
from grpclib.health.service import OVERALL, Health
from grpclib.server import Server, Stream

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.contract import Snapshotter
from snapshotter.errors import Error, FailedPreconditionError, NotFoundError, UnavailableError
from snapshotter.messages import code_of, info_from, info_to, mounts_to, usage_to

__all__ = ["Observer", "Service"]

CHANGING_THREADS = 64
READING_THREADS = 8
LIST_BATCH = 100  # as containerd's own

log = logging.getLogger(__name__)


class Observer(Protocol):
    """
    Is told of every call; called on the loop, so it must not block.
    """

    def started(self, operation: str) -> None:
        """
        A call of *operation*, such as ``"Prepare"``, came in.
        """

    def ended(self, operation: str, code: str, seconds: float) -> None:
        """
        It was answered with a status code, such as ``"NOT_FOUND"``, or ended by its client, ``"CANCELLED"``.
        """


class _Unobserved:
    def started(self, operation: str) -> None:
        pass

    def ended(self, operation: str, code: str, seconds: float) -> None:
        pass


class _Server(Server):
    def stop_listening(self) -> None:
        # The base class can only cancel every call with it.
        assert self._server
        self._server.close()


class Service:
    """
    Serves a store's snapshots, and gRPC's health service, on listening sockets.

    Connections are accepted, and calls held, from `start` on: containerd gives a connection one second, and a store
    may need longer to open. A method that takes long runs in a thread, what the index can tell is answered at once.

    Args:
        opened: Has the store once it is open, or the exception why it is not. It stays the caller's to close, after
            `stop`.
    """

    def __init__(self, opened: "asyncio.Future[Snapshotter]", observer: Observer | None = None) -> None:
        self._opened = opened
        self._observer = observer or _Unobserved()
        self._changes = ThreadPoolExecutor(CHANGING_THREADS, "snapshotter-change")
        self._reads = ThreadPoolExecutor(READING_THREADS, "snapshotter-read")
        self._cleanups = ThreadPoolExecutor(1, "snapshotter-cleanup")
        self._status = ServiceStatus()
        self._status.set(False)
        opened.add_done_callback(self._set_status)
        self._servers: list[_Server] = []
        self._calls: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def _set_status(self, opened: "asyncio.Future[Snapshotter]") -> None:
        self._status.set(not opened.cancelled() and opened.exception() is None)

    async def start(self, sock: socket.socket) -> None:
        """
        Serve on *sock*, a unix socket that is bound, and may be listening already.
        """
        server = _Server([self, Health({OVERALL: [self._status], self: [self._status]})])
        await server.start(sock=sock)
        self._servers.append(server)

    async def stop(self) -> None:
        """
        Take no more connections and no more calls, and wait until those under way are answered.
        """
        self._stopping = True
        for server in self._servers:
            server.stop_listening()
        if self._calls:
            await asyncio.wait(self._calls)
        for server in self._servers:
            server.close()
        for pool in (self._changes, self._reads, self._cleanups):
            pool.shutdown(wait=False, cancel_futures=True)

    def __mapping__(self) -> dict[str, Handler]:
        service = pb.DESCRIPTOR.services_by_name["Snapshots"].full_name
        unary, streaming = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        table = {
            operation.name: Handler(partial(self._serve, operation), unary, operation.request, operation.reply)
            for operation in _OPERATIONS
        }
        table["List"] = Handler(self._list, streaming, pb.ListSnapshotsRequest, pb.ListSnapshotsResponse)
        return {f"/{service}/{name}": handler for name, handler in table.items()}

    # -- calls

    async def _serve(self, operation: "_Operation", stream: Stream[Any, Any]) -> None:
        async with self._call(operation.name):
            request = await stream.recv_message()
            store = await asyncio.shield(self._opened)
            run = partial(operation.run, store, request)
            pool = getattr(self, operation.pool) if operation.pool else None
            reply = await asyncio.get_running_loop().run_in_executor(pool, run) if pool else run()
            await stream.send_message(reply)

    async def _list(self, stream: Stream[pb.ListSnapshotsRequest, pb.ListSnapshotsResponse]) -> None:
        async with self._call("List"):
            request = await stream.recv_message()
            assert request is not None
            store = await asyncio.shield(self._opened)
            batch: list[pb.Info] = []
            for info in store.walk(*request.filters):
                batch.append(info_to(info))
                if len(batch) == LIST_BATCH:
                    await stream.send_message(pb.ListSnapshotsResponse(info=batch))
                    batch.clear()
            if batch:
                await stream.send_message(pb.ListSnapshotsResponse(info=batch))

    @contextlib.asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        """
        Around one call: has it observed, and makes a status of what it raises.
        """
        begun = time.monotonic()
        code = "CANCELLED"
        self._observer.started(name)
        task = asyncio.current_task()
        assert task
        self._calls.add(task)
        # The whole task, not this call alone, which ends before its status is sent.
        task.add_done_callback(self._calls.discard)
        try:
            if self._stopping:
                raise UnavailableError("the service is stopping: try again")
            yield
            code = "OK"
        except Error as error:
            code = code_of(error)
            raise GRPCError(Status[code], str(error)) from error
        except Exception as error:
            code = "INTERNAL"
            log.exception("%s failed", name)
            raise GRPCError(Status.INTERNAL, f"{name} failed: {error!r}") from error
        finally:
            self._observer.ended(name, code, time.monotonic() - begun)


# -- what each operation does


class _Operation(NamedTuple):
    name: str
    request: type[Message]
    reply: type[Message]
    run: Callable[[Snapshotter, Any], Message]
    pool: str = ""


def _prepare(store: Snapshotter, request: pb.PrepareSnapshotRequest) -> Message:
    mounts = store.bound_to(request.snapshotter).prepare(request.key, request.parent, dict(request.labels))
    return pb.PrepareSnapshotResponse(mounts=mounts_to(mounts))


def _view(store: Snapshotter, request: pb.ViewSnapshotRequest) -> Message:
    mounts = store.bound_to(request.snapshotter).view(request.key, request.parent, dict(request.labels))
    return pb.ViewSnapshotResponse(mounts=mounts_to(mounts))


def _mounts(store: Snapshotter, request: pb.MountsRequest) -> Message:
    return pb.MountsResponse(mounts=mounts_to(store.mounts(request.key)))


def _commit(store: Snapshotter, request: pb.CommitSnapshotRequest) -> Message:
    bound = store.bound_to(request.snapshotter)
    bound.commit(request.name, request.key, dict(request.labels), request.parent)
    return Empty()


def _remove(store: Snapshotter, request: pb.RemoveSnapshotRequest) -> Message:
    try:
        store.bound_to(request.snapshotter).remove(request.key)
    except (NotFoundError, FailedPreconditionError):
        raise
    except Exception as error:
        # Any other code would end containerd's collection.
        raise FailedPreconditionError(str(error)) from error
    return Empty()


def _stat(store: Snapshotter, request: pb.StatSnapshotRequest) -> Message:
    return pb.StatSnapshotResponse(info=info_to(store.stat(request.key)))


def _update(store: Snapshotter, request: pb.UpdateSnapshotRequest) -> Message:
    bound = store.bound_to(request.snapshotter)
    return pb.UpdateSnapshotResponse(info=info_to(bound.update(info_from(request.info), *request.update_mask.paths)))


def _usage(store: Snapshotter, request: pb.UsageRequest) -> Message:
    return usage_to(store.usage(request.key))


def _cleanup(store: Snapshotter, request: pb.CleanupRequest) -> Message:
    store.bound_to(request.snapshotter).cleanup()
    return Empty()


_OPERATIONS = (
    _Operation("Prepare", pb.PrepareSnapshotRequest, pb.PrepareSnapshotResponse, _prepare, "_changes"),
    _Operation("View", pb.ViewSnapshotRequest, pb.ViewSnapshotResponse, _view, "_changes"),
    _Operation("Mounts", pb.MountsRequest, pb.MountsResponse, _mounts, "_reads"),
    _Operation("Commit", pb.CommitSnapshotRequest, Empty, _commit, "_changes"),
    _Operation("Remove", pb.RemoveSnapshotRequest, Empty, _remove, "_changes"),
    _Operation("Stat", pb.StatSnapshotRequest, pb.StatSnapshotResponse, _stat),
    _Operation("Update", pb.UpdateSnapshotRequest, pb.UpdateSnapshotResponse, _update, "_changes"),
    _Operation("Usage", pb.UsageRequest, pb.UsageResponse, _usage, "_reads"),
    _Operation("Cleanup", pb.CleanupRequest, Empty, _cleanup, "_cleanups"),
)
