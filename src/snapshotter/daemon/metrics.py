"""
What Prometheus reads of a daemon: calls, snapshots, and the filesystem below.
"""

import contextlib
import functools
import platform
import socket
import socketserver
import threading
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector

from pybtrfs import device, ioctl, space
from pybtrfs._version import __version__
from snapshotter.contract import Snapshotter
from snapshotter.daemon import sockets
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError

__all__ = ["Metrics", "serving"]

# A stat takes a fraction of the first, a commit of much data any of the last.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CLIENT_SECONDS = 5.0  # for one that neither asks nor reads
STOP_SECONDS = 1.0


class Metrics:
    """
    The metrics of one daemon, in a `registry` of their own; an observer of `snapshotter.daemon.service.Service`.

    Docs: "Metrics" in docs/containerd.md has the meaning of each.
    """

    def __init__(self) -> None:
        # Else each counter has a second series, of when it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client left it out
        self.registry = CollectorRegistry()
        operations = Counter(
            "snapshotter_operations", "Calls answered, by gRPC code.", ["op", "code"], registry=self.registry
        )
        seconds = Histogram(
            "snapshotter_operation_duration_seconds",
            "Time from a call to its answer.",
            ["op"],
            registry=self.registry,
            buckets=BUCKETS,
        )
        inflight = Gauge("snapshotter_inflight_operations", "Calls not answered yet.", ["op"], registry=self.registry)
        # Looking labels up costs several times what counting does.
        self._operations = functools.cache(operations.labels)
        self._seconds = functools.cache(seconds.labels)
        self._inflight = functools.cache(inflight.labels)
        self._open_seconds = Gauge(
            "snapshotter_store_open_seconds",
            "Time that opening the store took, with recovery.",
            registry=self.registry,
        )
        Gauge(
            "snapshotter_build_info", "1; the labels say what runs.", ["version", "python"], registry=self.registry
        ).labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def started(self, operation: str) -> None:
        self._inflight(operation).inc()

    def ended(self, operation: str, code: str, seconds: float) -> None:
        self._inflight(operation).dec()
        self._operations(operation, code).inc()
        self._seconds(operation).observe(seconds)

    def opened(self, store: Snapshotter, seconds: float) -> None:
        """
        Measure *store*, which took *seconds* to open, too.
        """
        self._open_seconds.set(seconds)
        self.registry.register(_StoreCollector(store))


class _StoreCollector(Collector):
    """
    What is counted when it is asked for.
    """

    def __init__(self, store: Snapshotter) -> None:
        self._store = store

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # or registering would collect

    def collect(self) -> Iterator[GaugeMetricFamily]:
        # What is closed, or fails, has nothing to tell, and takes nothing from the rest.
        with contextlib.suppress(FailedPreconditionError):
            yield from self._snapshots()
        with contextlib.suppress(OSError):
            yield from self._filesystem()

    def _snapshots(self) -> Iterator[GaugeMetricFamily]:
        status = self._store.status()
        snapshots = GaugeMetricFamily("snapshotter_snapshots", "Snapshots in the store.", labels=["kind"])
        for kind, count in status.snapshots.items():
            snapshots.add_metric([kind.lower()], count)
        yield snapshots
        yield GaugeMetricFamily("snapshotter_pending_deletions", "Removed snapshots not destroyed yet.", status.pending)
        yield GaugeMetricFamily(
            "snapshotter_inconsistencies", "Problems found when the store was opened.", status.problems
        )

    def _filesystem(self) -> Iterator[GaugeMetricFamily]:
        used, total = Tally[str](), Tally[str]()
        for group in space.get(self._store.root):
            if not group.flags & ioctl.SPACE_INFO_GLOBAL_RSV:  # which is part of metadata
                used[group.type] += group.used_bytes
                total[group.type] += group.total_bytes
        groups = GaugeMetricFamily(
            "snapshotter_filesystem_bytes", "Space allocated to block groups.", labels=["group", "state"]
        )
        for kind in total:
            groups.add_metric([kind, "used"], used[kind])
            groups.add_metric([kind, "free"], total[kind] - used[kind])
        unallocated = sum(device.total_bytes - device.bytes_used for device in device.iterate(self._store.root))
        yield groups
        yield GaugeMetricFamily(
            "snapshotter_filesystem_unallocated_bytes", "Space of the devices in no block group.", unallocated
        )


class _Handler(MetricsHandler):
    timeout = CLIENT_SECONDS


class _Server(socketserver.TCPServer):
    timeout = 0.1  # between looks whether to stop

    def __init__(self, listener: socket.socket, metrics: Metrics) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), _Handler.factory(metrics.registry))
        self.socket = listener

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # of a client that went away


@contextlib.contextmanager
def serving(metrics: Metrics, address: str) -> Iterator[str]:
    """
    Answer at *address*, the path of a unix socket or ``HOST:PORT``, for the time of a ``with``, which gets the address
    with the port that was found for port 0.

    One client at a time, in a thread of its own: what hangs there, as a look at a dead filesystem may, holds up no
    call.

    Raises:
        InvalidArgumentError: *address* is neither.
        FailedPreconditionError: The address cannot be had.
        StoreHeldError: Another process listens at that path.
    """
    with _listening(address) as listener:
        server = _Server(listener, metrics)
        stopped = threading.Event()

        def run() -> None:
            while not stopped.is_set():
                server.handle_request()

        thread = threading.Thread(target=run, name="snapshotter-metrics", daemon=True)
        thread.start()
        name = listener.getsockname()
        try:
            yield name if isinstance(name, str) else f"{address.rpartition(':')[0]}:{name[1]}"
        finally:
            stopped.set()
            thread.join(STOP_SECONDS)  # one that hangs is left to the end of the process


@contextlib.contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    if address.startswith("/"):
        with sockets.listening(address) as listener:
            yield listener
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgumentError(f"{address!r} is neither an absolute path nor HOST:PORT")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        raise FailedPreconditionError(f"cannot listen at {address!r}: {error}") from error
    with listener:
        yield listener
