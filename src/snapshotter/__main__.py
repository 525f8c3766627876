"""
``python -m snapshotter``, and the command ``snapshotter``.
"""

import gc
import sys

from snapshotter.cli import main

_COLLECT_EVERY = 50_000  # objects, instead of 700: of what a command holds on to, hardly any is garbage


def run() -> int:
    """
    Run the command in a process of its own, and return its exit code.
    """
    gc.set_threshold(_COLLECT_EVERY)
    return main()


if __name__ == "__main__":
    sys.exit(run())
