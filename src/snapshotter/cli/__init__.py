"""
The command ``snapshotter``.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from pybtrfs._version import __version__
from snapshotter.cli import arguments
from snapshotter.cli.codes import DONE, FAILED, INTERRUPTED, complain, report
from snapshotter.cli.commands import archive, df, init, ls, rm, serve
from snapshotter.cli.commands import report as report_command
from snapshotter.errors import Error

_EXAMPLES = """\
examples:
  export SNAPSHOTTER_ROOT=/var/lib/snapshots
  snapshotter init                           a store, on a btrfs
  snapshotter init --image 20G               or in an image file, anywhere
  snapshotter prepare build                  an empty snapshot, and how to mount it
  snapshotter mounts build /mnt | sh
  snapshotter commit base build              freeze it
  snapshotter prepare web base               a writable copy
  snapshotter fork web web-2                 and a copy of that, while it runs
  snapshotter tree
  snapshotter rm web web-2

environment:
  SNAPSHOTTER_ROOT     the store, where --root names none
  SNAPSHOTTER_CONFIG   the configuration of serve, where --config names none
  NO_COLOR             no colours, if it is set

exit codes:
  0 done, 1 failed, 2 usage or configuration, 3 store held by another, 4 not found, 5 inconsistent, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command with *argv*, by default the process's arguments, and return its exit code.

    0 done, 1 failed, 2 usage or configuration, 3 store held by another, 4 not found, 5 inconsistent, 130 interrupted.
    Only ``--help`` and ``--version`` raise SystemExit.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        parsed = parser().parse_args(argv)
        code: int | None = parsed.run(parsed)
        if sys.stdout:
            sys.stdout.flush()
        return code or DONE
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Who read has seen enough. Python flushes once more at its end.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return FAILED
    except Error as error:
        return report(error)
    except ModuleNotFoundError as error:
        return complain(f"{error.name} is missing: pip install 'btrfs-snapshotter[daemon]'", FAILED)
    except OSError as error:
        place = f": {error.filename!r}" if error.filename is not None else ""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        return complain(f"{error.strerror or error}{place}{notes}", FAILED)


def parser() -> argparse.ArgumentParser:
    """
    All the arguments of the command.
    """
    whole = arguments.Parser(
        prog="snapshotter",
        description="Keep filesystem snapshots by containerd's contract, on btrfs.",
        epilog=_EXAMPLES,
        parents=[arguments.ROOT],
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = arguments.Commands(whole)
    for group in (init, rm, archive, ls, df, report_command, serve):
        group.add(commands)
    commands.add(
        "demo",
        _demo,
        "show it all on a btrfs of its own, which is gone afterwards; needs root",
        example="snapshotter demo",
    )
    return whole


def _demo(parsed: argparse.Namespace) -> None:
    from snapshotter.cli.commands import demo

    demo.run()
