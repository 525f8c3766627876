"""
The command line of a benchmark.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import report
from benchmarks.measure import Row

RESULTS = Path(__file__).parent / "results"

E = TypeVar("E")


def command(
    run: Callable[[str, E, str, Path], Path],
    full: E,
    quick: E,
    directory: str,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
) -> int:
    """
    Measure by *run* with the effort that *arguments* select, and return the exit status.
    """
    parser.add_argument("--quick", action="store_true", help="fewer rounds: two or three minutes, not fifteen")
    parser.add_argument("--directory", default=directory, help="where the images are made (%(default)s)")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run("quick" if given.quick else "full", quick if given.quick else full, given.directory, RESULTS)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def publish(results: Path, mode: str, about: dict[str, Any], rows: Sequence[Row]) -> Path:
    """
    Print the table, and return the path of the JSON.
    """
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}-{mode}.json"
    report.write(path, mode, about, rows)
    print(report.table(about, rows))
    print(f"\nwritten to {path}")
    return path
