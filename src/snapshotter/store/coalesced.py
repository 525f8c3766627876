"""
One run of an expensive call for all who wait for it.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Run(Generic[T]):
    result: T
    error: BaseException | None = None
    done = False


class Coalesced(Generic[T]):
    """
    Wraps *call* so that callers who come while it runs share the next run.

    A caller gets the result of a run that began after it asked, never of one under way: for a barrier or a table that
    must be newer than the question. One of those who wait runs it, the others sleep. An exception reaches all of them.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._condition = threading.Condition()
        self._running = False
        self._next: _Run[T] = _Run()

    def __call__(self) -> T:
        with self._condition:
            run = self._next
            self._condition.wait_for(lambda: run.done or not self._running)
            if not run.done:
                self._running = True
                self._next = _Run()
        if not run.done:
            try:
                run.result = self._call()
            except BaseException as error:
                run.error = error
            with self._condition:
                run.done = True
                self._running = False
                self._condition.notify_all()
        if run.error is not None:
            raise run.error
        return run.result
