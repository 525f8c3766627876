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


def parse(
    parser: argparse.ArgumentParser, directories: Sequence[str], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """
    Parse *arguments* with the options of every benchmark.

    Args:
        directories: Where the images are made, unless *arguments* say it; with a quick effort, only the first.
    """
    parser.add_argument("--quick", action="store_true", help="two or three minutes: fewer rounds, and a single run")
    parser.add_argument(
        "--directory",
        action="append",
        help=f"where the images are made; can be given several times ({' and '.join(directories)})",
    )
    given = parser.parse_args(arguments)
    given.directory = given.directory or (directories[:1] if given.quick else directories)
    return given


def command(
    run: Callable[[str, E, str, Path], Path],
    full: E,
    quick: E,
    given: argparse.Namespace,
    finish: Callable[[str, Sequence[Path]], None] = lambda _mode, _paths: None,
) -> int:
    """
    Measure by *run* with the effort that was *given*, and return the exit status.

    Args:
        finish: Called with the mode and the paths that *run* returned for each directory.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    mode, effort = ("quick", quick) if given.quick else ("full", full)
    try:
        finish(mode, [run(mode, effort, directory, RESULTS) for directory in given.directory])
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
