"""
``snapshotter df`` and ``frees``.
"""

import argparse

from snapshotter.analysis import inventory, space
from snapshotter.cli import arguments, display, keys, output
from snapshotter.cli.progress import with_progress


def add(commands: arguments.Commands) -> None:
    shared = arguments.JSON, arguments.BYTES
    commands.add("df", _df, *shared, example="snapshotter df")
    commands.add("frees", _frees, arguments.KEYS, *shared, example="snapshotter frees web web-2")


def _df(parsed: argparse.Namespace) -> None:
    with arguments.measuring(parsed) as store:
        taken = inventory.take(store)
        amounts = space.of_store(store, taken)
        whole = space.of_filesystem(store.root)
    if parsed.json:
        kinds = {name: output.values(each) for name, each in amounts.items()}
        output.print_json(
            kinds | {"filesystem": output.values(whole) | {"metadata_full": round(whole.metadata_full, 4)}}
        )
        return
    amount = output.amount(parsed)
    display.table(
        ("TYPE", "COUNT", "SIZE", "RECLAIMABLE"),
        [(name, str(each.count), amount(each.size), amount(each.reclaimable)) for name, each in amounts.items()],
    )
    print()
    parts = [("devices", whole.size, whole.allocated)]
    parts += [(f"{group.type}, {group.profile}", group.size, group.used) for group in whole.block_groups]
    display.table(
        ("FILESYSTEM", "SIZE", "USED", "FULL"),
        [(name, amount(size), amount(used), f"{used / size:.0%}") for name, size, used in parts],
    )
    print(f"unallocated {amount(whole.unallocated)}, available {amount(whole.available)}")
    if broken := sum(bool(entry.problem) for entry in taken.entries.values()):
        print(f"snapshots that cannot be used or measured: {broken}; `snapshotter doctor` names them")
    if whole.deleted:
        print(f"deleted subvolumes that the kernel has yet to clean: {whole.deleted}")


def _frees(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        removed = [keys.resolve(parsed, store, text) for text in parsed.keys]
        size = space.frees(store, removed, with_progress)
    if parsed.json:
        output.print_json({"keys": removed, "size": size})
    else:
        print(output.amount(parsed)(size))
