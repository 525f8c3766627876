"""
containerd's Snapshots service over a store: messages to calls, calls to threads, errors to statuses.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib.const import Status
from grpclib.health.v1 import health_pb2

from snapshotter.api import extension_pb2
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.api.messages import code_of, info_to, mounts_to, usage_to
from snapshotter.contract import Snapshotter
from snapshotter.daemon import rpc
from snapshotter.daemon.rpc import Answer, Method, Observer, RefusedError
from snapshotter.errors import Error, InvalidArgumentError, UnavailableError
from snapshotter.events import Event
from snapshotter.model import Info, Kind

__all__ = ["Observer", "Service"]

CHANGING_THREADS = 64
READING_THREADS = 8
LISTING_THREADS = 2

# How long a call may take. What is under way then goes on, what has not begun never does.
READ_SECONDS = 30.0
CHANGE_SECONDS = 300.0  # a commit has what was written flushed, and slow disks have gigabytes of it
# containerd's collection calls one after the other, without a deadline, and holds up everybody else meanwhile.
COLLECTION_SECONDS = 10.0
STUCK_COLLECTION_SECONDS = 1.0  # while something goes on that is late already

LIST_BATCH = 100  # as containerd's own
LIST_BATCH_SIZE = 1 << 20  # in bytes; with large labels a hundred would be more than the 16 MiB that clients take

MAX_FILTERS_SIZE = 1 << 16  # in characters, of one call; each is tried on every snapshot

# Any other answer to a removal ends containerd's whole collection.
_OF_REMOVE = (Status.NOT_FOUND, Status.FAILED_PRECONDITION)

# Of these a client has to hear, and so has the operator.
_FAILURES = (Status.DATA_LOSS, Status.INTERNAL, Status.RESOURCE_EXHAUSTED, Status.UNAVAILABLE)


class Service:
    """
    Serves a store's snapshots to containerd, what the command asks beside that, and gRPC's health service.

    Connections are accepted from `start` on, and calls held until the store is open: containerd gives a connection one
    second, and a store may need longer. What one look at the index tells is answered on the loop, the rest in threads,
    where changes that hang leave reads alone.

    Args:
        opened: Has the store once it is open, or why it is not. The store is the caller's to close, after `stop`.
        observer: Is told of every call.
    """

    def __init__(self, opened: "asyncio.Future[Snapshotter]", observer: Observer | None = None) -> None:
        self._opened = opened
        self._pools = {
            "changes": ThreadPoolExecutor(CHANGING_THREADS, "snapshotter-change"),
            "reads": ThreadPoolExecutor(READING_THREADS, "snapshotter-read"),
            "cleanups": ThreadPoolExecutor(1, "snapshotter-cleanup"),
            # Asks nothing of the disk, but ten thousand snapshots take a while, and more with many filters.
            "lists": ThreadPoolExecutor(LISTING_THREADS, "snapshotter-list"),
        }
        self._late: set[Future[Message]] = set()
        self._server = rpc.Server(self._methods(), _refusal, observer)

    def _methods(self) -> dict[str, Method]:
        snapshots = pb.DESCRIPTOR.services_by_name["Snapshots"].full_name
        extension = extension_pb2.DESCRIPTOR.services_by_name["Extension"].full_name
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        self._names = ("", snapshots)
        return {
            **{
                f"/{snapshots}/{operation.name}": Method(
                    operation.name, operation.request, partial(self._answer, operation)
                )
                for operation in _OPERATIONS
            },
            f"/{snapshots}/List": Method("List", pb.ListSnapshotsRequest, self._list),
            f"/{extension}/{_FORK.name}": Method(_FORK.name, _FORK.request, partial(self._answer, _FORK)),
            f"/{health}/Check": Method("Check", health_pb2.HealthCheckRequest, self._check),
        }

    async def start(self, sock: socket.socket) -> None:
        """
        Serve on *sock*, a bound unix socket, which is closed at the end.
        """
        await self._server.start(sock)

    async def stop(self, seconds: float) -> None:
        """
        Refuse new calls, give those under way *seconds* to end, and end all connections.

        What hangs goes on in its thread: closing the store waits for it.
        """
        await self._server.stop(seconds)
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    # -- answering

    def _store(self) -> Snapshotter:
        if not self._opened.done():
            raise UnavailableError("the store is not open yet")
        try:
            return self._opened.result()
        except (Exception, asyncio.CancelledError) as error:
            raise UnavailableError(f"the store is not open: {error}") from error

    def _answer(self, operation: "_Operation", request: Message) -> Answer:
        if not self._opened.done():
            return partial(self._answer_later, operation, request)
        store = self._store()
        reply = operation.at_once(store, request)
        return self._begin(operation, store, request) if reply is None else reply

    async def _answer_later(self, operation: "_Operation", request: Message) -> Message:
        await asyncio.wait([self._opened], timeout=operation.seconds)
        store = self._store()
        reply = operation.at_once(store, request)
        return await self._begin(operation, store, request) if reply is None else reply

    def _begin(self, operation: "_Operation", store: Snapshotter, request: Message) -> asyncio.Future[Message]:
        """
        The answer of a thread; of a call that is not begun yet, none once nobody waits for it.
        """
        seconds = operation.seconds
        if self._late and seconds == COLLECTION_SECONDS:
            seconds = STUCK_COLLECTION_SECONDS
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Message] = loop.create_future()
        running = self._pools[operation.pool].submit(operation.run, store, request)

        def tell(running: Future[Message]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the thread
                loop.call_soon_threadsafe(_copy, running, answer)

        def give_up() -> None:
            if not running.cancel():
                self._late.add(running)
                running.add_done_callback(self._late.discard)
            text = f"{operation.name} takes more than {seconds:g} s: is the disk hanging?"
            answer.set_exception(UnavailableError(text))

        def ended(answer: asyncio.Future[Message]) -> None:
            timer.cancel()
            if answer.cancelled():
                running.cancel()

        running.add_done_callback(tell)
        timer = loop.call_later(seconds, give_up)
        answer.add_done_callback(ended)
        return answer

    async def _list(self, request: pb.ListSnapshotsRequest) -> AsyncGenerator[Message, None]:
        size = sum(map(len, request.filters))
        if size > MAX_FILTERS_SIZE:
            raise InvalidArgumentError(f"filters of {size} characters are more than {MAX_FILTERS_SIZE}")
        await asyncio.wait([self._opened], timeout=READ_SECONDS)
        store, loop, pool = self._store(), asyncio.get_running_loop(), self._pools["lists"]
        batches = await loop.run_in_executor(pool, lambda: _batches(store.walk(*request.filters)))
        while (batch := await loop.run_in_executor(pool, next, batches, None)) is not None:
            yield batch

    def _check(self, request: health_pb2.HealthCheckRequest) -> Message:
        if request.service not in self._names:
            raise RefusedError(Status.NOT_FOUND, "unknown service")
        try:
            serving = not self._store().failure
        except UnavailableError:
            serving = False
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)


def _copy(running: Future[Message], answer: asyncio.Future[Message]) -> None:
    if answer.done():
        return
    if running.cancelled():
        answer.cancel()
    elif error := running.exception():
        answer.set_exception(error)
    else:
        answer.set_result(running.result())


def _refusal(method: str, error: Exception) -> RefusedError:
    """
    The status that a call of *method* ends with because of *error*.
    """
    defect = None
    if isinstance(error, RefusedError):
        refused = error
    elif isinstance(error, Error):
        refused = RefusedError(Status[code_of(error)], str(error))
    else:
        defect = error
        refused = RefusedError(Status.INTERNAL, f"{method} failed: {error!r}")
    event = Event.FAILED if refused.status in _FAILURES else Event.REFUSED
    event.emit(traceback=defect, op=method, code=refused.status.name, error=str(refused))
    if method == "Remove" and refused.status not in _OF_REMOVE:
        return RefusedError(Status.FAILED_PRECONDITION, str(refused))
    return refused


# -- what is done


def _prepare(store: Snapshotter, request: pb.PrepareSnapshotRequest) -> Message:
    mounts = store.bound_to(request.snapshotter).prepare(request.key, request.parent, dict(request.labels))
    return pb.PrepareSnapshotResponse(mounts=mounts_to(mounts))


def _view(store: Snapshotter, request: pb.ViewSnapshotRequest) -> Message:
    mounts = store.bound_to(request.snapshotter).view(request.key, request.parent, dict(request.labels))
    return pb.ViewSnapshotResponse(mounts=mounts_to(mounts))


def _fork(store: Snapshotter, request: extension_pb2.ForkRequest) -> Message:
    mounts = store.bound_to(request.snapshotter).fork(request.key, request.new_key)
    return extension_pb2.ForkResponse(mounts=mounts_to(mounts))


def _mounts(store: Snapshotter, request: pb.MountsRequest) -> Message:
    return pb.MountsResponse(mounts=mounts_to(store.mounts(request.key)))


def _commit(store: Snapshotter, request: pb.CommitSnapshotRequest) -> Message:
    bound = store.bound_to(request.snapshotter)
    bound.commit(request.name, request.key, dict(request.labels), request.parent)
    return Empty()


def _remove(store: Snapshotter, request: pb.RemoveSnapshotRequest) -> Message:
    store.bound_to(request.snapshotter).remove(request.key)
    return Empty()


def _stat(store: Snapshotter, request: pb.StatSnapshotRequest) -> Message:
    return pb.StatSnapshotResponse(info=info_to(store.stat(request.key)))


def _update(store: Snapshotter, request: pb.UpdateSnapshotRequest) -> Message:
    # Nothing else of an info can be updated; its times may be garbage.
    info = Info(Kind.ACTIVE, request.info.name, labels=dict(request.info.labels))
    updated = store.bound_to(request.snapshotter).update(info, *request.update_mask.paths)
    return pb.UpdateSnapshotResponse(info=info_to(updated))


def _batches(infos: Iterator[Info]) -> Iterator[Message]:
    batch, size = pb.ListSnapshotsResponse(), 0
    for info in infos:
        message = info_to(info)
        size += message.ByteSize()
        if batch.info and (len(batch.info) == LIST_BATCH or size > LIST_BATCH_SIZE):
            yield batch
            batch, size = pb.ListSnapshotsResponse(), message.ByteSize()
        batch.info.append(message)
    if batch.info:
        yield batch


def _known_usage(store: Snapshotter, request: pb.UsageRequest) -> Message | None:
    usage = store.opened.known_usage(request.key)
    return usage_to(usage) if usage else None


def _usage(store: Snapshotter, request: pb.UsageRequest) -> Message:
    return usage_to(store.usage(request.key))


def _cleanup(store: Snapshotter, request: pb.CleanupRequest) -> Message:
    store.bound_to(request.snapshotter).cleanup()
    return Empty()


def _nothing(store: Snapshotter, request: Message) -> None:
    return None


class _Operation(NamedTuple):
    """
    What a method does.

    Args:
        at_once: Gives the reply if that takes no system call; else *run* does, in a thread of *pool*.
    """

    name: str
    request: type[Message]
    pool: str
    seconds: float
    run: Callable[[Snapshotter, Any], Message]
    at_once: Callable[[Snapshotter, Any], Message | None] = _nothing


_OPERATIONS = (
    _Operation("Prepare", pb.PrepareSnapshotRequest, "changes", CHANGE_SECONDS, _prepare),
    _Operation("View", pb.ViewSnapshotRequest, "changes", CHANGE_SECONDS, _view),
    _Operation("Mounts", pb.MountsRequest, "reads", READ_SECONDS, _mounts),
    _Operation("Commit", pb.CommitSnapshotRequest, "changes", CHANGE_SECONDS, _commit),
    _Operation("Remove", pb.RemoveSnapshotRequest, "changes", COLLECTION_SECONDS, _remove),
    _Operation("Stat", pb.StatSnapshotRequest, "reads", READ_SECONDS, _stat, _stat),
    _Operation("Update", pb.UpdateSnapshotRequest, "changes", CHANGE_SECONDS, _update),
    _Operation("Usage", pb.UsageRequest, "reads", READ_SECONDS, _usage, _known_usage),
    _Operation("Cleanup", pb.CleanupRequest, "cleanups", COLLECTION_SECONDS, _cleanup),
)

_FORK = _Operation("Fork", extension_pb2.ForkRequest, "changes", CHANGE_SECONDS, _fork)
