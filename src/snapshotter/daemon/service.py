"""
containerd's Snapshots service over a store: from messages to calls, from calls to threads, from errors to statuses.
"""

import asyncio
import contextlib
import enum
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import InvalidStateError, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from snapshotter.api import extension_pb2, health_pb2
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.api.messages import code_of, info_to, mounts_to, usage_to
from snapshotter.contract import Snapshotter
from snapshotter.daemon import rpc
from snapshotter.daemon.rpc import Answer, Method, Observer, Pending, RefusedError
from snapshotter.errors import Error, InvalidArgumentError, NotFoundError, UnavailableError
from snapshotter.events import Event
from snapshotter.model import Info, Kind
from snapshotter.transport.status import Status

__all__ = ["LIMITS", "Limits", "Observer", "Service", "refusal"]

LIST_BATCH = 500  # snapshots in a message; containerd's own service sends 100, in more than twice the time
LIST_BATCH_SIZE = 1 << 20  # bytes; with large labels, a full batch would exceed the 16 MiB that clients accept

MAX_MISSED = 1000  # keys

MAX_FILTERS_SIZE = 1 << 16  # characters in one call, because each filter is tried on every snapshot

# containerd's garbage collection stops at any other error of Remove.
_REMOVE_STATUSES = (Status.NOT_FOUND, Status.FAILED_PRECONDITION)

_SNAPSHOTS = pb.DESCRIPTOR.services_by_name["Snapshots"]
_EXTENSION = extension_pb2.DESCRIPTOR.services_by_name["Extension"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

T = TypeVar("T")

# The operator has to know about these, not only the client.
_FAILURES = (Status.DATA_LOSS, Status.INTERNAL, Status.RESOURCE_EXHAUSTED, Status.UNAVAILABLE)


class Pool(enum.Enum):
    """
    The threads for a kind of call, so that hanging calls of one kind cannot block those of another.
    """

    CHANGE = 64
    READ = 8
    CLEANUP = 1
    LIST = 2  # a list reads no disk, but many filters for thousands of snapshots would block the loop

    @property
    def threads(self) -> int:
        return self.value


class Limits(NamedTuple):
    """
    The time limits of calls, in seconds. A late call that has begun completes unanswered; a queued call is dropped.

    Args:
        change: A commit flushes the snapshot's data, which can be gigabytes on a slow disk.
        collection: containerd's garbage collection calls Remove and Cleanup one by one and without a deadline, and
            blocks all other changes until it ends.
        stuck_collection: Replaces *collection* while a late call is still running.
    """

    read: float = 30.0
    change: float = 300.0
    collection: float = 10.0
    stuck_collection: float = 1.0


LIMITS = Limits()


class Service:
    """
    Serves a store to containerd, with the command's extension and gRPC's health service.

    Connections are accepted from `start` on, and calls wait until the store is open: containerd gives a connection one
    second, and opening may take longer. Calls answered from the index run on the event loop; all others run in threads.
    Reads and changes have separate threads, so hanging changes cannot block reads.

    Args:
        opened: Gets the store, or the error of opening it. The caller closes the store, after `stop`.
        observer: Is called at the start and the end of every call.
        limits: The time limits of calls.
    """

    def __init__(
        self,
        opened: "asyncio.Future[Snapshotter]",
        observer: Observer | None = None,
        *,
        limits: Limits = LIMITS,
    ) -> None:
        self._opened = opened
        self._limits = limits
        self._pools = {pool: ThreadPoolExecutor(pool.threads, f"snapshotter-{pool.name.lower()}") for pool in Pool}
        self._waiting: list[_Task] = []
        self._late: set[_Task] = set()
        self._missed: set[str] = set()
        opened.add_done_callback(self._on_opened)
        self._server = rpc.Server(self._methods(), refusal, observer)

    def _methods(self) -> dict[str, Method]:
        methods = {
            operation.path: Method(operation.name, operation.request, partial(self._answer, operation))
            for operation in _operations(self._limits, self._stat)
        }
        methods[_path(_SNAPSHOTS, "List")] = Method("List", pb.ListSnapshotsRequest, self._list)
        methods[_path(_EXTENSION, "Missed")] = Method("Missed", extension_pb2.MissedRequest, self._take_missed)
        methods[_path(_HEALTH, "Check")] = Method("Check", health_pb2.HealthCheckRequest, self._check)
        return methods

    async def start(self, sock: socket.socket) -> None:
        """
        Serve on *sock*, a bound unix socket, which `stop` closes.
        """
        await self._server.start(sock)

    async def stop(self, seconds: float) -> None:
        """
        Refuse new calls, wait up to *seconds* for the calls in flight, and close all connections.

        A hanging call keeps its thread, and closing the store waits for it.
        """
        await self._server.stop(seconds)
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def opened(self) -> "asyncio.Future[Snapshotter]":
        """
        The store that is served, or the error of opening it.
        """
        return self._opened

    @property
    def serving(self) -> bool:
        """
        Whether the store is open and its filesystem works.
        """
        try:
            return not self._store().failure
        except UnavailableError:
            return False

    def replace(self, store: Snapshotter) -> None:
        """
        Serve *store* from now on, in place of the one whose filesystem failed.
        """
        self._opened = asyncio.get_running_loop().create_future()
        self._opened.set_result(store)

    # -- answering

    def _store(self) -> Snapshotter:
        if not self._opened.done():
            raise UnavailableError("the store is not open yet")
        try:
            return self._opened.result()
        except (Exception, asyncio.CancelledError) as error:
            raise UnavailableError(f"the store is not open: {error}") from error

    def _answer(self, operation: "_Operation", request: Message) -> Answer:
        if self._opened.done() and operation.at_once:
            reply = operation.at_once(self._store(), request)
            if reply is not None:
                return reply
        seconds = operation.seconds
        if self._late and seconds == self._limits.collection:
            seconds = self._limits.stuck_collection
        task = _Task(operation, request, seconds, self._late)
        if self._opened.done():
            self._begin(task)
        else:
            self._waiting.append(task)
        return task

    def _begin(self, task: "_Task") -> None:
        self._pools[task.operation.pool].submit(task.run, self._store())

    def _on_opened(self, _: object) -> None:
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            try:
                self._begin(task)
            except UnavailableError as error:
                task.fail(error)

    async def _list(self, request: pb.ListSnapshotsRequest) -> AsyncGenerator[bytes, None]:
        size = sum(map(len, request.filters))
        if size > MAX_FILTERS_SIZE:
            raise InvalidArgumentError(f"filters of {size} characters exceed the limit of {MAX_FILTERS_SIZE}")
        await asyncio.wait([self._opened], timeout=self._limits.read)
        opened = self._store().opened
        loop, pool = asyncio.get_running_loop(), self._pools[Pool.LIST]

        async def call(function: Callable[..., T], *arguments: Any) -> T:
            # Entries without a filter are there already.
            return await loop.run_in_executor(pool, function, *arguments) if request.filters else function(*arguments)

        entries = await call(opened.all_encoded, _entry, *request.filters)
        while messages := await call(_next_messages, entries):
            while messages:
                yield messages.pop()  # keeps no message, because the client may never read it

    def _stat(self, store: Snapshotter, request: pb.StatSnapshotRequest) -> bytes:
        try:
            return store.opened.encoded(_entry, request.key)
        except NotFoundError:
            if len(self._missed) < MAX_MISSED:
                self._missed.add(request.key)
            raise

    def _take_missed(self, _: extension_pb2.MissedRequest) -> Message:
        reply = extension_pb2.MissedResponse(keys=sorted(self._missed))
        self._missed.clear()
        return reply

    def _check(self, request: health_pb2.HealthCheckRequest) -> Message:
        if request.service not in ("", _SNAPSHOTS.full_name):
            raise RefusedError(Status.NOT_FOUND, "unknown service")
        status = health_pb2.HealthCheckResponse.SERVING if self.serving else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)


