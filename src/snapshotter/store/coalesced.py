"""
Coalescing of concurrent calls: callers that wait for an expensive call share one run of it.
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
    A wrapper of *call* that lets concurrent callers share one run.

    Unlike Go's singleflight, a caller never joins a run in flight: it waits for the next run, which begins after the
    caller asked. Thus a sync covers all data written before the call, and a mount table is newer than the call. A
    waiting caller runs *call* while the others sleep. All of them get its result or its exception.
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
