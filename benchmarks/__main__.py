"""
``python -m benchmarks``
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import calls, looking, operations, report
from benchmarks.bare import Bare
from benchmarks.command import command, parse, publish
from benchmarks.measure import FULL, QUICK, Effort, Row, merged
from pybtrfs import image

_IMAGE_BYTES = 16 << 30


def run(mode: str, effort: Effort, directory: str, results: Path) -> Path:
    """
    Measure everything, print the table, and return the path of the JSON.
    """
    runs: list[list[Row]] = []
    with Bare() as bare:
        for _ in range(effort.runs):
            with image.temporary(_IMAGE_BYTES, directory=directory) as mount:
                runs.append(list(calls.measure(mount, bare, effort)))
        rows = merged(runs)
        with image.temporary(_IMAGE_BYTES, directory=directory) as mount:
            about = report.machine(mount, directory, _IMAGE_BYTES)
            rows += operations.measure(mount, bare, effort)
            rows += looking.measure(mount, effort)
    return publish(results, mode, about, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Both packages against the bare kernel.")
    return command(run, FULL, QUICK, parse(parser, [tempfile.gettempdir()], arguments))


if __name__ == "__main__":
    sys.exit(main())
