"""
The longest pause of another thread.
"""

import threading
import time
from typing import Self

_INTERVAL = 0.0002  # seconds


class Pause:
    """
    A thread that wakes up every 0.2 ms inside a ``with``.

    Attributes:
        longest: The longest time between two wake-ups, in nanoseconds.
    """

    def __init__(self) -> None:
        self.longest = 0
        self._begun = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._tick)

    def _tick(self) -> None:
        last = time.perf_counter_ns()
        while not self._ended:
            time.sleep(_INTERVAL)
            now = time.perf_counter_ns()
            self.longest = max(self.longest, now - last)
            last = now
            self._begun.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.wait()
        self.longest = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
