"""
Entry point of ``python -m snapshotter`` and of the installed command ``snapshotter``.
"""

import gc
import sys

from snapshotter.cli import main


def run() -> int:
    """
    Run the command as a whole process, and return its exit code.
    """
    # A short command creates almost no cyclic garbage, and each collection takes longer than the one before. Commands
    # that run until they are stopped enable the collector again.
    gc.disable()
    return main()


if __name__ == "__main__":
    sys.exit(run())
