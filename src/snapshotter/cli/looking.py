"""
The commands that change nothing, need no lock, and work beside whoever has the store.
"""

import argparse

from snapshotter import display
from snapshotter.cli import arguments, output
from snapshotter.errors import DataLossError


def add(commands: arguments.Commands) -> None:
    mounts = commands.add(
        "mounts",
        _mounts,
        "print how to mount an active snapshot or a view",
        arguments.JSON,
        example="snapshotter mounts web /mnt | sh",
    )
    mounts.add_argument("key", metavar="KEY")
    mounts.add_argument("target", metavar="TARGET", nargs="?", default="TARGET", help="where")
    ls = commands.add(
        "ls",
        _ls,
        "list snapshots",
        arguments.JSON,
        example="snapshotter ls 'kind==active,labels.owner==me' 'parent==base'",
    )
    ls.add_argument("filters", metavar="FILTER", nargs="*", help="containerd's filters; one of them has to match")
    commands.add("tree", _tree, "show snapshots below their parents, with sizes", arguments.JSON, arguments.BYTES)
    commands.add(
        "usage", _usage, "measure what snapshots add to their parents", arguments.KEYS, arguments.JSON, arguments.BYTES
    )


def _mounts(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        output.print_mounts(parsed, store.mounts(parsed.key))


def _ls(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        infos = sorted(store.walk(*parsed.filters), key=lambda info: info.name)
    if parsed.json:
        output.print_json([output.described(info) for info in infos])
    else:
        rows = [(info.name, str(info.kind), info.parent, output.time(info.created)) for info in infos]
        display.table(("KEY", "KIND", "PARENT", "CREATED"), rows)


def _tree(parsed: argparse.Namespace) -> None:
    found = []
    with arguments.reading(parsed) as store:
        for depth, lines, info in display.family(store.walk()):
            try:
                usage = store.usage(info.name)
            except DataLossError:
                usage = None  # doctor says why
            found.append((depth, lines, info, usage))
    if parsed.json:
        output.print_json(
            [
                output.described(info)
                | {"depth": depth, "size": usage and usage.size, "inodes": usage and usage.inodes}
                for depth, _, info, usage in found
            ]
        )
    else:
        display.tree(((lines, info, usage) for _, lines, info, usage in found), in_bytes=parsed.bytes)


def _usage(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        usages = [(key, store.usage(key)) for key in parsed.keys]
    if parsed.json:
        output.print_json([{"key": key, "size": usage.size, "inodes": usage.inodes} for key, usage in usages])
    else:
        amount = str if parsed.bytes else display.size
        rows = [(key, amount(usage.size), str(usage.inodes)) for key, usage in usages]
        display.table(("KEY", "SIZE", "INODES"), rows)
