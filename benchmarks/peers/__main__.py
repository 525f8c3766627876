"""
``python -m benchmarks.peers``
"""

import argparse
import functools
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plot, report
from benchmarks.bare import Bare
from benchmarks.command import command, parse, publish
from benchmarks.measure import merged, say
from benchmarks.peers.contestants import IMAGE_BYTES, Program
from benchmarks.peers.operations import FULL, QUICK, Peers, Scale
from pybtrfs import image

# In memory, where nothing hides the differences of the contestants, and on a disk, for which all of them wait.
_DIRECTORIES = ("/dev/shm", "/var/tmp")
_PICTURES = Path(__file__).parent.parent.parent / "docs/pictures"
_SOCKETS = "/tmp"  # short, because the path of a socket may have 107 bytes


def run(mode: str, scale: Scale, directory: str, results: Path, against: str = "") -> Path:
    """
    Measure everything, print the table, and return the path of the JSON.
    """
    with tempfile.TemporaryDirectory(prefix="peers-", dir=_SOCKETS) as own, Bare() as bare:
        program = Program(Path(own), against)
        with image.temporary(IMAGE_BYTES, directory=directory) as mount:
            about = report.machine(mount, directory, IMAGE_BYTES) | program.versions()
        runs = []
        for number in range(scale.runs):
            say(f"run {number + 1} of {scale.runs} in {directory}")
            runs.append(list(Peers(directory, program, bare, scale).measure()))
    medium = re.sub(r"\W+", "-", directory.strip("/"))
    return publish(results, f"peers-{medium}-{mode}", about, merged(runs))


def draw(mode: str, paths: Sequence[Path]) -> None:
    """
    Plot the results: of a full effort for the documentation, otherwise beside the results.
    """
    for path in plot.write(_PICTURES if mode == "full" else paths[0].parent, paths):
        print(f"drawn to {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="The snapshotter against containerd's own."
    )
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        default="",
        help="measure the daemon of another commit of this repository as well",
    )
    given = parse(parser, _DIRECTORIES, arguments)
    return command(functools.partial(run, against=given.against), FULL, QUICK, given, draw)


if __name__ == "__main__":
    sys.exit(main())
