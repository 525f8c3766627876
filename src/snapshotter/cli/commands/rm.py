"""
``snapshotter rm`` and ``cleanup``.
"""

import argparse
import contextlib
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from pybtrfs import subvolume
from snapshotter.analysis import inventory, space
from snapshotter.cli import arguments, keys, output, protection, waiting
from snapshotter.cli.codes import DONE, FAILED, complain, report
from snapshotter.cli.confirmation import agreed
from snapshotter.cli.progress import with_progress
from snapshotter.contract import Snapshotter
from snapshotter.errors import Error, UnavailableError, quoted
from snapshotter.store import holding_mounts
from snapshotter.store.layout import QUARANTINE

if TYPE_CHECKING:
    from snapshotter.client import Client


def add(commands: arguments.Commands) -> None:
    rm = commands.add("rm", _rm, arguments.KEYS, arguments.BYTES, arguments.TIMEOUT, example="snapshotter rm web web-2")
    rm.add_argument("--no-wait", action="store_true", help="free the space in the background")
    rm.add_argument("--dry-run", action="store_true", help="only print how many bytes would be freed, as `frees` does")
    rm.add_argument(
        "--force", action="store_true", help="on a store of containerd, remove snapshots that containerd does not know"
    )
    rm.add_argument(
        "--yes", action="store_true", help="remove without asking, after part of a key or with --containerd-is-gone"
    )
    protection.add_flags(rm)
    commands.add("cleanup", _cleanup, arguments.TIMEOUT, example="snapshotter cleanup")


def _rm(parsed: argparse.Namespace) -> int:
    with arguments.reading(parsed) as reading:
        removed, code = _resolved(parsed, reading)
        if parsed.dry_run:
            if code == DONE:
                print(output.amount(parsed)(space.frees(reading, removed, with_progress)))
            return code
        root = reading.root
        client = reading.opened.ownership.client
        entries = inventory.take(reading, measured=False).entries
    parents = {key: entry.info.parent for key, entry in entries.items()}
    refused = protection.refusals(parsed, client, [key for key in removed if key in entries], parents)
    meant = [key for key in removed if key not in {*parsed.keys, *refused}]
    if meant and not parsed.yes and not agreed(f"remove {', '.join(map(quoted, meant))}?"):
        return FAILED
    names: dict[int, str] = {}
    with arguments.changing(parsed) as store:
        for key in sorted(removed, key=lambda key: _depth(entries, key), reverse=True):
            try:
                if key in refused:
                    raise refused[key]
                store.remove(key)
            except UnavailableError:
                raise  # the next key would wait as long
            except Error as error:
                failure = report(error)
                code = code or failure
            else:
                if (entry := entries.get(key)) and entry.volume:
                    names |= dict.fromkeys(entry.volume.subvolids, key)
        if not parsed.no_wait:
            _wait(root, names, store)
    return code


def _resolved(parsed: argparse.Namespace, store: Snapshotter) -> tuple[list[str], int]:
    """
    Return the keys to remove, and the exit code of the first that means no snapshot.
    """
    found: dict[str, None] = {}
    code = DONE
    for text in parsed.keys:
        try:
            found[keys.resolve(parsed, store, text)] = None
        except Error as error:
            failure = report(error)
            code = code or failure
    return list(found), code


def _depth(entries: Mapping[str, inventory.Entry], key: str) -> int:
    depth = 0
    while (entry := entries.get(key)) and entry.info.parent:
        depth, key = depth + 1, entry.info.parent
    return depth


def _cleanup(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as reading:
        root = reading.root
        pending = inventory.take(reading, measured=False).pending
    names = {}
    with contextlib.suppress(PermissionError):
        names = {deleted.id: "" for deleted in subvolume.iterate_deleted(root)}
    names |= {subvolid: volume.path for volume in pending for subvolid in volume.subvolids}
    with arguments.changing(parsed) as store:
        _wait(root, names, store)


def _wait(root: str, names: Mapping[int, str], store: "Snapshotter | Client") -> None:
    """
    Wait until the space of subvolumes is free, and complain about the subvolumes in use.

    Args:
        names: The name to print of each subvolume, by its id.
    """
    held = waiting.wait(root, names, store.cleanup)
    if not held:
        return
    with Snapshotter(root, read_only=True) as reading:
        found = inventory.take(reading, measured=False)
    quarantined = [volume for volume in found.orphaned if volume.path.startswith(f"{QUARANTINE}/")]
    kept = held.intersection(subvolid for volume in quarantined for subvolid in volume.subvolids)
    use = _use(found.pending, held)
    for subvolids, cause in (
        (held - kept, f"is not free yet, because it is {use}: unmount it, then run `snapshotter cleanup`"),
        (kept, "stays in the quarantine, because a subvolume cannot be read: see `snapshotter doctor`"),
    ):
        if subvolids:
            which = ", ".join(sorted({quoted(names[subvolid]) for subvolid in subvolids}))
            complain(f"the space of {which} {cause}", DONE)


def _use(pending: Iterable[inventory.Volume], held: Collection[int]) -> str:
    """
    Return the use that keeps the subvolumes *held* from being destroyed, with the mounts of those that are pending.
    """
    mounts = [mount for volume in pending if not volume.subvolids.isdisjoint(held) for mount in volume.mounts]
    where = "; ".join(mount.text for mount in holding_mounts.locate(mounts))
    return f"mounted at {where}" if where else "mounted or in use"
