"""
Ctrl-C at a moment of our choice, so that nothing is left half made.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """
    Hold back what asks the process to end, for the time of a ``with``: the function that it gives raises
    KeyboardInterrupt if something did.

    Outside the main thread, where Python never delivers signals, this does nothing.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, remember)
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
