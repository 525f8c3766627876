"""
``python -m benchmarks``
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import calls, operations, report
from benchmarks.bare import Bare
from benchmarks.measure import FULL, QUICK, Effort, Row
from pybtrfs import image

RESULTS = Path(__file__).parent / "results"
_IMAGE_BYTES = 16 << 30


def run(mode: str, effort: Effort, directory: str, results: Path) -> Path:
    """
    Measure everything, print the table, and return the path of the JSON.
    """
    rows: list[Row] = []
    with image.temporary(_IMAGE_BYTES, directory=directory) as mount, Bare() as bare:
        about = report.machine(mount, directory, _IMAGE_BYTES)
        for measure in (calls.measure, operations.measure):
            rows += measure(mount, bare, effort)
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}-{mode}.json"
    report.write(path, mode, about, rows)
    print(report.table(about, rows))
    print(f"\nwritten to {path}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Both packages against the bare kernel.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: two minutes, not fifteen")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where the image is made (%(default)s)")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run("quick" if given.quick else "full", QUICK if given.quick else FULL, given.directory, RESULTS)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
