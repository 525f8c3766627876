"""
Entry point of ``python -m snapshotter`` and of the installed command ``snapshotter``.
"""

import gc
import os
import sys


def run() -> int:
    """
    Run the command as a whole process, and return its exit code.
    """
    # A short command creates almost no cyclic garbage, and each collection takes longer than the one before. Commands
    # that run until they are stopped enable the collector again.
    gc.disable()
    if sys.stdout is None:
        # Without this, prints do nothing, and a file of the store gets the descriptor. Writes to it fail with EBADF.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # for the whole process
    try:
        # Imports come after the handler, because an import interrupted by an exception prints a traceback, or loses it.
        import signal

        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: _stop())
    except KeyboardInterrupt:
        _stop()
    try:
        from snapshotter.cli import main

        return main(ready=lambda: signal.signal(signal.SIGINT, before))
    finally:
        signal.signal(signal.SIGINT, before)


def _stop() -> None:
    """
    End the process at once, like an interrupted command that has done nothing yet.
    """
    try:
        os.write(2, b"snapshotter: interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    sys.exit(run())
