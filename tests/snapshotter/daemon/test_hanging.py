"""
Calls that hang, take too long or are cancelled, and the end of the service.
"""

import asyncio
import contextlib
import fcntl
import gc
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.client import Client
from snapshotter.daemon import rpc, service
from snapshotter.daemon.service import Limits
from snapshotter.errors import NotFoundError
from snapshotter.transport.status import Status
from tests.snapshotter.daemon.stores import Hanging
from tests.snapshotter.daemon.wire import CHECK, METHODS, Wire, framed, wired
from tests.snapshotter.serving import serving

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


def prepares(wire: Wire, count: int) -> list[int]:
    """
    Start to prepare *count* snapshots on "base", and return the numbers of the streams.
    """
    numbers = []
    for index in range(count):
        numbers.append(wire.begin("Prepare"))
        request = pb.PrepareSnapshotRequest(snapshotter="c", key=f"new {index}", parent="base")
        wire.body(numbers[-1], framed(request))
    return numbers


class Recorder:
    """
    An observer that records its calls.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.changed = threading.Condition()

    def started(self, method: str) -> None:
        self._add(method, "")

    def ended(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self._add(method, code)

    def _add(self, method: str, code: str) -> None:
        with self.changed:
            self.calls.append((method, code))
            self.changed.notify_all()

    def wait_for(self, *calls: tuple[str, str]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: set(calls) <= set(self.calls), 10)


def test_changes_that_hang_leave_the_rest_alone(hanging: Snapshotter) -> None:
    """
    With hundreds of changes hanging in the kernel, on the same connection, reads, usage and health are answered, and
    removals and cleanups end within their limit. All changes complete afterwards.
    """
    with wired(hanging) as wire:
        numbers = prepares(wire, 300)
        for _ in range(service.Pool.CHANGE.threads):
            Hanging.hanging.acquire()
        for _ in range(20):
            for name in ("Stat", "Usage", "Mounts"):
                assert wire.call(name, METHODS[name](key="top")).status == 0
            assert wire.call("List", b"").status == 0
            assert wire.call(CHECK, b"").status == 0
        assert wire.call("Cleanup", pb.CleanupRequest(snapshotter="c")).status == 0
        assert not wire.ended.intersection(numbers)
        Hanging.go.set()
        assert {wire.end(number).status for number in numbers} == {0}


def test_late_changes(hanging: Snapshotter) -> None:
    """
    A late change is Unavailable, and a removal that waits for it is refused. The change completes afterwards, and no
    key stays reserved.
    """
    with wired(hanging, limits=Limits(change=0, collection=0, stuck_collection=0)) as wire:
        request = pb.PrepareSnapshotRequest(snapshotter="c", key="new", parent="base")
        reply = wire.call("Prepare", request)
        assert (reply.status, reply.text) == (
            Status.UNAVAILABLE.value,
            "Prepare takes more than 0 s: is the disk hanging?",
        )
        Hanging.hanging.acquire()
        reply = wire.call("Remove", pb.RemoveSnapshotRequest(snapshotter="c", key="new"))
        assert reply.status == Status.FAILED_PRECONDITION.value
        Hanging.go.set()
        # The late calls may complete in any order.
        with contextlib.suppress(NotFoundError):
            hanging.remove("new")
        hanging.remove("base")
        assert [info.name for info in hanging.walk()] == ["top"]


def test_collections_are_short_while_something_is_late(hanging: Snapshotter) -> None:
    """
    While a change is late, each removal of a collection has one second, not ten, because a collection has many.
    """
    with wired(hanging, limits=Limits(change=0, stuck_collection=0)) as wire:
        (number,) = prepares(wire, 1)
        assert wire.end(number).status == Status.UNAVAILABLE.value
        Hanging.hanging.acquire()
        reply = wire.call("Remove", pb.RemoveSnapshotRequest(snapshotter="c", key="new 0"))
        assert (reply.status, reply.text) == (
            Status.FAILED_PRECONDITION.value,
            "Remove takes more than 0 s: is the disk hanging?",
        )


@pytest.mark.parametrize("way", ["reset", "disconnect"])
def test_a_call_that_is_given_up(hanging: Snapshotter, way: str) -> None:
    """
    When the client cancels or disconnects, the call that hangs in the kernel completes: at most its snapshot is left,
    for the next collection to remove. Queued calls never run, no key stays reserved, and no parent stays pinned.
    """
    recorder = Recorder()
    with serving(hanging, recorder) as server:
        with Wire(server.address) as wire:
            numbers = prepares(wire, service.Pool.CHANGE.threads + 10)
            for _ in range(service.Pool.CHANGE.threads):
                Hanging.hanging.acquire()
            assert wire.call(CHECK, b"").status == 0  # the server has read all calls before
            if way == "reset":
                for number in numbers:
                    wire.h2.reset_stream(number)
                wire.send()
                assert wire.call(CHECK, b"").status == 0
        recorder.wait_for(("Prepare", "CANCELLED"))
        with recorder.changed:
            done = recorder.changed.wait_for(lambda: recorder.calls.count(("Prepare", "CANCELLED")) == len(numbers), 10)
        assert done
        for _ in range(5):
            server.on_loop(int)  # the loop iterates, and cancels the queued calls
        Hanging.go.set()
        with Client(server.address, snapshotter="c") as client:
            kept = client.walk("kind==committed", "name==top")
            keep = {info.name for info in kept}
            # Each removal waits until its key is free.
            for index in range(len(numbers)):
                with contextlib.suppress(NotFoundError):
                    client.remove(f"new {index}")
            assert {info.name for info in client.walk()} == keep
            client.remove("base")
        assert Hanging.hanging.acquire(blocking=False) is False


def test_a_client_s_deadline(hanging: Snapshotter) -> None:
    """
    A call ends at its client's deadline, with the status for it.
    """
    with wired(hanging) as wire:
        number = wire.begin("Prepare", {"grpc-timeout": "1m"})
        wire.body(number, framed(pb.PrepareSnapshotRequest(snapshotter="c", key="new", parent="base")))
        assert wire.end(number).status == Status.DEADLINE_EXCEEDED.value


def test_a_removal_is_refused_by_one_code(hanging: Snapshotter) -> None:
    """
    Remove fails with FailedPrecondition also where the server itself refuses the call: a broken or a large request,
    a deadline, a stop.
    """
    too_large = b"\0" + (rpc.MAX_REQUEST_SIZE + 1).to_bytes(4, "big")
    remove = framed(pb.RemoveSnapshotRequest(snapshotter="c", key="new"))
    with serving(hanging) as server, Wire(server.address) as wire:
        for body in (b"", remove[:-1], remove * 2, b"\1\0\0\0\0", framed(b"\xff"), too_large):
            number = wire.begin("Remove")
            wire.body(number, body)
            assert wire.end(number).status == Status.FAILED_PRECONDITION.value, body
        number = wire.begin("Remove", {"grpc-timeout": "soon"})
        assert wire.end(number).status == Status.FAILED_PRECONDITION.value
        prepare = wire.begin("Prepare")
        wire.body(prepare, framed(pb.PrepareSnapshotRequest(snapshotter="c", key="new", parent="base")))
        Hanging.hanging.acquire()
        number = wire.begin("Remove", {"grpc-timeout": "1m"})
        wire.body(number, remove)
        reply = wire.end(number)
        assert (reply.status, reply.text) == (Status.FAILED_PRECONDITION.value, "the client's deadline is over")
        stopped = asyncio.run_coroutine_threadsafe(server.service.stop(60), server.loop)
        while (reply := wire.call("Remove", pb.RemoveSnapshotRequest(snapshotter="c", key="none"))).status == 5:
            pass  # before the loop ran the stop
        assert (reply.status, reply.text) == (Status.FAILED_PRECONDITION.value, "the snapshotter is stopping")
        Hanging.go.set()
        stopped.result(10)


def test_observer(plain: Snapshotter) -> None:
    """
    An observer is called at the start and the end of each call, with the code.
    """
    recorder = Recorder()
    with wired(plain, recorder) as wire:
        wire.call("Stat", b"")
        wire.call("Prepare", pb.PrepareSnapshotRequest(snapshotter="c", key="k"))
        wire.call("List", b"")
        wire.call("Usage", b"\xff")
        wire.call("Unknown", b"")
    assert recorder.calls == [
        ("Stat", ""),
        ("Stat", "NOT_FOUND"),
        ("Prepare", ""),
        ("Prepare", "OK"),
        ("List", ""),
        ("List", "OK"),
        ("Usage", ""),
        ("Usage", "INVALID_ARGUMENT"),
    ]


def test_stop(hanging: Snapshotter) -> None:
    """
    Stopping refuses new calls and connections, waits for the calls in flight, and then closes the connections.
    """
    with serving(hanging) as server, Wire(server.address) as wire:
        (number,) = prepares(wire, 1)
        Hanging.hanging.acquire()
        stopped = asyncio.run_coroutine_threadsafe(server.service.stop(60), server.loop)
        while (reply := wire.call(CHECK, b"")).status == 0:
            pass  # before the loop ran the stop
        assert (reply.status, reply.text) == (Status.UNAVAILABLE.value, "the snapshotter is stopping")
        with pytest.raises(OSError, match="refused"):
            Wire(server.address)
        assert not stopped.done()
        Hanging.go.set()
        with contextlib.suppress(ConnectionError):
            assert wire.end(number).status == 0
        stopped.result(10)
        with pytest.raises(ConnectionError):
            wire.until_closed()
        assert hanging.stat("new 0")


def test_stop_waits_no_longer_than_it_is_told(hanging: Snapshotter) -> None:
    """
    A hanging call is answered that the service is stopping.
    """
    with serving(hanging) as server, Wire(server.address) as wire:
        (number,) = prepares(wire, 1)
        Hanging.hanging.acquire()
        server.run(server.service.stop(0))
        with contextlib.suppress(ConnectionError):
            assert wire.end(number).status == Status.UNAVAILABLE.value
        with pytest.raises(ConnectionError):
            wire.until_closed()


def test_a_client_that_connects_while_the_service_stops(hanging: Snapshotter) -> None:
    """
    A client that connects in the turn of the loop in which the service stops is ended like the others.
    """
    with serving(hanging) as server, contextlib.ExitStack() as stack:

        async def stop() -> list[socket.socket]:
            clients = []
            for _ in range(20):
                clients.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
                clients[-1].connect(server.address)
            await server.service.stop(0)
            return clients

        for client in server.run(stop()):
            client.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while client.recv(1000):
                    pass


def test_cancelled_calls_let_go_of_their_requests(hanging: Snapshotter) -> None:
    """
    The request of a call that waits for a thread is freed at once when its client cancels the call.
    """
    with serving(hanging) as server, Wire(server.address) as wire:
        prepares(wire, service.Pool.CHANGE.threads)
        for _ in range(service.Pool.CHANGE.threads):
            Hanging.hanging.acquire()
        numbers = prepares(wire, 20)
        assert wire.call(CHECK, b"").status == 0
        tasks = [each for each in gc.get_objects() if isinstance(each, service._Task)]
        assert sum(len(task._requests) for task in tasks) == 20
        for number in numbers:
            wire.h2.reset_stream(number)
        wire.send()
        assert wire.call(CHECK, b"").status == 0
        assert sum(len(task._requests) for task in tasks) == 0


@pytest.mark.parametrize("timeout", ["0S", "1n"])
def test_a_deadline_that_is_over(plain: Snapshotter, timeout: str) -> None:
    """
    A call whose time is over when it arrives is not run.
    """
    with wired(plain) as wire:
        number = wire.begin("Prepare", {"grpc-timeout": timeout})
        wire.body(number, framed(pb.PrepareSnapshotRequest(snapshotter="c", key="new")))
        assert wire.end(number).status == Status.DEADLINE_EXCEEDED.value
    with pytest.raises(NotFoundError):
        plain.stat("new")


@pytest.mark.btrfs
def test_a_frozen_filesystem(btrfs_mount: Callable[..., Path]) -> None:
    """
    While the filesystem is frozen, changes hang, and reads, usage and health are answered. The changes complete later.
    """
    mount = btrfs_mount()
    with Snapshotter.create(mount / "root", client="c") as store:
        store.prepare("k")
        store.commit("base", "k")
        store.prepare("top", "base")
        fd = os.open(mount, os.O_RDONLY)
        with serving(store) as server, Wire(server.address) as wire, Client(server.address, timeout=60) as client:
            assert wire.call("Usage", pb.UsageRequest(key="top")).status == 0
            fcntl.ioctl(fd, FIFREEZE, 0)
            try:
                numbers = prepares(wire, 100)
                for _ in range(30):
                    assert client.stat("top").name == "top"
                    assert len(list(client.walk())) == 2
                    assert client.mounts("top")
                    assert client.usage("top")
                    assert client.serving()
                assert not wire.ended.intersection(numbers)
            finally:
                fcntl.ioctl(fd, FITHAW, 0)
                os.close(fd)
            assert {wire.end(number).status for number in numbers} == {0}
