"""
The read-only commands on many snapshots, each from a cold start: ``python -m benchmarks.looking`` runs only these.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.command import command, parse, publish
from benchmarks.measure import FULL, QUICK, Effort, Figure, Row, Target, say
from pybtrfs import image
from snapshotter import Snapshotter

SHORT = 100  # snapshots of the smaller store
LAYERS = 10  # layers of an image
CONTAINERS = 9  # active snapshots for each layer
WRITTEN = 4  # every fourth active snapshot is written to
FILE_BYTES = 5000
SECOND = 1e9

_IMAGE_BYTES = 16 << 30
_SNAPSHOTTER = Path(sys.executable).with_name("snapshotter")


def measure(mount: Path, effort: Effort) -> Iterator[Row]:
    """
    Measure each command on a store of `SHORT` snapshots, and on a store with the snapshots of *effort*.
    """
    short, long = mount / "short", mount / "long"
    say(f"make {SHORT} and {effort.snapshots} snapshots")
    fill(short, SHORT)
    fill(long, effort.snapshots)
    key, layer = "container-0", "layer-0"
    # Bytecode as of an installed package, even if the environment forbids to write it.
    bytecode = mount / "bytecode"
    bytecode.mkdir()
    _run(short, bytecode, ["ls"])
    yield from _rows(short, SHORT, bytecode, effort, {"ls": ["ls"]}, Target(0.12 * SECOND))
    commands = {
        "ls": ["ls"],
        "ls --json": ["ls", "--json"],
        "ls --sort=size": ["ls", "--sort=size", "--columns=key,size"],
        "tree": ["tree"],
        "tree --json": ["tree", "--json"],
        "info": ["info", key],
        "df": ["df"],
        "why": ["why", layer],
        "frees": ["frees", key],
        "diff": ["diff", layer, key],
        "du": ["du", key],
        "report": ["report"],
    }
    yield from _rows(long, effort.snapshots, bytecode, effort, commands, Target(1.5 * SECOND))


def fill(root: Path, count: int) -> None:
    """
    Make a store of *count* snapshots: images of `LAYERS` layers, with containers on each layer.
    """
    with Snapshotter.create(root) as store:
        parent = ""
        for number in range(count // (CONTAINERS + 1)):
            layer = f"layer-{number}"
            store.prepare("build", parent)
            _write(store, "build", f"file-{number}")
            store.commit(layer, "build", {"containerd.io/snapshot.ref": f"sha256:{number:064x}"})
            for container in range(CONTAINERS * number, CONTAINERS * (number + 1)):
                store.prepare(f"container-{container}", layer)
                if container % WRITTEN == 0:
                    _write(store, f"container-{container}", "log")
            parent = layer if (number + 1) % LAYERS else ""
        store.cleanup()


def _write(store: Snapshotter, key: str, name: str) -> None:
    Path(store.subvolume(key), name).write_bytes(bytes(FILE_BYTES))


def _rows(
    root: Path, count: int, bytecode: Path, effort: Effort, commands: dict[str, list[str]], target: Target
) -> Iterator[Row]:
    group = f"the command on {count} snapshots"
    for name, argv in commands.items():
        say(f"{group}: {name}")
        runs = [_run(root, bytecode, argv) for _ in range(effort.commands)]
        taken, cpu, mebibytes = (Figure.of(values) for values in zip(*runs, strict=True))
        yield Row(group, name, "command", taken, target=target)
        yield Row(group, f"{name}, of it CPU", "command", cpu)
        yield Row(group, f"{name}, memory", "command", mebibytes, target=Target(150), unit="MiB")


def _run(root: Path, bytecode: Path, argv: Sequence[str]) -> tuple[float, float, float]:
    """
    Run a command, and return its nanoseconds, its nanoseconds of CPU time, and its peak memory in MiB.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = os.fspath(bytecode)
    begin = time.perf_counter_ns()
    process = subprocess.Popen([_SNAPSHOTTER, "--root", root, *argv], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter_ns() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(argv))
    return taken, (usage.ru_utime + usage.ru_stime) * SECOND, usage.ru_maxrss / 1024


def run(mode: str, effort: Effort, directory: str, results: Path) -> Path:
    """
    Measure, print the table, and return the path of the JSON.
    """
    with image.temporary(_IMAGE_BYTES, directory=directory) as mount:
        about = report.machine(mount, directory, _IMAGE_BYTES)
        return publish(results, mode, about, list(measure(mount, effort)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.looking", description="The read-only commands.")
    return command(run, FULL, QUICK, parse(parser, [tempfile.gettempdir()], arguments))


if __name__ == "__main__":
    sys.exit(main())
