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
    events.add_argument(
        "key", metavar="KEY", nargs="?", help="present key, or the key before the commit (default: all snapshots)"
    )
    events.add_argument("--log", metavar="FILE", help="log file (default: standard input, as piped in by journalctl)")
    events.add_argument("--trace", metavar="ID", help="only events of calls with this trace or span id")
    events.add_argument(
        "--follow", action="store_true", help="wait for new events of the log file, also after its rotation"
    )


def _events(parsed: argparse.Namespace) -> None:
    if parsed.log is None and os.isatty(0):
        raise InvalidArgumentError(
            "no log is given: use --log FILE, or pipe a log in, as in `journalctl -u UNIT | snapshotter events`"
        )
    gc.enable()
    texts = log.read("/dev/stdin") if parsed.log is None else log.read(parsed.log, follow=parsed.follow)
    lines = (line for text in texts if (line := log.parse(text.rstrip("\n"))))
    selected = log.of_key(lines, parsed.key) if parsed.key is not None else lines
    for line in log.of_trace(selected, parsed.trace) if parsed.trace is not None else selected:
        if parsed.json:
            print(json.dumps({"time": line.time, "level": line.level, "event": line.event, **line.fields}), flush=True)
        else:
            fields = " ".join(f"{name}={value}" for name, value in line.fields.items())
            print(printable(f"{line.time} {line.level:7} {line.event:12} {fields}"), flush=True)
