"""
``snapshotter commit``.
"""

import argparse

from snapshotter.cli import arguments, keys


def add(commands: arguments.Commands) -> None:
    commit = commands.add(
        "commit",
        _commit,
        arguments.LABELS,
        arguments.TIMEOUT,
        example="snapshotter commit release web --label owner=me",
    )
    commit.add_argument("name", metavar="NAME", type=arguments.key, help="name of the committed snapshot")
    commit.add_argument("key", metavar="KEY", type=arguments.key, help="key of the active snapshot")


def _commit(parsed: argparse.Namespace) -> None:
    with arguments.creating(parsed) as store:
        store.commit(parsed.name, keys.resolve(parsed, store, parsed.key), dict(parsed.label))
