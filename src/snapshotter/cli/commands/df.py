"""
``snapshotter df`` and ``frees``.
"""

import argparse

from snapshotter.analysis import inventory, space
from snapshotter.cli import arguments, display, keys, output, used_by
from snapshotter.cli.progress import with_progress


def add(commands: arguments.Commands) -> None:
    shared = arguments.JSON, arguments.BYTES
    commands.add("df", _df, *shared, arguments.NO_TRUNC, example="snapshotter df")
    commands.add("frees", _frees, arguments.KEYS, *shared, example="snapshotter frees web web-2")


def _df(parsed: argparse.Namespace) -> None:
    with arguments.measuring(parsed) as store:
        taken = inventory.take(store)
        amounts = space.of_store(store, taken)
        whole = space.of_filesystem(store.root)
        users = used_by.find(store)
    of_kind = {
        name: [key for key, entry in taken.entries.items() if entry.info.kind.lower() == name] for name in amounts
    }
    if parsed.json:
        kinds = {name: output.values(each) | users.json(*of_kind[name]) for name, each in amounts.items()}
        output.print_json(
            kinds | {"filesystem": output.values(whole) | {"metadata_full": round(whole.metadata_full, 4)}}
        )
        return
    amount = output.amount(parsed)
    rows = []
    for name, each in amounts.items():
        row = (name, str(each.count), amount(each.size), amount(each.reclaimable))
        rows.append((*row, users.count(of_kind[name])) if users.asked else row)
    headings = ("TYPE", "COUNT", "SIZE", "RECLAIMABLE", *(["USED BY"] if users.asked else []))
    display.table(headings, rows, whole=parsed.no_trunc)
    print()
    parts = [("devices", whole.size, whole.allocated)]
    parts += [(f"{group.type}, {group.profile}", group.size, group.used) for group in whole.block_groups]
    display.table(
        ("FILESYSTEM", "SIZE", "USED", "FULL"),
        [(name, amount(size), amount(used), f"{used / size:.0%}") for name, size, used in parts],
        whole=parsed.no_trunc,
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
