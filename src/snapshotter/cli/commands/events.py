"""
``snapshotter events``.
"""

import argparse
import gc
import json
import os

from snapshotter.cli import arguments
from snapshotter.daemon import log
from snapshotter.errors import InvalidArgumentError
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    events = commands.add(
        "events", _events, arguments.JSON, example="snapshotter events web --log /var/log/snapshots.log"
    )
    events.add_argument("key", metavar="KEY", nargs="?", help="one that it has, or had before it was committed")
    events.add_argument("--log", metavar="FILE", help="the log; by default what is piped in, as by journalctl")
    events.add_argument("--follow", action="store_true", help="go on with what is written to the file from now on")


def _events(parsed: argparse.Namespace) -> None:
    if parsed.log is None and os.isatty(0):
        raise InvalidArgumentError("no log is given: use --log FILE, or pipe one in, as in `journalctl -u UNIT |`")
    gc.enable()
    texts = log.read("/dev/stdin") if parsed.log is None else log.read(parsed.log, follow=parsed.follow)
    lines = (line for text in texts if (line := log.parse(text.rstrip("\n"))))
    for line in log.of_key(lines, parsed.key) if parsed.key is not None else lines:
        if parsed.json:
            print(json.dumps({"time": line.time, "level": line.level, "event": line.event, **line.fields}), flush=True)
        else:
            fields = " ".join(f"{name}={value}" for name, value in line.fields.items())
            print(printable(f"{line.time} {line.level:7} {line.event:12} {fields}"), flush=True)
