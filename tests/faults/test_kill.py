"""
kill -9 before and after every call by which an operation changes the disk.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from snapshotter import Snapshotter
from snapshotter.store import worker
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.volumes import Volumes

from .controls import FlagInsteadOfCopy
from .failpoints import in_child, kill
from .operations import OPERATIONS, Operation, store, wait_settled
from .workload import STORE, begun, compare, ended, promised, verify

pytestmark = pytest.mark.btrfs

NUMBER = 1000  # of the operation under test


def sweep(mount: str, operation: Operation, volumes: type[Volumes]) -> tuple[int, list[str]]:
    """
    Kill *operation* at each of its points in turn, and return the number of points and the violations.
    """
    root = os.path.join(mount, STORE)

    def call(acknowledge: Callable[[], object]) -> None:
        with Snapshotter(root, mount_mode="bind", volumes=volumes) as snapshotter:
            operation.call(snapshotter)
            acknowledge()
            wait_settled(root)

    wrong: list[str] = []
    killed = True
    at = 0
    while killed:
        at += 1
        with store(mount) as marks:
            there, _ = promised(marks)
            marks.append(begun(NUMBER, operation.effect(there)))
            killed, acknowledged = in_child(at, call)
            if acknowledged:
                marks.append(ended(NUMBER))
            found = verify(mount, marks)
            if not found:
                expected = promised([*marks, ended(NUMBER)] if not acknowledged else marks)[0]
                with Snapshotter(root, mount_mode="bind") as snapshotter:
                    with contextlib.suppress(*operation.again):
                        operation.call(snapshotter)
                    infos = {info.name: info for info in snapshotter.walk()}
                found = [f"after the second try: {problem}" for problem in compare(infos, expected)]
            wrong += [f"point {at}: {problem}" for problem in found]
    return at - 1, wrong


@pytest.mark.parametrize("name", OPERATIONS)
def test_kill(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """
    An acknowledged operation survives. Any other operation has happened whole or not at all, and can be tried again.
    """
    monkeypatch.setattr(worker, "TASK_SECONDS", 0.0)
    points, wrong = sweep(str(btrfs_mount(directory="/dev/shm")), OPERATIONS[name], BtrfsVolumes)
    print(f"{points} points")
    assert points >= 8
    assert not wrong


def test_kill_during_recovery(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An opening finishes or rolls back the operations of a killed process, even if an earlier opening was killed.
    """
    mount = str(btrfs_mount(directory="/dev/shm"))
    root = os.path.join(mount, STORE)
    names = ["prepare", "remove view", "remove layer", "commit"]

    def leave(marks: list[str]) -> None:
        """
        Do the operations *names* in a process that is killed before its worker starts.
        """
        there, _ = promised(marks)
        for number, name in enumerate(names, NUMBER):
            effect = OPERATIONS[name].effect(there)
            if name == "commit":
                effect = {("committed" if key == "new" else key): state for key, state in effect.items()}
            marks += [begun(number, effect), ended(number)]

        def call(acknowledge: Callable[[], object]) -> None:
            with mock.patch.object(worker.Worker, "destroy"), mock.patch.object(worker.Worker, "submit"):
                snapshotter = Snapshotter(root, mount_mode="bind")
                for name in names[:-1]:
                    OPERATIONS[name].call(snapshotter)
                snapshotter.commit("committed", "active")
                acknowledge()
                kill()

        assert in_child(0, call) == (True, True)

    def recover(acknowledge: Callable[[], object]) -> None:
        with Snapshotter(root, mount_mode="bind"):
            wait_settled(root)

    monkeypatch.setattr(worker, "TASK_SECONDS", 0.0)
    wrong: list[str] = []
    killed = True
    at = 0
    while killed:
        at += 1
        with store(mount) as marks:
            leave(marks)
            killed, _ = in_child(at, recover)
            wrong += [f"point {at}: {problem}" for problem in verify(mount, marks)]
    print(f"{at - 1} points")
    assert at > 20
    assert not wrong


def test_a_commit_in_two_steps_is_found(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The same test reports a commit in two steps.
    """
    monkeypatch.setattr(worker, "TASK_SECONDS", 0.0)
    _, wrong = sweep(str(btrfs_mount(directory="/dev/shm")), OPERATIONS["commit"], FlagInsteadOfCopy)
    assert any("layer is writable" in problem for problem in wrong)
