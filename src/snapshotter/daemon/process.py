"""
The daemon's process: its socket, its store, its signals and its end.

The daemon accepts connections before the store is open, and at its end waits for the calls in flight. It never mounts,
and runs no other program. If the filesystem of the store dies, the daemon reopens the store when it is back.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pybtrfs import mountinfo, syscall
from snapshotter.contract import Options, Snapshotter
from snapshotter.daemon import sockets
from snapshotter.daemon.config import Config
from snapshotter.daemon.service import Service
from snapshotter.daemon.systemd import Systemd
from snapshotter.errors import AlreadyExistsError, Error, FailedPreconditionError, NotFoundError, UnavailableError
from snapshotter.events import Event
from snapshotter.text import printable
from snapshotter.transport import library

if TYPE_CHECKING:
    from snapshotter.daemon.metrics import Metrics

CALLS_SECONDS = 10.0  # for the calls in flight, after a signal
CLOSE_SECONDS = 5.0  # then for hanging calls, and for closing the store
REOPEN_SECONDS = 60.0  # after the filesystem died, to reopen the store
LOOK_SECONDS = 1.0  # between two looks at the state of the store, and between two attempts to reopen it
FEEDS = 3  # of the watchdog, in the time after which systemd assumes that the service hangs
WATCHDOG_KEY = "watchdog"  # no snapshot has this key, because containerd's keys have slashes


def serve(config: Config, systemd: Systemd, *, create: bool = True) -> None:
    """
    Serve the store until SIGTERM or SIGINT, then end when the calls in flight have ended.

    A second signal ends the process at once. Hanging calls end it after a time limit, with code 1.

    Args:
        create: Make a store at a missing or empty root. Without it, the directory below a missing mount stays empty.

    Raises:
        UnavailableError: libnghttp2 is missing. The filesystem died, and the store could not be reopened within a
            minute.
        StoreHeldError: Another process holds the store, or listens at the socket.
        FailedPreconditionError: The root is not on btrfs, holds other files, or is a copy of a
            store. The address exists and is not a socket. With mount_mode "bind" the root's mount has options that
            containers inherit.
        NotFoundError: The parent directory of the root, or of the socket's directory, does not exist.
    """
    library.load()
    _raise_limit()
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        metrics = None
        if config.metrics_address:
            from snapshotter.daemon.metrics import Metrics, serving  # here, because its library costs time and memory

            metrics = Metrics()
            stack.enter_context(serving(metrics, config.metrics_address))
        listener = stack.enter_context(listening(config.address, systemd))
        asyncio.run(_serve(config, systemd, listener, metrics, create=create))


def _raise_limit() -> None:
    """
    Raise the soft limit of descriptors to the hard limit, because each connection needs one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    config: Config, systemd: Systemd, listener: socket.socket, metrics: "Metrics | None", *, create: bool
) -> None:
    loop = asyncio.get_running_loop()
    address = listener.getsockname()
    stopped = loop.create_future()

    def stop() -> None:
        if stopped.done():
            os._exit(128 + signal.SIGINT)
        stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    pool = ThreadPoolExecutor(2, "snapshotter-life")  # to open and close the store, and for the watchdog's call
    begun = time.monotonic()
    opened = loop.run_in_executor(pool, lambda: _open(config, address, create=create))
    service = Service(opened, metrics)
    await service.start(listener)
    systemd.notify(f"STATUS=opening {printable(config.root)}")
    await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
    failed = opened.done() and opened.exception() is not None
    lost: BaseException | None = None
    if opened.done() and not failed:
        if metrics:
            metrics.opened(opened.result(), time.monotonic() - begun)
        # Only now, because the collector would go through the growing index again and again.
        gc.freeze()
        gc.enable()
        Event.READY.emit(root=config.root, address=address)
        systemd.notify("READY=1", f"STATUS=serving {printable(config.root)}")
        feeding = asyncio.create_task(_feed(systemd, address, pool, service))
        reopening = asyncio.create_task(_reopen_when_dead(config, systemd, address, service, pool, metrics))
        await asyncio.wait({stopped, reopening}, return_when=asyncio.FIRST_COMPLETED)
        lost = reopening.exception() if reopening.done() else None
        feeding.cancel()
        reopening.cancel()
    if not failed:
        Event.STOPPING.emit(root=config.root, address=address)
        systemd.notify("STOPPING=1", "STATUS=finishing the calls in flight")
    await service.stop(CALLS_SECONDS)
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            store = await asyncio.shield(service.opened)
            await loop.run_in_executor(pool, store.close)
            if lost:
                raise lost
    except TimeoutError:
        Event.CUT_OFF.emit(root=config.root, seconds=CALLS_SECONDS + CLOSE_SECONDS)
        os._exit(1)  # a normal exit would wait for the thread that hangs in the kernel


