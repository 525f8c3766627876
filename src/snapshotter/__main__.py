"""
``python -m snapshotter``, and the command ``snapshotter``.
"""

import gc
import sys

from snapshotter.cli import main


def run() -> int:
    """
    Run the command in a process of its own, and return its exit code.
    """
    # What a command holds on to is hardly ever garbage, and looking through it takes longer and longer. Those that run
    # until they are stopped enable it.
    gc.disable()
    return main()


if __name__ == "__main__":
    sys.exit(run())
