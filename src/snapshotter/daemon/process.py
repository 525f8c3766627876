"""
The life of the daemon: a socket that answers before the store is open, and an end that cuts no call off.

It never mounts, and runs no other program.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pybtrfs import mountinfo
from snapshotter.contract import Options, Snapshotter
from snapshotter.daemon import sockets
from snapshotter.daemon.config import Config
from snapshotter.daemon.service import Service
from snapshotter.daemon.systemd import Systemd
from snapshotter.errors import (
    AlreadyExistsError,
    Error,
    FailedPreconditionError,
    NotFoundError,
)
from snapshotter.events import Event
from snapshotter.text import printable

if TYPE_CHECKING:
    from snapshotter.daemon.metrics import Metrics

CALLS_SECONDS = 10.0  # for calls under way to end, after a signal
CLOSE_SECONDS = 5.0  # for what goes on nevertheless, and the store
FEEDS = 3  # in the time after which systemd takes a service for hung
NOBODY = "watchdog"  # the key that is asked for: containerd's have slashes


def serve(config: Config, systemd: Systemd) -> None:
    """
    Serve the store until SIGTERM or SIGINT; a second one, or calls that do not end, end the process.

    Raises:
        StoreHeldError: Another process has the store, or the socket.
        FailedPreconditionError: The root is not on btrfs, holds something else, or is a copy of a store; something
            else is in the socket's way; the bind mode and the root's mount do not fit.
        NotFoundError: The directory that the root, or that of the socket, would be in does not exist.
    """
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        metrics = None
        if config.metrics_address:
            from snapshotter.daemon.metrics import Metrics, serving  # its library takes memory and time of every start

            metrics = Metrics()
            stack.enter_context(serving(metrics, config.metrics_address))
        listener = stack.enter_context(listening(config.address, systemd))
        asyncio.run(_serve(config, systemd, listener, metrics))


async def _serve(config: Config, systemd: Systemd, listener: socket.socket, metrics: "Metrics | None") -> None:
    loop = asyncio.get_running_loop()
    address = listener.getsockname()
    stopped = loop.create_future()

    def stop() -> None:
        if stopped.done():
            os._exit(128 + signal.SIGINT)
        stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    pool = ThreadPoolExecutor(2, "snapshotter-life")  # for what is opened or closed, and for the watchdog's call
    begun = time.monotonic()
    opened = loop.run_in_executor(pool, _open, config, address)
    service = Service(opened, metrics)
    await service.start(listener)
    systemd.notify(f"STATUS=opening {printable(config.root)}")
    await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
    failed = opened.done() and opened.exception() is not None
    if opened.done() and not failed:
        if metrics:
            metrics.opened(opened.result(), time.monotonic() - begun)
        Event.READY.emit(root=config.root, address=address)
        systemd.notify("READY=1", f"STATUS=serving {printable(config.root)}")
        feeding = asyncio.create_task(_feed(systemd, address, pool))
        await stopped
        feeding.cancel()
    if not failed:
        Event.STOPPING.emit(root=config.root, address=address)
        systemd.notify("STOPPING=1", "STATUS=finishing the calls under way")
    await service.stop(CALLS_SECONDS)
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            store = await asyncio.shield(opened)
            await loop.run_in_executor(pool, store.close)
    except TimeoutError:
        Event.CUT_OFF.emit(root=config.root, seconds=CALLS_SECONDS + CLOSE_SECONDS)
        os._exit(1)  # Python would wait for a thread that the kernel holds


async def _feed(systemd: Systemd, address: str, pool: ThreadPoolExecutor) -> None:
    """
    Tell the watchdog that calls are answered, as often as they are.
    """
    seconds = systemd.watchdog_seconds / FEEDS
    if not seconds:
        return
    from snapshotter.client import Client  # takes time of the start, and only this needs it

    def call() -> None:
        with Client(address, timeout=seconds) as client, contextlib.suppress(NotFoundError):
            client.stat(NOBODY)

    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.get_running_loop().run_in_executor(pool, call)
            systemd.notify("WATCHDOG=1")
        except (Error, OSError) as error:
            Event.UNANSWERED.emit(address=address, error=str(error))


def _open(config: Config, address: str) -> Snapshotter:
    if config.mount_mode == "bind":
        _check_mount(config.root)
    options: Options = {
        "client": None,
        "usage": config.usage,
        "mount_mode": config.mount_mode,
        "verify": config.verify,
        "socket": address,
    }
    try:
        store = Snapshotter.create(config.root, **options)
    except AlreadyExistsError:
        store = Snapshotter(config.root, **options)
    if why := store.why_read_only:
        store.close()
        raise FailedPreconditionError(f"store {config.root!r} cannot be served: {why}")
    return store


def _check_mount(root: str) -> None:
    path = root if os.path.exists(root) else os.path.dirname(root)
    with contextlib.suppress(FileNotFoundError):
        if names := ",".join(mountinfo.inherited(path)):
            raise FailedPreconditionError(
                f"{root!r} is mounted {names}, which containers would inherit: mount it without, or set mount_mode to "
                '"btrfs"'
            )


# -- the socket


@contextlib.contextmanager
def listening(address: str, systemd: Systemd) -> Iterator[socket.socket]:
    """
    The socket that systemd hands over, or one at *address* for root alone, gone after the ``with``.
    """
    handed = systemd.sockets()
    with contextlib.ExitStack() as undo:
        for one in handed:
            undo.enter_context(one)
        if handed:
            _check_handed(handed)
            yield handed[0]
            return
        yield undo.enter_context(sockets.listening(address))


def _check_handed(handed: list[socket.socket]) -> None:
    if len(handed) > 1:
        raise FailedPreconditionError(f"systemd handed over {len(handed)} sockets: the socket unit has to have one")
    [one] = handed
    name = one.getsockname()
    kind = (one.family, one.type, one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM, 1) or not (isinstance(name, str) and name.startswith("/")):
        raise FailedPreconditionError(
            f"systemd handed over {name!r}: it has to be a listening stream socket with a path"
        )