def refusal(method: str, error: Exception) -> RefusedError:
    """
    Log *error* of a call of *method*, and return its status. Remove gets NOT_FOUND or FAILED_PRECONDITION only.
    """
    defect = None
    if isinstance(error, RefusedError):
        refused = error
    elif isinstance(error, Error):
        refused = RefusedError(Status[code_of(error)], str(error))
    else:
        defect = error
        refused = RefusedError(Status.INTERNAL, f"{method} failed: {error!r}")
    # A RefusedError is the fault of the client, or the end of the daemon.
    failed = error is not refused and refused.status in _FAILURES
    event = Event.FAILED if failed else Event.REFUSED
    event.emit(traceback=defect, op=method, code=refused.status.name, error=str(refused))
    if method == "Remove" and refused.status not in _REMOVE_STATUSES:
        return RefusedError(Status.FAILED_PRECONDITION, str(refused))
    return refused


# -- operations


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


def _update(store: Snapshotter, request: pb.UpdateSnapshotRequest) -> Message:
    # Only labels can be updated, and the times of the message may be out of range.
    info = Info(Kind.ACTIVE, request.info.name, labels=dict(request.info.labels))
    updated = store.bound_to(request.snapshotter).update(info, *request.update_mask.paths)
    return pb.UpdateSnapshotResponse(info=info_to(updated))


