"""
The commands that change a store.
"""

import argparse

from snapshotter import display
from snapshotter.cli import arguments, output
from snapshotter.cli.codes import DONE, report
from snapshotter.errors import Error
from snapshotter.snapshot import Info, Kind


def add(commands: arguments.Commands) -> None:
    for name, run, what in ("prepare", _prepare, "an active snapshot"), ("view", _view, "a read-only view"):
        new = commands.add(
            name,
            run,
            f"make {what}, and print how to mount it",
            arguments.LABELS,
            arguments.JSON,
            example=f"snapshotter {name} new base --label owner=me",
        )
        new.add_argument("key", metavar="KEY", type=arguments.key)
        new.add_argument(
            "parent", metavar="PARENT", type=arguments.parent, nargs="?", default="", help="none for empty"
        )
    commit = commands.add(
        "commit",
        _commit,
        "freeze an active snapshot under a name",
        arguments.LABELS,
        example="snapshotter commit release web --label owner=me",
    )
    commit.add_argument("name", metavar="NAME", type=arguments.key)
    commit.add_argument("key", metavar="KEY", type=arguments.key)
    fork = commands.add(
        "fork",
        _fork,
        "copy an active snapshot while it runs, and print how to mount the copy",
        arguments.JSON,
        example="snapshotter fork web copy",
    )
    fork.add_argument("key", metavar="KEY", type=arguments.key)
    fork.add_argument("new", metavar="NEW", type=arguments.key)
    label = commands.add(
        "label",
        _label,
        "show the labels of a snapshot, or change some",
        arguments.JSON,
        example="snapshotter label web owner=me draft-",
    )
    label.add_argument("key", metavar="KEY", type=arguments.key)
    label.add_argument("changes", metavar="K=V|K-", nargs="*", type=_change, help="set one, or take it away")
    commands.add(
        "rm", _rm, "remove snapshots, and wait for their space", arguments.KEYS, example="snapshotter rm web web-2"
    )
    commands.add(
        "cleanup",
        _cleanup,
        "destroy what is left of removed snapshots, and wait for their space",
        example="snapshotter cleanup",
    )


def _prepare(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.prepare(parsed.key, parsed.parent, dict(parsed.label)))


def _view(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.view(parsed.key, parsed.parent, dict(parsed.label)))


def _commit(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        store.commit(parsed.name, parsed.key, dict(parsed.label))


def _fork(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.fork(parsed.key, parsed.new))


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
            info = store.update(Info(Kind.ACTIVE, parsed.key, labels=labels), *(f"labels.{key}" for key in labels))
    else:
        with arguments.reading(parsed) as store:
            info = store.stat(parsed.key)
    if parsed.json:
        output.print_json(output.described(info))
    elif not parsed.changes:
        for key, value in sorted(info.labels.items()):
            print(display.printable(f"{key}={value}"))


def _rm(parsed: argparse.Namespace) -> int:
    code = DONE
    with arguments.changing(parsed) as store:
        for key in parsed.keys:
            try:
                store.remove(key)
            except Error as error:
                failure = report(error)
                code = code or failure
        store.cleanup()
    return code


def _cleanup(parsed: argparse.Namespace) -> None:
    with arguments.changing(parsed) as store:
        store.cleanup()
