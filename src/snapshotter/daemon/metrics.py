"""
The daemon's metrics for Prometheus: calls, snapshots and the filesystem.
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

# In seconds: a stat takes a fraction of the first, a commit of much data may take any of the last.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CLIENT_SECONDS = 5.0  # for a client that sends or reads nothing
STOP_SECONDS = 1.0  # for the request in flight, at the end


class Metrics:
    """
    The metrics of one daemon, in a `registry` of their own. An observer of `snapshotter.daemon.service.Service`.

    "Metrics" in docs/containerd.md explains each metric.
    """

    def __init__(self) -> None:
        # Otherwise each counter has a second series, with the time of its creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client lacks the annotation
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
        # Hot path: a lookup of labels costs several times as much as counting.
        self._operations = functools.cache(operations.labels)
        self._seconds = functools.cache(seconds.labels)
        self._inflight = functools.cache(inflight.labels)
        self._open_seconds = Gauge(
            "snapshotter_store_open_seconds",
            "Time that opening the store took, with recovery.",
            registry=self.registry,
        )
        Gauge(
            "snapshotter_build_info", "1, with the versions as labels.", ["version", "python"], registry=self.registry
        ).labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)
        self._collector: _StoreCollector | None = None

    def started(self, operation: str) -> None:
        self._inflight(operation).inc()

    def ended(self, operation: str, code: str, seconds: float) -> None:
        self._inflight(operation).dec()
        self._operations(operation, code).inc()
        self._seconds(operation).observe(seconds)

    def opened(self, store: Snapshotter, seconds: float) -> None:
        """
        Add the metrics of *store*, which took *seconds* to open, in place of those of the store before.
        """
        self._open_seconds.set(seconds)
        if self._collector:
            self.registry.unregister(self._collector)
        self._collector = _StoreCollector(store)
        self.registry.register(self._collector)


class _StoreCollector(Collector):
    """
    The metrics that are read from the store and the filesystem at each scrape.
    """

    def __init__(self, store: Snapshotter) -> None:
        self._store = store

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # without this, registering would collect

    def collect(self) -> Iterator[GaugeMetricFamily]:
        # A closed store or a failing filesystem leaves out its own metrics only.
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
            if not group.flags & ioctl.SPACE_INFO_GLOBAL_RSV:  # a part of metadata
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


class _Server(socketserver.TCPServer):
    timeout = 0.1  # seconds between two checks whether to stop

    def __init__(self, listener: socket.socket, metrics: Metrics, client_seconds: float) -> None:
        handler = type("Handler", (MetricsHandler,), {"registry": metrics.registry, "timeout": client_seconds})
        socketserver.BaseServer.__init__(self, listener.getsockname(), handler)
        self.socket = listener

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client has gone


@contextlib.contextmanager
def serving(
    metrics: Metrics, address: str, *, client_seconds: float = CLIENT_SECONDS, stop_seconds: float = STOP_SECONDS
) -> Iterator[str]:
    """
    Serve *metrics* at *address* during the ``with``, and yield the address, with the port in place of port 0.

    A single thread serves one client at a time. Reading a dead filesystem can hang this thread, but no call.

    Args:
        address: The path of a unix socket, or ``HOST:PORT``.
        client_seconds: The time limit for a client that sends or reads nothing.
        stop_seconds: The time limit for the request in flight at the end of the ``with``.

    Raises:
        InvalidArgumentError: *address* is neither a path nor ``HOST:PORT``.
        FailedPreconditionError: Listening at *address* failed.
        StoreHeldError: Another process listens at that path.
    """
    with _listening(address) as listener:
        server = _Server(listener, metrics, client_seconds)
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
            thread.join(stop_seconds)  # a hanging thread ends with the process, because it is a daemon thread


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
