"""
The command ``snapshotter``.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterable, Sequence

from pybtrfs._version import __version__
from snapshotter.cli import arguments
from snapshotter.cli.codes import DONE, FAILED, INTERRUPTED, complain, report
from snapshotter.errors import Error

# By name: the module of `snapshotter.cli.commands`, and one line of help.
COMMANDS = {
    "init": ("init", "make a store, on a btrfs or in an image file"),
    "doctor": ("doctor", "look for what is wrong with a store, and say how to mend it; 5 if something is"),
    "purge": ("doctor", "delete what `doctor --fix` moved to the quarantine"),
    "prepare": ("prepare", "make an active snapshot, and print how to mount it"),
    "view": ("prepare", "make a read-only view, and print how to mount it"),
    "fork": ("prepare", "copy an active snapshot while it runs, and print how to mount the copy"),
    "commit": ("commit", "freeze an active snapshot under a name"),
    "label": ("label", "show the labels of a snapshot, or change some"),
    "rm": ("rm", "remove snapshots, children before what they rest on, and wait for their space"),
    "cleanup": ("rm", "destroy what is left of removed snapshots, and wait for their space"),
    "mount": ("mount", "mount an active snapshot or a view"),
    "umount": ("mount", "unmount a snapshot"),
    "mounts": ("mount", "print how to mount an active snapshot or a view"),
    "export": ("archive", "write what a snapshot holds as a tar"),
    "import": ("archive", "make a committed snapshot of a tar, which may be compressed"),
    "ls": ("ls", "list snapshots"),
    "tree": ("tree", "show snapshots below their parents, with what each added and all that rests on it did"),
    "info": ("info", "describe one snapshot"),
    "usage": ("info", "measure what snapshots add to their parents"),
    "df": ("df", "show what a store takes of its filesystem, and how full that is"),
    "frees": ("df", "show how much comes back when snapshots are removed, all together"),
    "why": ("why", "show what keeps a snapshot: children, mounts, processes, and what containerd needs it for"),
    "diff": ("diff", "list the paths that changed between two snapshots, one resting on the other"),
    "du": ("du", "show what is big in a snapshot, by directory, the largest first"),
    "report": ("report", "write a page of HTML that shows what is in a store, what takes its space, and what is wrong"),
    "serve": ("serve", "serve a store to containerd; make it where there is none"),
    "config": ("serve", "print or check the configuration of serve"),
    "ping": ("serve", "ask whether a daemon serves its store"),
    "events": ("events", "show what a daemon's log tells, of one snapshot or of all"),
    "setup": ("setup", "print what containerd and systemd have to know of the daemon"),
    "demo": ("demo", "show it all on a btrfs of its own, which is gone afterwards; needs root"),
}

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
        # Two passes, because the parsers of all commands take longer to build than most commands take to run.
        name: str = _names().parse_args(argv).command
        parsed = parser([name]).parse_args(argv)
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


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """
    Return the parser of the command with the commands *names* below it, and those that share their modules.
    """
    whole = _whole(_EXAMPLES)
    commands = arguments.Commands(whole, {name: text for name, (_, text) in COMMANDS.items()})
    for module in dict.fromkeys(COMMANDS[name][0] for name in names):
        importlib.import_module(f"snapshotter.cli.commands.{module}").add(commands)
    return whole


def _names() -> argparse.ArgumentParser:
    """
    Return a parser that finds the name of the command, and lists all of them in its help.
    """
    lines = "\n".join(f"  {name:9} {text}" for name, (_, text) in COMMANDS.items())
    whole = _whole(f"commands:\n{lines}\n\n{_EXAMPLES}")
    whole.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the commands below")
    whole.add_argument("...", nargs=argparse.REMAINDER, help="its arguments; see `snapshotter COMMAND --help`")
    return whole


def _whole(epilog: str) -> arguments.Parser:
    whole = arguments.Parser(
        prog="snapshotter",
        description="Keep filesystem snapshots by containerd's contract, on btrfs.",
        epilog=epilog,
        parents=[arguments.ROOT],
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return whole
