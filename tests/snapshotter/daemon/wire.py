"""
A gRPC client that can break the protocol.
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from google.protobuf.message import Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.daemon.service import LIMITS, Limits
from tests.snapshotter.serving import serving

SNAPSHOTS = "/containerd.services.snapshots.v1.Snapshots/"
CHECK = "/grpc.health.v1.Health/Check"
METHODS = {
    "Prepare": pb.PrepareSnapshotRequest,
    "View": pb.ViewSnapshotRequest,
    "Mounts": pb.MountsRequest,
    "Commit": pb.CommitSnapshotRequest,
    "Remove": pb.RemoveSnapshotRequest,
    "Stat": pb.StatSnapshotRequest,
    "Update": pb.UpdateSnapshotRequest,
    "List": pb.ListSnapshotsRequest,
    "Usage": pb.UsageRequest,
    "Cleanup": pb.CleanupRequest,
}


class Reply(NamedTuple):
    """
    The answer of a call.
    """

    status: int | None
    text: str
    messages: list[bytes]
    headers: dict[str, str]


def framed(message: Message | bytes) -> bytes:
    """
    Return a message with gRPC's prefix.
    """
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


class Wire:
    """
    A connection to the socket at *address*, with a time limit of ten seconds.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        try:
            self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self._calls: dict[int, tuple[dict[str, str], bytearray]] = {}
        self.ended: set[int] = set()
        self.reading = True
        self._greeted = False
        self.send()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self) -> None:
        self._socket.sendall(self.h2.data_to_send())

    def begin(self, path: str, headers: dict[str, str] | None = None) -> int:
        """
        Start a call, and return the number of its stream.
        """
        number = self.h2.get_next_available_stream_id()
        all_headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path if path.startswith("/") else SNAPSHOTS + path,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
            **(headers or {}),
        }
        self.h2.send_headers(number, list(all_headers.items()))
        self._calls[number] = ({}, bytearray())
        self.send()
        return number

    def body(self, number: int, data: bytes, *, end: bool = True) -> None:
        """
        Send *data* of a call, unless the server ends the call before.
        """
        while data:
            if number in self.ended:
                return
            size = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(data))
            if size:
                self.h2.send_data(number, data[:size])
                self.send()
                data = data[size:]
            else:
                self.receive()
        if end:
            self.h2.end_stream(number)
            self.send()

    def receive(self) -> None:
        """
        Handle the bytes that the server sent.
        """
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        for event in self.h2.receive_data(data):
            if isinstance(event, ResponseReceived | TrailersReceived):
                self._calls[event.stream_id][0].update(event.headers)
            elif isinstance(event, DataReceived):
                self._calls[event.stream_id][1].extend(event.data)
                if self.reading:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded | StreamReset):
                self.ended.add(event.stream_id)
            elif isinstance(event, RemoteSettingsChanged):
                self._greeted = True
            elif isinstance(event, ConnectionTerminated):
                raise ConnectionError("the server ended the connection")
        self.send()

    def until_greeted(self) -> None:
        """
        Wait for the server's settings.
        """
        while not self._greeted:
            self.receive()

    def until_closed(self) -> None:
        """
        Handle all bytes until the server closes the connection, which raises ConnectionError.
        """
        while True:
            self.receive()

    def end(self, number: int) -> Reply:
        """
        Wait for the end of a call, and return its answer.
        """
        while number not in self.ended:
            self.receive()
        headers, data = self._calls.pop(number)
        messages = []
        while data:
            size = int.from_bytes(data[1:5], "big")
            messages.append(bytes(data[5 : 5 + size]))
            del data[: 5 + size]
        status = headers.get("grpc-status")
        return Reply(status and int(status), unquote(headers.get("grpc-message", "")), messages, headers)

    def call(self, path: str, message: Message | bytes) -> Reply:
        """
        Make one call, and return its answer.
        """
        number = self.begin(path)
        self.body(number, framed(message))
        return self.end(number)


@contextlib.contextmanager
def wired(store: Any, observer: Any = None, *, limits: Limits = LIMITS) -> Iterator[Wire]:
    """
    Serve *store*, and connect to it.
    """
    with serving(store, observer, limits=limits) as server, Wire(server.address) as wire:
        yield wire
