"""
Coalescing of concurrent calls: every caller gets the result of a run that began after its call.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapshotter.store.coalesced import Coalesced

PATIENCE = 10


class Call:
    """
    A call whose runs the test observes and ends.
    """

    def __init__(self) -> None:
        self.begun = [threading.Event() for _ in range(10)]
        self.may_end = [threading.Event() for _ in range(10)]
        self.count = 0

    def __call__(self) -> int:
        number = self.count
        self.count += 1
        self.begun[number].set()
        assert self.may_end[number].wait(PATIENCE)
        if number == 8:
            raise OSError(number, "the disk refused")
        return number


def test_alone() -> None:
    """
    Calls in sequence each have their own run.
    """
    call = Call()
    for event in call.may_end:
        event.set()
    shared = Coalesced(call)
    assert [shared() for _ in range(3)] == [0, 1, 2]


def test_waiting_callers_share_the_next_run() -> None:
    """
    Callers that come during a run share one run, which begins after it ended.
    """
    call = Call()
    shared = Coalesced(call)
    waiting = threading.Barrier(6)

    def ask() -> int:
        waiting.wait(PATIENCE)
        return shared()

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(shared)
        assert call.begun[0].wait(PATIENCE)
        later = [pool.submit(ask) for _ in range(5)]
        waiting.wait(PATIENCE)
        with shared._condition:
            while len(shared._condition._waiters) < 5:  # type: ignore[attr-defined]  # the only count of sleepers
                shared._condition.wait(0.001)
        assert call.count == 1
        call.may_end[0].set()
        assert first.result(PATIENCE) == 0
        assert call.begun[1].wait(PATIENCE)
        after = pool.submit(shared)
        call.may_end[1].set()
        assert {future.result(PATIENCE) for future in later} == {1}
        call.may_end[2].set()
        assert after.result(PATIENCE) == 2


def test_errors_are_shared() -> None:
    """
    An error is raised for all callers of its run, and not for later callers.
    """
    call = Call()
    call.count = 7
    shared = Coalesced(call)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared)
        assert call.begun[7].wait(PATIENCE)
        failing = [pool.submit(shared) for _ in range(3)]
        with shared._condition:
            while len(shared._condition._waiters) < 3:  # type: ignore[attr-defined]  # the only count of sleepers
                shared._condition.wait(0.001)
        for event in call.may_end:
            event.set()
        assert first.result(PATIENCE) == 7
        for future in failing:
            with pytest.raises(OSError, match="the disk refused"):
                future.result(PATIENCE)
    assert shared() == 9


def test_many() -> None:
    """
    Among many concurrent callers, each gets a run that began after its call.
    """
    clock = 0
    lock = threading.Lock()

    def tick() -> int:
        nonlocal clock
        with lock:
            clock += 1
            return clock

    shared = Coalesced(tick)

    def ask(_: int) -> None:
        before = tick()
        assert shared() > before

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(2000)))