def _entry(info: Info) -> bytes:
    """
    Return *info* as a StatSnapshotResponse, and at the same time as a ListSnapshotsResponse with one snapshot.

    In both messages the first field is an Info. Several entries in a row are a ListSnapshotsResponse with all of them.
    """
    return pb.StatSnapshotResponse(info=info_to(info)).SerializeToString()


def _next_messages(entries: Iterator[bytes]) -> list[bytes]:
    """
    Return the messages with the next snapshots, the first message last; none after the last snapshot.
    """
    batch = list(islice(entries, LIST_BATCH))
    joined = b"".join(batch)
    if len(joined) > LIST_BATCH_SIZE:
        return batch[::-1]
    return [joined] if batch else []


def _known_usage(store: Snapshotter, request: pb.UsageRequest) -> Message | None:
    usage = store.opened.known_usage(request.key)
    return usage_to(usage) if usage else None


def _usage(store: Snapshotter, request: pb.UsageRequest) -> Message:
    return usage_to(store.usage(request.key))


def _cleanup(store: Snapshotter, request: pb.CleanupRequest) -> Message:
    store.bound_to(request.snapshotter).cleanup()
    return Empty()


class _Operation(NamedTuple):
    """
    The implementation of a method.

    Args:
        seconds: The time limit.
        run: Returns the reply, in a thread of *pool*.
        at_once: Returns the reply if it takes no system call, else None; runs on the event loop before *run*.
    """

    path: str
    request: type[Message]
    pool: Pool
    seconds: float
    run: Callable[[Snapshotter, Any], Message | bytes]
    at_once: Callable[[Snapshotter, Any], Message | bytes | None] | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def _path(service: ServiceDescriptor, name: str) -> str:
    """
    Return the path of the method *name*, which exists.
    """
    return f"/{service.full_name}/{service.methods_by_name[name].name}"


def _operations(limits: Limits, stat: Callable[[Snapshotter, pb.StatSnapshotRequest], bytes]) -> tuple[_Operation, ...]:
    def snapshots(name: str) -> str:
        return _path(_SNAPSHOTS, name)

    changes, reads = Pool.CHANGE, Pool.READ
    return (
        _Operation(snapshots("Prepare"), pb.PrepareSnapshotRequest, changes, limits.change, _prepare),
        _Operation(snapshots("View"), pb.ViewSnapshotRequest, changes, limits.change, _view),
        _Operation(snapshots("Mounts"), pb.MountsRequest, reads, limits.read, _mounts),
        _Operation(snapshots("Commit"), pb.CommitSnapshotRequest, changes, limits.change, _commit),
        _Operation(snapshots("Remove"), pb.RemoveSnapshotRequest, changes, limits.collection, _remove),
        _Operation(snapshots("Stat"), pb.StatSnapshotRequest, reads, limits.read, stat, stat),
        _Operation(snapshots("Update"), pb.UpdateSnapshotRequest, changes, limits.change, _update),
        _Operation(snapshots("Usage"), pb.UsageRequest, reads, limits.read, _usage, _known_usage),
        _Operation(snapshots("Cleanup"), pb.CleanupRequest, Pool.CLEANUP, limits.collection, _cleanup),
        _Operation(_path(_EXTENSION, "Fork"), extension_pb2.ForkRequest, changes, limits.change, _fork),
    )


class _Task(Pending):
    """
    An operation that runs in a thread, and its answer.

    Args:
        seconds: The time limit. A task that is queued then is dropped, and one that runs completes unanswered.
        late: Has the tasks that still run after their time limit.
    """

    def __init__(self, operation: _Operation, request: Message, seconds: float, late: "set[_Task]") -> None:
        super().__init__()
        self.operation = operation
        self.expires = time.monotonic() + seconds
        self._seconds = seconds
        self._late = late
        self._context = copy_context()  # with the trace of the call
        self._requests = [request]  # empty once the task runs or is cancelled; list.pop is atomic

    def run(self, store: Snapshotter) -> None:
        try:
            request = self._requests.pop()
        except IndexError:
            return
        try:
            reply = self._context.run(self.operation.run, store, request)
        except Exception as error:
            self.fail(error)
        else:
            with contextlib.suppress(InvalidStateError):  # late or cancelled
                self.set_result(reply)
        self._late.discard(self)

    def fail(self, error: Exception) -> bool:
        """
        Set *error*, and return whether there was no answer before.
        """
        try:
            self.set_exception(error)
        except InvalidStateError:
            return False
        return True

    def cancel(self) -> bool:
        self._requests.clear()
        return super().cancel()

    def expire(self) -> None:
        try:
            self._requests.pop()
        except IndexError:  # it runs
            self._late.add(self)
        text = f"{self.operation.name} takes more than {self._seconds:g} s: is the disk hanging?"
        if not self.fail(UnavailableError(text)):
            self._late.discard(self)
