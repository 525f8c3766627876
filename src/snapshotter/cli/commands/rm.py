"""
The commands that change a store.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pybtrfs import subvolume
from snapshotter.cli import arguments, output, waiting
from snapshotter.cli.codes import DONE, complain, report
from snapshotter.cli.commands.commit import _commit
from snapshotter.cli.commands.label import _change, _label
from snapshotter.cli.commands.prepare import _fork, _prepare, _view
from snapshotter.cli.progress import with_progress
from snapshotter.contract import Snapshotter
from snapshotter.errors import Error, quoted

if TYPE_CHECKING:
    from snapshotter.analysis.inventory import Entry
    from snapshotter.client import Client


def add(commands: arguments.Commands) -> None:
    for name, run, what in ("prepare", _prepare, "an active snapshot"), ("view", _view, "a read-only view"):
        new = commands.add(
            name,
            run,
            f"make {what}, and print how to mount it",
            arguments.KEY,
            arguments.LABELS,
            arguments.JSON,
            example=f"snapshotter {name} new base --label owner=me",
        )
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
        arguments.KEY,
        arguments.JSON,
        example="snapshotter fork web copy",
    )
    fork.add_argument("new", metavar="NEW", type=arguments.key)
    label = commands.add(
        "label",
        _label,
        "show the labels of a snapshot, or change some",
        arguments.KEY,
        arguments.JSON,
        example="snapshotter label web owner=me draft-",
    )
    label.add_argument("changes", metavar="K=V|K-", nargs="*", type=_change, help="set one, or take it away")
    rm = commands.add(
        "rm",
        _rm,
        "remove snapshots, children before what they rest on, and wait for their space",
        arguments.KEYS,
        arguments.BYTES,
        example="snapshotter rm web web-2",
    )
    rm.add_argument("--no-wait", action="store_true", help="let the space come back in the background")
    rm.add_argument("--dry-run", action="store_true", help="only say how much would come back, as `frees` does")
    commands.add(
        "cleanup",
        _cleanup,
        "destroy what is left of removed snapshots, and wait for their space",
        example="snapshotter cleanup",
    )


def _rm(parsed: argparse.Namespace) -> int:
    from snapshotter.analysis import inventory, space

    with arguments.reading(parsed) as reading:
        if parsed.dry_run:
            print(output.amount(parsed)(space.frees(reading, parsed.keys, with_progress)))
            return DONE
        root = reading.root
        entries = inventory.take(reading, measured=False).entries
    code = DONE
    keys: dict[int, str] = {}
    with arguments.changing(parsed) as store:
        for key in sorted(parsed.keys, key=lambda key: _depth(entries, key), reverse=True):
            try:
                store.remove(key)
            except Error as error:
                failure = report(error)
                code = code or failure
            else:
                if (entry := entries.get(key)) and entry.volume:
                    keys |= dict.fromkeys(entry.volume.subvolids, key)
        if not parsed.no_wait:
            _wait(root, keys, store)
    return code


def _depth(entries: "Mapping[str, Entry]", key: str) -> int:
    depth = 0
    while (entry := entries.get(key)) and entry.info.parent:
        depth, key = depth + 1, entry.info.parent
    return depth


def _cleanup(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import inventory

    with arguments.reading(parsed) as reading:
        root = reading.root
        pending = inventory.take(reading, measured=False).pending
    names = {deleted.id: "" for deleted in subvolume.iterate_deleted(root)}
    names |= {subvolid: volume.path for volume in pending for subvolid in volume.subvolids}
    with arguments.changing(parsed) as store:
        _wait(root, names, store)


def _wait(root: str, names: Mapping[int, str], store: "Snapshotter | Client") -> None:
    """
    Wait for the space of subvolumes, by id, and name those that are held.
    """
    if held := waiting.wait(root, names, store.cleanup):
        which = ", ".join(sorted({quoted(names[subvolid]) for subvolid in held}))
        complain(f"the space of {which} comes back later: it is mounted, or held otherwise", DONE)
