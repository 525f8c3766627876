"""
``snapshotter prepare``, ``view`` and ``fork``.
"""

import argparse

from snapshotter.cli import arguments, keys, output


def add(commands: arguments.Commands) -> None:
    for name, run in ("prepare", _prepare), ("view", _view):
        new = commands.add(
            name,
            run,
            arguments.KEY,
            arguments.LABELS,
            arguments.JSON,
            arguments.TIMEOUT,
            example=f"snapshotter {name} new base --label owner=me",
        )
        new.add_argument(
            "parent",
            metavar="PARENT",
            type=arguments.parent,
            nargs="?",
            default="",
            help="committed snapshot to start from (default: empty)",
        )
    fork = commands.add(
        "fork", _fork, arguments.KEY, arguments.JSON, arguments.TIMEOUT, example="snapshotter fork web copy"
    )
    fork.add_argument("new", metavar="NEW", type=arguments.key, help="key of the copy")


def _prepare(parsed: argparse.Namespace) -> None:
    with arguments.creating(parsed) as store:
        output.print_mounts(parsed, store.prepare(parsed.key, keys.parent(parsed, store), dict(parsed.label)))


def _view(parsed: argparse.Namespace) -> None:
    with arguments.creating(parsed) as store:
        output.print_mounts(parsed, store.view(parsed.key, keys.parent(parsed, store), dict(parsed.label)))


def _fork(parsed: argparse.Namespace) -> None:
    with arguments.creating(parsed) as store:
        output.print_mounts(parsed, store.fork(keys.resolve(parsed, store, parsed.key), parsed.new))
