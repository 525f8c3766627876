"""
Clients of other gRPC libraries: grpcio, its asyncio part, and grpclib, which is strict about the order of frames.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.api import snapshots_pb2 as pb
from tests.snapshotter.daemon.stores import Hanging
from tests.snapshotter.daemon.wire import Wire, framed
from tests.snapshotter.serving import serving
from tests.snapshotter.transport.served import served

ROOT = Path(__file__).parents[3]

# Each program makes the calls of `CALLS`, which the function `call(name, request, reply, metadata, timeout)` makes.
CALLS = """
def expect(code, name, request, reply, **options):
    try:
        call(name, request, reply, **options)
    except Exception as error:
        found = code_of(error)
        assert found == code, (found, error)
    else:
        raise AssertionError(name)

def key(number):
    return pb.StatSnapshotRequest(snapshotter="c", key=f"k{number}")

large = (("x-large", "y" * 30_000), ("x-more", "z" * 30_000))
for number in range(300):
    [reply] = call("Stat", key(number), pb.StatSnapshotResponse, metadata=large if number % 100 == 0 else ())
    assert reply.info.name == f"k{number}"
expect("NOT_FOUND", "Stat", key(-1), pb.StatSnapshotResponse)
replies = call("List", pb.ListSnapshotsRequest(snapshotter="c"), pb.ListSnapshotsResponse, stream=True)
assert sum(len(reply.info) for reply in replies) == 1000
[reply] = call("Prepare", pb.PrepareSnapshotRequest(snapshotter="c", key="new"), pb.PrepareSnapshotResponse)
assert reply.mounts
expect("ALREADY_EXISTS", "Prepare", pb.PrepareSnapshotRequest(snapshotter="c", key="new"), pb.PrepareSnapshotResponse)
expect("NOT_FOUND", "Stat", pb.StatSnapshotRequest(key="x" * (3 << 20)), pb.StatSnapshotResponse)
expect("RESOURCE_EXHAUSTED", "Stat", pb.StatSnapshotRequest(key="x" * (5 << 20)), pb.StatSnapshotResponse)
print("done")
"""

HEAD = """
import sys
from snapshotter.api import snapshots_pb2 as pb

SERVICE = "/containerd.services.snapshots.v1.Snapshots/"
address = sys.argv[1]
"""

GRPCIO = f"""{HEAD}
import grpc

channel = grpc.insecure_channel(f"unix:{{address}}")

def code_of(error):
    return error.code().name

def call(name, request, reply, metadata=(), timeout=20, stream=False):
    make = channel.unary_stream if stream else channel.unary_unary
    method = make(SERVICE + name, request_serializer=type(request).SerializeToString,
                  response_deserializer=reply.FromString)
    answer = method(request, metadata=metadata, timeout=timeout)
    return list(answer) if stream else [answer]
{CALLS}
"""

GRPCIO_ASYNC = f"""{HEAD}
import asyncio
import grpc

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)

def code_of(error):
    return error.code().name

async def make_channel():
    return grpc.aio.insecure_channel(f"unix:{{address}}")

channel = loop.run_until_complete(make_channel())

def call(name, request, reply, metadata=(), timeout=20, stream=False):
    async def answer():
        make = channel.unary_stream if stream else channel.unary_unary
        method = make(SERVICE + name, request_serializer=type(request).SerializeToString,
                      response_deserializer=reply.FromString)
        called = method(request, metadata=metadata, timeout=timeout)
        return [each async for each in called] if stream else [await called]
    return loop.run_until_complete(answer())
{CALLS}
"""

GRPCLIB = f"""{HEAD}
import asyncio
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod

loop = asyncio.new_event_loop()

async def make_channel():
    return Channel(path=address)

channel = loop.run_until_complete(make_channel())

def code_of(error):
    return error.status.name

def call(name, request, reply, metadata=(), timeout=20, stream=False):
    make = UnaryStreamMethod if stream else UnaryUnaryMethod
    method = make(channel, SERVICE + name, type(request), reply)
    answer = loop.run_until_complete(method(request, metadata=list(metadata), timeout=timeout))
    return answer if stream else [answer]
{CALLS}
channel.close()
"""


@pytest.mark.parametrize("program", [GRPCIO, GRPCIO_ASYNC, GRPCLIB], ids=["grpcio", "grpcio-aio", "grpclib"])
def test_other_clients(program: str) -> None:
    """
    Calls, errors, lists, large metadata and large requests are answered.
    """
    with served(snapshots=1_000) as server:
        ran = subprocess.run(
            [sys.executable, "-c", program, server.address], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


STOPPED = f"""{HEAD}
import asyncio
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError

async def main():
    channel = Channel(path=address)
    stat = UnaryUnaryMethod(channel, SERVICE + "Stat", pb.StatSnapshotRequest, pb.StatSnapshotResponse)
    assert (await stat(pb.StatSnapshotRequest(key="base"), timeout=60)).info.name == "base"
    print("connected", flush=True)
    sys.stdin.readline()
    for _ in range(3):
        try:
            await stat(pb.StatSnapshotRequest(key="base"), timeout=60)
        except GRPCError as error:
            print(error.status.name, error.message)
    channel.close()

asyncio.run(main())
"""


def test_a_stop_answers_first(hanging: Snapshotter) -> None:
    """
    While a stop waits for a call in flight, a client on the h2 library gets answers, because a GOAWAY, after which it
    takes every frame for an error, comes last.
    """
    command = [sys.executable, "-c", STOPPED]
    pipe = subprocess.PIPE
    with (
        serving(hanging) as server,
        Wire(server.address) as wire,
        subprocess.Popen(
            [*command, server.address], cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe
        ) as client,
    ):
        assert client.stdout
        assert client.stdout.readline() == "connected\n"
        number = wire.begin("Prepare")
        wire.body(number, framed(pb.PrepareSnapshotRequest(snapshotter="c", key="new", parent="base")))
        Hanging.hanging.acquire()
        stopped = asyncio.run_coroutine_threadsafe(server.service.stop(60), server.loop)
        server.on_loop(int)
        out, errors = client.communicate("go\n", timeout=60)
        assert (client.returncode, out) == (0, "UNAVAILABLE the snapshotter is stopping\n" * 3), errors
        assert not stopped.done()
        Hanging.go.set()
        stopped.result(60)
    assert hanging.stat("new").kind is Kind.ACTIVE
