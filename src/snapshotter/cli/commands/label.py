"""
``snapshotter label``.
"""

import argparse

from snapshotter.cli import arguments, keys, output
from snapshotter.model import Info, Kind
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    label = commands.add(
        "label",
        _label,
        arguments.KEY,
        arguments.JSON,
        arguments.TIMEOUT,
        example="snapshotter label web owner=me draft-",
    )
    label.add_argument("changes", metavar="K=V|K-", nargs="*", type=_change, help="set or remove a label")


def _change(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if equals:
        return key, value
    if not text.endswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither KEY=VALUE nor KEY-")
    return text[:-1], ""


def _label(parsed: argparse.Namespace) -> None:
    if parsed.changes:
        with arguments.changing(parsed) as store:
            labels = dict(parsed.changes)
            key = keys.resolve(parsed, store, parsed.key)
            info = store.update(Info(Kind.ACTIVE, key, labels=labels), *(f"labels.{name}" for name in labels))
    else:
        with arguments.reading(parsed) as store:
            info = store.stat(keys.resolve(parsed, store, parsed.key))
    if parsed.json:
        output.print_json(output.described(info))
    elif not parsed.changes:
        for key, value in sorted(info.labels.items()):
            print(printable(f"{key}={value}"))
