"""
The life of the daemon: a socket that answers before the store is open, and an end that cuts no call off.

It never mounts, and runs no other program.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from snapshotter import mountinfo
from snapshotter.client import Client
from snapshotter.config import Config
from snapshotter.contract import Options, Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    Error,
    FailedPreconditionError,
    NotFoundError,
    StoreHeldError,
)
from snapshotter.events import Event
from snapshotter.service import Service
from snapshotter.systemd import Systemd

STOP_SECONDS = 10.0
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
    with listening(config.address, systemd) as listener:
        asyncio.run(_serve(config, systemd, listener))


async def _serve(config: Config, systemd: Systemd, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    address = listener.getsockname()
    stopped = loop.create_future()

    def stop() -> None:
        if stopped.done():
            os._exit(128 + signal.SIGINT)
        stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    pool = ThreadPoolExecutor(1, "snapshotter-life")
    opened = loop.run_in_executor(pool, _open, config, address)
    service = Service(opened)
    await service.start(listener)
    systemd.notify(f"STATUS=opening {config.root}")
    await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if opened.done() and not opened.exception():
        Event.READY.emit(root=config.root, address=address)
        systemd.notify("READY=1", f"STATUS=serving {config.root}")
        feeding = asyncio.create_task(_feed(systemd, address, pool))
        await stopped
        feeding.cancel()
    Event.STOPPING.emit(root=config.root, address=address)
    systemd.notify("STOPPING=1", "STATUS=finishing the calls under way")
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await service.stop()
            store = await asyncio.shield(opened)
            await loop.run_in_executor(pool, store.close)
    except TimeoutError:
        Event.CUT_OFF.emit(root=config.root, seconds=STOP_SECONDS)
        os._exit(1)  # a thread in the kernel would be waited for


async def _feed(systemd: Systemd, address: str, pool: ThreadPoolExecutor) -> None:
    """
    Tell the watchdog that calls are answered, as often as they are.
    """
    seconds = systemd.watchdog_seconds / FEEDS

    def call() -> None:
        with Client(address, timeout=seconds) as client, contextlib.suppress(NotFoundError):
            client.stat(NOBODY)

    while seconds:
        await asyncio.sleep(seconds)
        try:
            await asyncio.get_running_loop().run_in_executor(pool, call)
            systemd.notify("WATCHDOG=1")
        except Error as error:
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
    with contextlib.ExitStack() as undo:
        undo.callback(store.close)
        if store.why_read_only:
            raise FailedPreconditionError(f"store {config.root!r} cannot be served: {store.why_read_only}")
        mode = stat.S_IMODE(os.stat(config.root).st_mode)
        if mode != 0o700:
            os.chmod(config.root, 0o700)
            Event.TIGHTENED.emit(root=config.root, error=f"its mode was {mode:04o}")
        undo.pop_all()
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
        directory = os.path.dirname(address)
        try:
            os.mkdir(directory, 0o700)
            undo.callback(_remove_directory, directory)
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise NotFoundError(f"{os.path.dirname(directory)!r} does not exist: make it first") from error
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            _bind(listener, address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(address)
            _bind(listener, address)
        undo.callback(_remove_own, address, os.lstat(address))
        listener.listen()
        yield listener


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


def _bind(listener: socket.socket, address: str) -> None:
    before = os.umask(0o177)
    try:
        listener.bind(address)
    finally:
        os.umask(before)
    # Where the directory has a default ACL the kernel asks that, not the umask. Nobody can connect before listen().
    os.chmod(address, 0o600)


def _remove_stale(address: str) -> None:
    """
    Remove the socket of a process that is gone.
    """
    if not stat.S_ISSOCK(os.lstat(address).st_mode):
        raise FailedPreconditionError(f"{address!r} is in the way, and is no socket: choose another address")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            os.unlink(address)
            return
        except BlockingIOError:
            who = "a process that is busy"  # so many connections wait there
        else:
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            who = f"process {pid}"
    raise StoreHeldError(f"{who} serves at {address!r}: stop it, or choose another address")


def _remove_own(address: str, made: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(address), made):
            os.unlink(address)


def _remove_directory(path: str) -> None:
    with contextlib.suppress(OSError):  # something else is in there now
        os.rmdir(path)