async def _reopen_when_dead(
    config: Config,
    systemd: Systemd,
    address: str,
    service: Service,
    pool: ThreadPoolExecutor,
    metrics: "Metrics | None",
) -> None:
    """
    Reopen the store whenever its filesystem has died; never make a store.

    Raises:
        UnavailableError: The filesystem is not back within a minute.
    """
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        former = service.opened.result()
        if former.failure:
            systemd.notify(f"STATUS=waiting for the filesystem of {printable(config.root)}")
            begun = loop.time()
            service.replace(await _reopened(config, address, former, pool))
            if metrics:
                metrics.opened(service.opened.result(), loop.time() - begun)
            Event.READY.emit(root=config.root, address=address)
            systemd.notify(f"STATUS=serving {printable(config.root)}")


async def _reopened(config: Config, address: str, former: Snapshotter, pool: ThreadPoolExecutor) -> Snapshotter:
    """
    Return the store *former*, opened again.

    Raises:
        UnavailableError: The filesystem is not back within a minute.
    """

    def attempt() -> Snapshotter:
        # No file of a dead filesystem is opened, because that would keep an administrator from unmounting it.
        if os.statvfs(config.root).f_flag & syscall.ST_RDONLY:
            raise UnavailableError(f"the filesystem of {config.root!r} is read-only")
        return _open(config, address, create=False, uuid=former.opened.uuid)

    loop = asyncio.get_running_loop()
    end = loop.time() + REOPEN_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(end):
                return await loop.run_in_executor(pool, attempt)
        except TimeoutError:
            # The thread hangs in the kernel, and a normal exit would wait for it.
            Event.CUT_OFF.emit(root=config.root, seconds=REOPEN_SECONDS)
            os._exit(1)
        except (Error, OSError) as error:
            if loop.time() + LOOK_SECONDS > end:
                raise UnavailableError(
                    f"{former.failure}; the store was not back within {REOPEN_SECONDS:g} s: {error}"
                ) from error
        await asyncio.sleep(LOOK_SECONDS)


async def _feed(systemd: Systemd, address: str, pool: ThreadPoolExecutor, service: Service) -> None:
    """
    Feed the watchdog as long as the store works, and the daemon answers calls through its own socket.
    """
    seconds = systemd.watchdog_seconds / FEEDS
    if not seconds:
        return
    from snapshotter.client import Client  # here, because only the watchdog needs it

    def call() -> None:
        with Client(address, timeout=seconds) as client, contextlib.suppress(NotFoundError):
            client.stat(WATCHDOG_KEY)

    while True:
        await asyncio.sleep(seconds)
        if not service.serving:
            continue
        try:
            await asyncio.get_running_loop().run_in_executor(pool, call)
            systemd.notify("WATCHDOG=1")
        except (Error, OSError) as error:
            Event.UNANSWERED.emit(address=address, error=str(error))


def _open(config: Config, address: str, *, create: bool, uuid: str = "") -> Snapshotter:
    """
    Open the store, or make it if *create* is true.

    Args:
        uuid: Refuse every other store; empty for any.
    """
    if config.mount_mode == "bind":
        _check_mount(config.root)
    options: Options = {
        "client": None,
        "usage": config.usage,
        "mount_mode": config.mount_mode,
        "verify": config.verify,
        "socket": address,
    }
    store = None
    if create:
        with contextlib.suppress(AlreadyExistsError):
            store = Snapshotter.create(config.root, **options)
    store = store or Snapshotter(config.root, **options)
    reason = store.why_read_only
    if uuid and store.opened.uuid != uuid:
        reason = "it is another store than before"
    if reason:
        store.close()
        raise FailedPreconditionError(f"store {config.root!r} cannot be served: {reason}")
    return store


def _check_mount(root: str) -> None:
    path = root if os.path.exists(root) else os.path.dirname(root)
    with contextlib.suppress(FileNotFoundError):
        if names := ",".join(mountinfo.inherited(path)):
            raise FailedPreconditionError(
                f"{root!r} is mounted {names}, which containers would inherit: mount it without {names}, or set "
                'mount_mode to "btrfs"'
            )


# -- the socket


@contextlib.contextmanager
def listening(address: str, systemd: Systemd) -> Iterator[socket.socket]:
    """
    Listen on the socket that systemd hands over or, without one, at *address* during the ``with``.
    """
    handed = systemd.sockets()
    with contextlib.ExitStack() as undo:
        for listener in handed:
            undo.enter_context(listener)
        if handed:
            _check_handed(handed)
            yield handed[0]
            return
        yield undo.enter_context(sockets.listening(address))


def _check_handed(handed: list[socket.socket]) -> None:
    if len(handed) > 1:
        raise FailedPreconditionError(f"systemd handed over {len(handed)} sockets: the socket unit must list only one")
    [listener] = handed
    name = listener.getsockname()
    kind = (listener.family, listener.type, listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM, 1) or not (isinstance(name, str) and name.startswith("/")):
        raise FailedPreconditionError(f"systemd handed over {name!r}: it must be a listening stream socket with a path")
