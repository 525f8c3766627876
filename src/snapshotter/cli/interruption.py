"""
Deferred signals, so that Ctrl-C interrupts a command only where it can undo its work.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Deferred:
    """
    The state of signals that `deferred` holds back.
    """

    def __init__(self) -> None:
        self._received = False
        self._at_once = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        if self._at_once:
            raise KeyboardInterrupt

    def check(self) -> None:
        """
        Raise KeyboardInterrupt if a signal has arrived.
        """
        if self._received:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """
        Raise KeyboardInterrupt as soon as a signal arrives, for a block that may last long and is safe to leave.
        """
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def deferred() -> Iterator[Deferred]:
    """
    Hold back SIGINT, SIGTERM and SIGHUP during a ``with``, and yield the object to poll for them.

    Does nothing outside the main thread, because Python delivers signals to the main thread only.
    """
    held = Deferred()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # ignored by nohup
                signal.signal(number, held.receive)
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
