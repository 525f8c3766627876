"""
The command ``snapshotter``.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from pybtrfs._version import __version__
from snapshotter.cli import arguments
from snapshotter.cli.codes import DONE, FAILED, INTERRUPTED, complain, cure, missing_extra, report
from snapshotter.errors import Error

# The commands in the order and the groups of the help: the name of each, its module in `snapshotter.cli.commands`, and
# its line of help.
GROUPS = {
    "look": {
        "ls": ("ls", "list snapshots"),
        "tree": ("tree", "show snapshots below their parents, with the size of each and of all below it"),
        "info": ("info", "describe a snapshot"),
        "usage": ("info", "measure the bytes and inodes that snapshots add to their parents"),
        "diff": ("diff", "list the changed paths between a snapshot and one of its ancestors"),
        "why": ("why", "show the children, mounts, processes and containerd objects that keep a snapshot"),
        "report": ("report", "write an HTML page about the contents, space and problems of a store"),
    },
    "change": {
        "prepare": ("prepare", "create an active snapshot, and print its mount command"),
        "view": ("prepare", "create a read-only view, and print its mount command"),
        "fork": ("prepare", "copy an active snapshot while it runs, and print the mount command of the copy"),
        "commit": ("commit", "freeze an active snapshot under a name"),
        "label": ("label", "show or change the labels of a snapshot"),
        "mount": ("mount", "mount an active snapshot or a view"),
        "umount": ("mount", "unmount a snapshot"),
        "mounts": ("mount", "print the mount command of an active snapshot or a view"),
        "export": ("archive", "write the files of a snapshot to a tar archive"),
        "import": ("archive", "create a committed snapshot from a tar archive"),
    },
    "space and repair": {
        "df": ("df", "show the space that a store uses, and how full its filesystem is"),
        "frees": ("df", "show how many bytes removing a set of snapshots would free"),
        "du": ("du", "show the largest directories of a snapshot"),
        "rm": ("rm", "remove snapshots, children first, and wait until their space is free"),
        "cleanup": ("rm", "destroy the subvolumes of removed snapshots, and wait until their space is free"),
        "doctor": ("doctor", "check a store, and print the cure for each problem"),
        "purge": ("doctor", "delete the entries that `doctor --fix` moved to the quarantine"),
    },
    "daemon": {
        "serve": ("serve", "serve a store to containerd, and create the store if it is missing"),
        "config": ("serve", "print or check the configuration of serve"),
        "ping": ("serve", "check that a daemon serves its store"),
        "events": ("events", "show the events of one snapshot or of all from a daemon's log"),
    },
    "setup": {
        "init": ("init", "create a store, on btrfs or in an image file"),
        "setup": ("setup", "print or write the configuration of containerd and systemd"),
        "demo": ("demo", "demonstrate the main features on a temporary btrfs; needs root"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

_EXAMPLES = """\
examples:
  export SNAPSHOTTER_ROOT=/var/lib/snapshots
  snapshotter init                           create a store on btrfs
  snapshotter init --image 20G               or in an image file, anywhere
  snapshotter prepare build                  create an empty snapshot
  snapshotter mounts build /mnt | sh         mount it
  snapshotter commit base build              freeze it
  snapshotter prepare web base               create a writable copy
  snapshotter fork web web-2                 copy the copy while it runs
  snapshotter tree
  snapshotter rm web web-2

environment:
  SNAPSHOTTER_ROOT     the store, unless --root is given
  SNAPSHOTTER_CONFIG   the configuration file, unless --config is given
  SNAPSHOTTER_...      any other setting of the configuration, in capitals
  NO_COLOR             disables colours

store:
  Every command finds the store in this order: --root, $SNAPSHOTTER_ROOT, the root in the configuration,
  /var/lib/btrfs-snapshotter. The configuration is the file of --config, else of $SNAPSHOTTER_CONFIG, else
  /etc/btrfs-snapshotter/config.toml if it exists.

exit codes:
  0 done, 1 failed, 2 usage or configuration, 3 store held by another process, 4 not found, 5 inconsistent,
  130 interrupted
"""


def main(argv: Sequence[str] | None = None, *, ready: Callable[[], object] = lambda: None) -> int:
    """
    Run the command with *argv*, by default the process's arguments, and return its exit code.

    0 done, 1 failed, 2 usage or configuration, 3 store held by another process, 4 not found, 5 inconsistent,
    130 interrupted. Only ``--help`` and ``--version`` raise SystemExit.

    Args:
        ready: Called when the command's modules are imported, before the command does anything.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        # Parse twice, because building the parsers of all commands takes longer than most commands run.
        try:
            name: str = _names().parse_args(argv).command
            parsed = parser([name]).parse_args(argv)
        except SystemExit:
            _flush()  # the help or the version
            raise
        arguments.check_environment()
        ready()
        code: int | None = parsed.run(parsed)
        _flush()
        return code or DONE
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _discard()
        return FAILED  # the reader closed the pipe
    except Error as error:
        return report(error)
    except ModuleNotFoundError as error:
        return complain(missing_extra(error), FAILED)
    except OSError as error:
        try:
            _flush()
        except OSError:
            _discard()
        place = f": {error.filename!r}" if error.filename is not None else ""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        return complain(f"{error.strerror or error}{place}{notes}{cure(error)}", FAILED)


def _flush() -> None:
    """
    Write the rest of standard output, because output that could not be written is no success.
    """
    if sys.stdout:
        sys.stdout.flush()


def _discard() -> None:
    """
    Drop the rest of standard output, because Python flushes it again at exit, which must not fail.
    """
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """
    Return the parser of the whole command line, with the commands *names* and their modules' other commands.
    """
    whole = _whole(_EXAMPLES)
    commands = arguments.Commands(whole, {name: text for name, (_, text) in COMMANDS.items()})
    for module in dict.fromkeys(COMMANDS[name][0] for name in names):
        importlib.import_module(f"snapshotter.cli.commands.{module}").add(commands)
    return whole


def _names() -> argparse.ArgumentParser:
    """
    Return the parser that finds the command's name, and whose help lists all commands.
    """
    lines = "\n".join(
        f"  {heading}:\n" + "".join(f"    {name:9} {text}\n" for name, (_, text) in group.items())
        for heading, group in GROUPS.items()
    )
    whole = _whole(f"commands:\n{lines}\n{_EXAMPLES}")
    whole.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the commands below")
    whole.add_argument("...", nargs=argparse.REMAINDER, help="its arguments; see `snapshotter COMMAND --help`")
    return whole


def _whole(epilog: str) -> arguments.Parser:
    whole = arguments.Parser(
        prog="snapshotter",
        description="Manage filesystem snapshots on btrfs, by containerd's contract.",
        epilog=epilog,
        parents=[arguments.STORE],
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return whole
