"""
The commands about the daemon.
"""

import argparse
import gc
import os
import sys

from snapshotter.cli import arguments
from snapshotter.cli.arguments import _settings
from snapshotter.cli.commands.events import _events
from snapshotter.cli.commands.setup import _setup_containerd, _setup_systemd
from snapshotter.errors import UnavailableError
from snapshotter.text import printable

PING_SECONDS = 5.0


def add(commands: arguments.Commands) -> None:
    place = arguments.Parser(add_help=False)
    place.add_argument("--config", metavar="FILE", help="the daemon's configuration; by default $SNAPSHOTTER_CONFIG")
    place.add_argument("--address", metavar="SOCKET", help="the daemon's socket")

    def settings() -> arguments.Parser:
        from snapshotter.daemon import config

        parser = arguments.Parser(add_help=False, parents=[place])
        for name, setting in config.SETTINGS.items():
            if name not in ("root", "address"):
                parser.add_argument(config.flag(name), metavar="VALUE", dest=name, help=setting.metadata["expected"])
        return parser

    commands.add(
        "serve",
        _serve,
        "serve a store to containerd; make it where there is none",
        settings,
        example="snapshotter serve --root /var/lib/snapshots --address /run/snapshots.sock",
    )
    configuration = commands.add(
        "config",
        _config,
        "print or check the configuration of serve",
        settings,
        example="snapshotter config dump --log-level debug",
    )
    configuration.add_argument(
        "what",
        choices=("default", "dump", "check"),
        help="a file with the defaults; what is in force, and where from; or nothing, if it is right",
    )
    commands.add(
        "ping",
        _ping,
        "ask whether a daemon serves its store",
        place,
        example="snapshotter ping --address /run/snapshots.sock",
    )
    events = commands.add(
        "events",
        _events,
        "show what a daemon's log tells, of one snapshot or of all",
        arguments.JSON,
        example="snapshotter events web --log /var/log/snapshots.log",
    )
    events.add_argument("key", metavar="KEY", nargs="?", help="one that it has, or had before it was committed")
    events.add_argument("--log", metavar="FILE", help="the log; by default what is piped in, as by journalctl")
    events.add_argument("--follow", action="store_true", help="go on with what is written to the file from now on")
    setup = commands.add("setup", None, "print what containerd and systemd have to know of the daemon")
    targets = arguments.Commands(setup, "WHAT")
    to_containerd = targets.add(
        "containerd",
        _setup_containerd,
        "print or write a file for containerd's configuration, or check what is in force",
        place,
        example="snapshotter setup containerd --cri",
    )
    to_containerd.add_argument("--name", default="btrfs-snapshotter", help="what containerd calls it (%(default)s)")
    to_containerd.add_argument("--cri", action="store_true", help="make it the snapshotter of Kubernetes")
    to_containerd.add_argument("--containerd", metavar="PATH", default="containerd", help="the program to ask")
    to_containerd.add_argument(
        "--containerd-config", metavar="FILE", default="/etc/containerd/config.toml", help="by default %(default)s"
    )
    to_containerd.add_argument(
        "--config-version", type=int, choices=(2, 3, 4), help="of containerd's configuration, instead of asking it"
    )
    to_containerd.add_argument("--write", metavar="FILE", help="write the file instead of printing it")
    to_containerd.add_argument(
        "--check",
        metavar="FILE",
        nargs="?",
        const="",
        help="name what a `containerd config dump` lacks, a FILE or - or of the program; 1 if anything",
    )
    to_systemd = targets.add(
        "systemd",
        _setup_systemd,
        "print or write the units of the daemon",
        place,
        example="snapshotter setup systemd --root /var/lib/snapshots",
    )
    to_systemd.add_argument("--write", metavar="DIR", help="write them there, instead of printing them")


def _serve(parsed: argparse.Namespace) -> None:
    loaded = _settings(parsed).config
    from snapshotter.daemon import log, process
    from snapshotter.daemon.systemd import Systemd

    gc.enable()
    log.write(sys.stderr, loaded.log_format, loaded.log_level)
    process.serve(loaded, Systemd(os.environ))


def _config(parsed: argparse.Namespace) -> None:
    from snapshotter.daemon import config

    if parsed.what == "default":
        print(config.default(), end="")
        return
    loaded = _settings(parsed)
    if parsed.what == "dump":
        print(config.dump(loaded), end="")


def _ping(parsed: argparse.Namespace) -> None:
    address = _settings(parsed).config.address
    from snapshotter.client import Client

    with Client(address, timeout=PING_SECONDS) as client:
        if not client.serving():
            raise UnavailableError(f"the daemon at {address!r} is opening its store, or its filesystem failed")
    print(f"{printable(address)} serves")
