"""
The benchmarks run. Their figures decide no test.
"""

import json
import math
import os
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import run
from benchmarks.measure import Effort, Figure, Row, Target, compare, merged, rows
from benchmarks.pause import Pause
from tests.interruption import interrupt

TINY = Effort(
    runs=2,
    rounds=2,
    operations=2,
    commands=1,
    listed=10,
    files=20,
    layers=1,
    simultaneous=3,
    storms=1,
    seconds=1.2,
    aged=5,
    snapshots=50,
)
CALLS = {
    *("create", "snapshot", "delete", "raw create", "raw delete", "snapshot and delete, 64 threads"),
    *(
        f"{call}{of}"
        for call in ("get_id", "raw get_id", "get_info", "raw get_info", "get_read_only", "raw get_read_only")
        for of in ("", " of the top level")
    ),
    *("list 10 subvolumes", "the same, and read all fields"),
    *(f"longest pause of a thread beside {call}" for call in ("create", "delete", "snapshot", "list")),
}
OPERATIONS = {
    "prepare",
    "prepare, no parent",
    "view",
    "commit of one file",
    "remove",
    "prepare and remove, one thread",
    "the same until it is destroyed",
    "3 prepares at once",
    "commit of 20 files",
    "usage, 20 of them changed",
    "remove of 20 files",
    *(f"prepare and remove, {threads} threads" for threads in (1, 4, 16, 64)),
    *(f"{name} at 64 threads, {percent} %" for name in ("prepare", "remove") for percent in (50, 99)),
    "backlog of destroys at 64 threads, most in 1 s",
}
LOOKING = {
    *("ls", "ls --json", "ls --sort=size", "tree", "tree --json", "info"),
    *("df", "why", "frees", "diff", "du", "report"),
}
TARGETS = 6  # on each store
CALLS_TARGETS = 18


@pytest.mark.btrfs
def test_a_run_has_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A run measures everything on a fresh and on an aged store, and writes the same rows as JSON and as a table.
    """
    path = run("tiny", TINY, os.fspath(tmp_path), tmp_path / "results")
    values = json.loads(path.read_text())
    assert {"kernel", "cpu", "cores", "medium"} <= values["machine"].keys()
    assert values["machine"]["ssd"] == "yes"
    names: dict[str, set[str]] = {}
    for row in values["rows"]:
        names.setdefault(row["group"], set()).add(row["name"])
        assert math.isfinite(row["figure"]["median"])
        assert bool(row["baseline"]) == bool(row["ratio"])
    assert names == {
        "pybtrfs": CALLS,
        "fresh store": OPERATIONS,
        "store aged by 5 snapshots": OPERATIONS | {"open"},
        "the command on 100 snapshots": {"ls", "ls, of it CPU", "ls, memory"},
        "the command on 50 snapshots": {name + what for name in LOOKING for what in ("", ", of it CPU", ", memory")},
    }
    targets = CALLS_TARGETS + 2 * TARGETS + 2 + 2 * len(LOOKING)
    assert sum(row["target"] is not None for row in values["rows"]) == targets
    table = capsys.readouterr().out
    assert all(row["name"] in table for row in values["rows"])


@pytest.mark.btrfs
def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    """
    Ctrl-C ends a run with status 130, and its image is gone.
    """
    interrupt("benchmarks", tmp_path)


def test_contenders_take_turns() -> None:
    """
    Each round has both contenders, in alternating order; the ratio is the ratio of the medians.
    """
    turns = []

    def turn(name: str, time: float) -> dict[str, list[float]]:
        turns.append(name)
        return {"step": [time, time]}

    samples = compare(2, {"ours": lambda: turn("ours", 30), "theirs": lambda: turn("theirs", 20)})
    assert turns == ["ours", "theirs", "theirs", "ours"]
    (row,) = rows("group", samples, {"step": Target(1.4, ratio=True)})
    assert row.figure == Figure(30, 30, 30, 4)
    assert row.ratio == Figure(1.5, 1.5, 1.5, 2)
    assert row.met is False


def test_a_warm_up_is_not_measured() -> None:
    """
    A warm-up is a turn of each contender whose measurements are dropped. Rows keep the order of the contenders.
    """
    count = iter(range(10))
    samples = compare(1, {name: lambda: {"step": [next(count)]} for name in ("ours", "theirs")}, warm_ups=1)
    assert samples == {"step": {"ours": [[3]], "theirs": [[2]]}}
    assert list(samples["step"]) == ["ours", "theirs"]


def test_runs_are_merged() -> None:
    """
    A merged row has the median of the medians of its runs, and their range.
    """
    runs = [
        [
            Row("g", "n", "ours", Figure(time, 0, 9, 5), "theirs", Figure(2, 0, 9, 5), Figure(time / 2, 0, 9, 5)),
            Row("g", "n", "ours", Figure(time, 0, 9, 5), series=[time]),
        ]
        for time in (1, 2, 4)
    ]
    assert merged(runs[:1]) == runs[0]
    assert merged(runs) == [
        Row("g", "n", "ours", Figure(2, 1, 4, 3), "theirs", Figure(2, 2, 2, 3), Figure(1, 0.5, 2, 3)),
        Row("g", "n", "ours", Figure(2, 1, 4, 3), series=[1, 2, 4]),
    ]


def test_a_target_may_be_of_the_figure_itself() -> None:
    """
    A target without a ratio judges the median.
    """
    assert Row("group", "name", "ours", Figure(5, 1, 9, 3), target=Target(5)).met
    assert Row("group", "name", "ours", Figure(5, 1, 9, 3)).met is None


def test_a_pause_is_seen() -> None:
    """
    A call that holds the GIL shows as a pause of another thread.
    """
    with Pause() as pause:
        begin = time.perf_counter_ns()
        sum(range(5_000_000))
        took = time.perf_counter_ns() - begin
    assert pause.longest > took / 2
