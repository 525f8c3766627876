"""
Ctrl-C at a moment of our choice, so that nothing is left half made.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Deferred:
    """
    What asked the process to end while `deferred` held it back.
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
        Raise KeyboardInterrupt if something did.
        """
        if self._received:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """
        Around what may last, and can be left at any moment: raise KeyboardInterrupt as soon as something does.
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
    Hold back what asks the process to end, for the time of a ``with``.

    Outside the main thread, where Python never delivers signals, this does nothing.
    """
    held = Deferred()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, held.receive)
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
