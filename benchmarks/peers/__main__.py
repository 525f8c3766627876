"""
``python -m benchmarks.peers``
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.bare import Bare
from benchmarks.command import command, publish
from benchmarks.peers.contestants import IMAGE_BYTES, Program
from benchmarks.peers.operations import FULL, QUICK, Peers, Scale
from pybtrfs import image

# In memory, because waiting for a disk takes all contestants the same time and would hide their differences.
_DIRECTORY = "/dev/shm"
_SOCKETS = "/tmp"  # short, because the path of a socket may have 107 bytes


def run(mode: str, scale: Scale, directory: str, results: Path) -> Path:
    """
    Measure everything, print the table, and return the path of the JSON.
    """
    with tempfile.TemporaryDirectory(prefix="peers-", dir=_SOCKETS) as own, Bare() as bare:
        program = Program(Path(own))
        with image.temporary(IMAGE_BYTES, directory=directory) as mount:
            about = report.machine(mount, directory, IMAGE_BYTES) | program.versions()
        rows = list(Peers(directory, program, bare, scale).measure())
    return publish(results, f"peers-{mode}", about, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="The snapshotter against containerd's own."
    )
    return command(run, FULL, QUICK, _DIRECTORY, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
