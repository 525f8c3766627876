"""
``snapshotter serve``, ``config`` and ``ping``.
"""

import argparse
import contextlib
import os
import sys

from snapshotter.cli import arguments
from snapshotter.daemon import config
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    settings = arguments.daemon_settings()
    serve = commands.add(
        "serve",
        _serve,
        settings,
        example="snapshotter serve --root /var/lib/snapshots --address /run/snapshots.sock",
    )
    serve.add_argument(
        "--no-create", action="store_true", help="fail if the root is not a store, instead of making one"
    )
    configuration = commands.add(
        "config",
        _config,
        settings,
        example="snapshotter config dump --log-level debug",
    )
    configuration.add_argument(
        "action",
        choices=("default", "dump", "check"),
        help="print a file of the defaults; print the settings in force and their origins; or only check",
    )
    commands.add("ping", _ping, arguments.daemon_place(), example="snapshotter ping --address /run/snapshots.sock")


def _serve(parsed: argparse.Namespace) -> None:
    loaded = arguments.load_settings(parsed).config
    from snapshotter.daemon import log, process
    from snapshotter.daemon.systemd import Systemd

    with contextlib.ExitStack() as stack:
        # If standard error was closed at the start, its number may be that of another file by now.
        if sys.stderr is not None:
            stack.enter_context(log.writing(sys.stderr.fileno(), loaded.log_format, loaded.log_level))
        process.serve(loaded, Systemd(os.environ), create=not parsed.no_create)


def _config(parsed: argparse.Namespace) -> None:
    if parsed.action == "default":
        print(config.default(), end="")
        return
    loaded = arguments.load_settings(parsed)
    if parsed.action == "dump":
        print(config.dump(loaded), end="")


def _ping(parsed: argparse.Namespace) -> None:
    address = arguments.load_settings(parsed).config.address
    from snapshotter.client import check_serving

    check_serving(address)
    print(f"{printable(address)} serves")
