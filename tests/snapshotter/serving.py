"""
A service on an event loop in a thread, for tests that call it from outside.
"""

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from snapshotter import Snapshotter
from snapshotter.daemon.service import LIMITS, Limits, Observer, Service


class Serving:
    """
    A running service.

    Attributes:
        address: The path of its socket.
    """

    def __init__(self, address: str, observer: Observer | None = None, *, limits: Limits = LIMITS) -> None:
        self.address = address
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="serving")
        self._thread.start()
        self.service = self.run(self._start(observer, limits))

    async def _start(self, observer: Observer | None, limits: Limits) -> Service:
        self._opened: asyncio.Future[Snapshotter] = self.loop.create_future()
        service = Service(self._opened, observer, limits=limits)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(self.address)
        await service.start(sock)
        return service

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """
        Return the result of *coroutine* on the loop.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def on_loop(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """
        Return the result of a function called on the loop.
        """

        async def call() -> Any:
            return function(*arguments)

        return self.run(call())

    def open(self, store: Snapshotter) -> None:
        """
        Give the service its store.
        """
        self.on_loop(self._opened.set_result, store)

    def fail(self, error: Exception) -> None:
        """
        Give the service the error of opening its store.
        """
        self.on_loop(self._opened.set_exception, error)

    def close(self) -> None:
        self.run(self.service.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@contextlib.contextmanager
def serving(
    store: Snapshotter | None = None, observer: Observer | None = None, *, limits: Limits = LIMITS
) -> Iterator[Serving]:
    """
    Serve *store* or, without one, wait for `Serving.open`.
    """
    with tempfile.TemporaryDirectory() as directory:
        server = Serving(os.path.join(directory, "socket"), observer, limits=limits)
        try:
            if store:
                server.open(store)
            yield server
        finally:
            server.close()
