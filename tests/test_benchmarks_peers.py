"""
The benchmarks against containerd's snapshotters run. Their figures decide no test.
"""

import json
import math
import os
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import plot
from benchmarks.peers.__main__ import draw, run
from benchmarks.peers.contestants import ALL, DAEMON, GO, LIBRARY
from benchmarks.peers.operations import Scale, cpu_time
from tests.interruption import interrupt

TINY = Scale(
    runs=1,
    rounds=2,
    operations=2,
    storms=1,
    seconds=1,
    layers=1,
    files=20,
    polled=((10, 3, 1), (3, 20, 1)),
    polls=1,
    few=2,
    snapshots=10,
    starts=1,
)
PAIRS = {"1 client", "4 clients", "16 clients", "64 clients"}
STEPS = {
    "one client": {"prepare", "view", "commit of one file", "remove"},
    "prepare and remove, the time of all over the pairs": {
        *PAIRS,
        "backlog of destroys at 64 clients",
    },
    "a layer of 20 files": {
        "commit",
        "usage of the committed",
        "usage, 0 changed",
        "usage, 20 changed",
        "usage, asked for again",
        "usage, 20 new on 20",
        "remove",
    },
    "many snapshots": {"walk of 6", "stat", "update", "start with 10"},
}
IN_PROCESSES = {"many snapshots": {"memory with 10, started", "memory with 10, walked", "CPU of a walk of 6"}}
POLLED = {
    f"a round of polling {polled} files": {
        f"{what}, {doing}"
        for what in ("CPU", "CPU with the client's", "elapsed")
        for doing in ("nothing written", "one in 10 written to")
    }
    for polled in ("10 active snapshots of 3", "3 active snapshots of 20")
}
WITHOUT_SSD = {*(f"{clients} clients" for clients in (4, 16, 64)), "views by 16 clients", "removes by 16 clients"}
OPERATIONS = {*STEPS["one client"], "stat", "usage", "update"}
TARGETS = 35


@pytest.mark.btrfs
def test_a_run_has_every_contestant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A run measures every contestant against Go in process, judges the daemon by the targets, and leaves nothing.
    """
    directory = tmp_path / "images"
    directory.mkdir()
    path = run("tiny", TINY, os.fspath(directory), tmp_path / "results", against="HEAD")
    assert os.listdir(directory) == []
    values = json.loads(path.read_text())
    assert {"kernel", "cpu", "cores", "medium", "go", "containerd"} <= values["machine"].keys()
    measured = {(row["group"], row["name"], row["subject"]) for row in values["rows"]}
    others = set(ALL) - {GO}
    expected = {(group, step, subject) for group, steps in STEPS.items() for step in steps for subject in others}
    expected -= {row for row in expected if row[1].startswith("backlog") and row[2] != "daemon"}
    for group, steps in IN_PROCESSES.items():
        expected |= {(group, step, subject) for step in steps for subject in others - {LIBRARY}}
    for group, steps in POLLED.items():
        expected |= {(group, step, DAEMON) for step in steps}
    group = "mounted without ssd: prepare and remove, the time of all over the pairs"
    expected |= {(group, step, LIBRARY) for step in WITHOUT_SSD}
    steps = STEPS["one client"] | {f"pairs, {step}" for step in PAIRS}
    for option in ("ssd", "nossd"):
        expected |= {(f"mounted with {option}, against HEAD", step, DAEMON) for step in steps}
    group = "each operation with 10 snapshots in the store, against 2"
    expected |= {(group, step, "daemon with 10") for step in OPERATIONS}
    assert measured == expected
    assert all(math.isfinite(row["figure"]["median"]) for row in values["rows"])
    judged = [row for row in values["rows"] if row["target"]]
    assert {row["subject"] for row in judged} == {DAEMON, LIBRARY, "daemon with 10"}
    assert len(judged) == TARGETS
    table = capsys.readouterr().out
    assert all(row["name"] in table for row in values["rows"])
    assert "targets are met" in table
    draw("tiny", [path, path])
    for name in ("light", "dark"):
        picture = ElementTree.parse(tmp_path / f"results/performance-{name}.svg").getroot()
        texts = "".join(picture.itertext())
        assert all(row["name"] in texts for row in judged if row["target"]["ratio"])


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


def test_a_plot_tells_met_from_missed() -> None:
    """
    A plot has a point for each medium, filled if the target is met, and says the same in words. Rows that only one run
    has stay in their group.
    """

    def row(name: str, ratio: float, group: str = "a <group>") -> dict[str, object]:
        return {
            "group": group,
            "name": name,
            "subject": "daemon",
            "baseline": "Go",
            "met": ratio <= 0.5,
            "target": {"limit": 0.5, "ratio": True},
            "ratio": {"median": ratio, "least": ratio, "most": 20},
        }

    def run(medium: str, ssd: str, *rows: dict[str, object]) -> dict[str, object]:
        about = {"medium": f"loop image of 16 GiB in /somewhere ({medium})", "ssd": ssd}
        return {"mode": "full", "time": "2026-01-02T03:04:05+00:00", "machine": about, "rows": rows}

    unjudged = {**row("unjudged", 1), "target": None}
    runs = [
        run("tmpfs", "yes", row("fast", 0.002), unjudged, row("last", 0.4, "other")),
        run("ext4 on /dev/vda", "no", row("fast", 0.6), row("slow", 20)),
    ]
    text = plot.svg(runs, plot.THEMES["dark"])
    picture = ElementTree.fromstring(text)
    assert "a &lt;group&gt;: fast, to Go: 0.002 (met) and 0.60 (missed), target 0.50" in text
    shown = [(each.text or "").strip() for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    order = [shown.index(name) for name in ("a <group>", "fast, to Go", "slow, to Go", "other", "last, to Go")]
    assert order == sorted(order)
    assert shown.count("a <group>") == 1
    assert "unjudged, to Go" not in shown
    assert {"tmpfs, mounted with ssd", "ext4 on /dev/vda, mounted without ssd"} <= set(shown)
    circles = [each.attrib["fill"] for each in picture.iter("{http://www.w3.org/2000/svg}circle")]
    first, second = plot.THEMES["dark"].media
    assert circles == [first, second, first, "none", "none", first]


def test_cpu_time_is_that_of_the_process() -> None:
    """
    The CPU time of a process, read by its id, equals the time that the process itself reads.
    """
    before = time.process_time_ns()
    assert before <= cpu_time(os.getpid()) <= time.process_time_ns()
