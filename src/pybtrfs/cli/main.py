"""
Entry point of the command ``pybtrfs``.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pybtrfs._version import __version__
from pybtrfs.cli import image, send, subvolume, usage
from pybtrfs.cli.output import DONE, FAILED, INTERRUPTED, complain

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command with *argv*, by default the arguments of the process, and return its exit code.

    The exit codes are 0 done, 1 failed and 130 interrupted. Wrong usage raises SystemExit with 2, and ``--help`` and
    ``--version`` raise it with 0.
    """
    arguments = parser().parse_args(argv)
    try:
        code: int | None = arguments.run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # the reader of the output, such as head, has exited
    except (OSError, ValueError) as error:
        return complain(error)
    return code or DONE


def parser() -> argparse.ArgumentParser:
    """
    Return the parser of all commands.
    """
    whole = argparse.ArgumentParser(
        prog="pybtrfs",
        description="Manage btrfs without btrfs-progs: a part of the btrfs command, with its options and output.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    subvolume.add_commands(commands)
    send.add_commands(commands)
    usage.add_commands(commands)
    image.add_commands(commands)
    return whole
