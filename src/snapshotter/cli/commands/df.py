"""
The commands that say what holds space and snapshots, and what is wrong; they change nothing, need no lock, and work
beside whoever has the store.
"""

import argparse

from snapshotter.cli import arguments, display, output
from snapshotter.cli.commands.diff import _diff
from snapshotter.cli.commands.du import _du
from snapshotter.cli.commands.why import _CONTAINERD, _why
from snapshotter.cli.progress import with_progress


def add(commands: arguments.Commands) -> None:
    commands.add(
        "df",
        _df,
        "show what a store takes of its filesystem, and how full that is",
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter df",
    )
    commands.add(
        "frees",
        _frees,
        "show how much comes back when snapshots are removed, all together",
        arguments.KEYS,
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter frees web web-2",
    )
    why = commands.add(
        "why",
        _why,
        "show what keeps a snapshot: children, mounts in any namespace, processes, and what containerd needs it for",
        arguments.KEY,
        arguments.JSON,
        example="snapshotter why base",
    )
    why.add_argument(
        "--containerd", metavar="SOCKET", default=_CONTAINERD, help="of the containerd to ask, by default %(default)s"
    )
    diff = commands.add(
        "diff",
        _diff,
        "list the paths that changed between two snapshots, one resting on the other",
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter diff base web",
    )
    diff.add_argument("key", metavar="KEY", help="what it was; or, alone, what is compared with its parent")
    diff.add_argument("other", metavar="OTHER", nargs="?", help="what became of it")
    du = commands.add(
        "du",
        _du,
        "show what is big in a snapshot, by directory, the largest first",
        arguments.KEY,
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter du web --depth 2",
    )
    du.add_argument("--depth", metavar="N", type=int, default=1, help="how far below the root (%(default)s)")


def _df(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import inventory, space

    with arguments.reading(parsed) as store:
        amounts = space.of_store(store, inventory.take(store))
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
    if whole.deleted:
        print(f"deleted subvolumes that are still being cleaned: {whole.deleted}")


def _frees(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import space

    with arguments.reading(parsed) as store:
        size = space.frees(store, parsed.keys, with_progress)
    if parsed.json:
        output.print_json({"keys": parsed.keys, "size": size})
    else:
        print(output.amount(parsed)(size))
