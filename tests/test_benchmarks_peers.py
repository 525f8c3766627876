"""
The benchmarks against containerd's snapshotters run. Their figures decide no test.
"""

import json
import math
import os
import time
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import run
from benchmarks.peers.contestants import ALL, GO, LIBRARY
from benchmarks.peers.operations import Scale, cpu_time
from tests.interruption import interrupt

TINY = Scale(
    rounds=2,
    operations=2,
    storms=1,
    seconds=1,
    layers=1,
    files=20,
    polled=((10, 3, 1), (3, 20, 1)),
    polls=1,
    snapshots=10,
    starts=1,
)
STEPS = {
    "one client": {"prepare", "view", "commit of one file", "remove"},
    "prepare and remove, the time of all over the pairs": {
        "1 client",
        "4 clients",
        "16 clients",
        "64 clients",
        "backlog of destroys at 64 clients",
    },
    "a layer of 20 files": {
        "commit",
        "usage of the committed",
        "usage, 0 changed",
        "usage, 20 changed",
        "remove",
    },
    "many snapshots": {"walk of 6", "stat", "update", "start with 10"},
}
IN_PROCESSES = {
    **{
        f"a round of polling {polled} files": {
            f"{what}, {doing}"
            for what in ("CPU", "CPU with the client's", "elapsed")
            for doing in ("nothing written", "one in 10 written to")
        }
        for polled in ("10 active snapshots of 3", "3 active snapshots of 20")
    },
    "many snapshots": {"memory with 10, started", "memory with 10, walked"},
}
TARGETS = 13


@pytest.mark.btrfs
def test_a_run_has_every_contestant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A run measures every contestant against Go in process, judges the daemon by the targets, and leaves nothing.
    """
    directory = tmp_path / "images"
    directory.mkdir()
    path = run("tiny", TINY, os.fspath(directory), tmp_path / "results")
    assert os.listdir(directory) == []
    values = json.loads(path.read_text())
    assert {"kernel", "cpu", "cores", "medium", "go", "containerd"} <= values["machine"].keys()
    measured = {(row["group"], row["name"], row["subject"]) for row in values["rows"]}
    others = set(ALL) - {GO}
    expected = {(group, step, subject) for group, steps in STEPS.items() for step in steps for subject in others}
    expected -= {row for row in expected if row[1].startswith("backlog") and row[2] != "daemon"}
    for group, steps in IN_PROCESSES.items():
        expected |= {(group, step, subject) for step in steps for subject in others - {LIBRARY}}
    assert measured == expected
    assert all(math.isfinite(row["figure"]["median"]) for row in values["rows"])
    judged = [row for row in values["rows"] if row["target"]]
    assert {row["subject"] for row in judged} == {"daemon"}
    assert len(judged) == TARGETS
    table = capsys.readouterr().out
    assert all(row["name"] in table for row in values["rows"])


@pytest.mark.btrfs
def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    """
    Ctrl-C ends a run with status 130, and its images and processes are gone.
    """
    interrupt("benchmarks.peers", tmp_path)
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and os.fsencode(tmp_path) in _command(pid)] == []


def _command(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_cpu_time_is_that_of_the_process() -> None:
    """
    The CPU time of a process, read by its id, equals the time that the process itself reads.
    """
    before = time.process_time_ns()
    assert before <= cpu_time(os.getpid()) <= time.process_time_ns()
