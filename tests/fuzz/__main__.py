"""
Run atheris on each target, count the executions, and keep the inputs that reach new code.

``python -m tests.fuzz [--runs N] [TARGET]...``
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS, corpus

MAX_SIZE = 600  # bytes of an input; a root item has 439
KEPT = 40  # inputs of a target, because every run of the tests replays them; failed inputs come on top


def fuzz(name: str, runs: int) -> tuple[int, int]:
    """
    Run a target, and return the number of executions and the exit status.
    """
    known = list(corpus(name))
    with tempfile.TemporaryDirectory() as directory:
        inputs, failures = Path(directory, "inputs"), Path(directory, "failures")
        inputs.mkdir()
        failures.mkdir()
        for number, data in enumerate(known):
            (inputs / str(number)).write_bytes(data)
        options = [f"-runs={runs}", f"-max_len={MAX_SIZE}", f"-artifact_prefix={failures}/", "-print_final_stats=1"]
        argv = [sys.executable, "-m", "tests.fuzz.engine", name, *options, str(inputs)]
        ran = subprocess.run(argv, stderr=subprocess.PIPE, text=True, errors="replace")
        if ran.returncode:
            sys.stderr.write(ran.stderr[-5000:])
        found = {path.read_bytes() for path in inputs.iterdir()}.difference(known)
        failed = [path.read_bytes() for path in failures.iterdir()]
    shortest = sorted(found, key=lambda data: (len(data), data))[: max(0, KEPT - len(known))]
    (CORPUS / f"{name}.txt").write_text("".join(f"{data.hex()}\n" for data in known + failed + shortest))
    executions = re.findall(r"stat::number_of_executed_units: (\d+)", ran.stderr)
    return int(executions[0]) if executions else 0, ran.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--runs", type=int, default=10_000_000, help="executions of each (%(default)s)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="; ".join(TARGETS))
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.targets or TARGETS:
        executions, status = fuzz(name, arguments.runs)
        failed |= status
        print(f"{name:20} {executions:>12,} executions  {'FAILED' if status else 'ok'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
