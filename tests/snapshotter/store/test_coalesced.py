"""
One run for all who wait: for a barrier that must be newer than the question.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapshotter.store.coalesced import Coalesced

PATIENCE = 10


class Call:
    """
    A call whose runs are begun and ended by the test.
    """

    def __init__(self) -> None:
        self.begun = [threading.Event() for _ in range(10)]
        self.go_on = [threading.Event() for _ in range(10)]
        self.count = 0

    def __call__(self) -> int:
        number = self.count
        self.count += 1
        self.begun[number].set()
        assert self.go_on[number].wait(PATIENCE)
        if number == 8:
            raise OSError(number, "the disk refused")
        return number


def test_alone() -> None:
    """
    One after the other each caller has a run of its own.
    """
    call = Call()
    for event in call.go_on:
        event.set()
    shared = Coalesced(call)
    assert [shared() for _ in range(3)] == [0, 1, 2]


def test_who_comes_later_shares_the_next_run() -> None:
    """
    A run under way began before who comes now asked: all of those share one run, begun after it ended.
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
            while len(shared._condition._waiters) < 5:  # type: ignore[attr-defined]  # how many sleep, only it knows
                shared._condition.wait(0.001)
        assert call.count == 1
        call.go_on[0].set()
        assert first.result(PATIENCE) == 0
        assert call.begun[1].wait(PATIENCE)
        after = pool.submit(shared)
        call.go_on[1].set()
        assert {future.result(PATIENCE) for future in later} == {1}
        call.go_on[2].set()
        assert after.result(PATIENCE) == 2


def test_errors_are_shared() -> None:
    """
    An error reaches everybody whose run it was, and not who comes later.
    """
    call = Call()
    call.count = 7
    shared = Coalesced(call)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared)
        assert call.begun[7].wait(PATIENCE)
        failing = [pool.submit(shared) for _ in range(3)]
        with shared._condition:
            while len(shared._condition._waiters) < 3:  # type: ignore[attr-defined]  # how many sleep, only it knows
                shared._condition.wait(0.001)
        for event in call.go_on:
            event.set()
        assert first.result(PATIENCE) == 7
        for future in failing:
            with pytest.raises(OSError, match="the disk refused"):
                future.result(PATIENCE)
    assert shared() == 9


def test_many() -> None:
    """
    However many ask at once, everybody gets a run that began after it asked.
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
