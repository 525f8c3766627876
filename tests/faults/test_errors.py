"""
An error before and after every call by which an operation changes the disk, once or at all later calls too.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.errors import DataLossError, Error
from snapshotter.store import worker

from .failpoints import Points, fail, stopped
from .operations import OPERATIONS, Operation, store
from .workload import STORE, begun, compare, ended, promised, verify

pytestmark = pytest.mark.btrfs

NUMBER = 1000  # of the operation under test


def attempt(mount: str, operation: Operation, points: Points, marks: list[str]) -> list[str]:
    """
    Do *operation* with the error at *points*, repeat it without, and return the violations.
    """
    root = os.path.join(mount, STORE)
    old, _ = promised(marks)
    effect = operation.effect(old)
    new, _ = promised([*marks, begun(NUMBER, effect), ended(NUMBER)])
    marks.append(begun(NUMBER, effect))
    wrong = []
    with Snapshotter(root, mount_mode="bind") as snapshotter:
        expected = old
        with contextlib.suppress(Error), stopped(points):
            operation.call(snapshotter)
            expected = new
            snapshotter.cleanup()
        there = {info.name: info for info in snapshotter.walk()}
        wrong += [f"after the answer: {problem}" for problem in compare(there, expected)]
        with contextlib.suppress(Error):  # after EIO it has to be opened anew
            operation.call(snapshotter)
    wrong += [f"after closing: {problem}" for problem in verify(mount, marks)]
    with Snapshotter(root, mount_mode="bind") as snapshotter:
        try:
            operation.call(snapshotter)
        except DataLossError:
            assert "syncfs" in points.hit  # then it is refused for good
            new = old
        except operation.again:
            pass
        there = {info.name: info for info in snapshotter.walk()}
        wrong += [f"after another try: {problem}" for problem in compare(there, new)]
    return wrong


@pytest.mark.parametrize("number", ["ENOSPC", "EIO", "EINTR"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_error(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, number: str) -> None:
    """
    The operation succeeds, or raises an error of the contract and changes nothing. It can be tried again.
    """
    monkeypatch.setattr(worker, "TASK_SECONDS", 0.0)
    mount = str(btrfs_mount(directory="/dev/shm"))
    wrong: list[str] = []
    tried = 0
    for sticky in (False,) if number == "EINTR" else (False, True):
        at, hit = 0, "first"
        while hit:
            at += 1
            points = Points(at, fail(number), sticky)
            with store(mount) as marks:
                found = attempt(mount, OPERATIONS[name], points, marks)
            hit = points.hit
            tried += bool(hit)
            wrong += [f"{hit}{', from then on' if sticky else ''}: {problem}" for problem in found]
    print(f"{tried} errors")
    assert tried >= 4
    assert not wrong
