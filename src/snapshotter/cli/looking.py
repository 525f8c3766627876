"""
The commands that change nothing, need no lock, and work beside whoever has the store.
"""

import argparse
from dataclasses import asdict

from snapshotter import display
from snapshotter.cli import arguments, output
from snapshotter.errors import DataLossError, NotFoundError, quoted


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
    info = commands.add(
        "info", _info, "describe one snapshot", arguments.JSON, arguments.BYTES, example="snapshotter info web"
    )
    info.add_argument("key", metavar="KEY")
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


def _info(parsed: argparse.Namespace) -> None:
    from snapshotter import inventory

    with arguments.reading(parsed) as store:
        store.stat(parsed.key)
        entries = inventory.take(store).entries
    entry = entries.get(parsed.key)
    if entry is None:
        raise NotFoundError(f"snapshot {quoted(parsed.key)} was removed or committed meanwhile")
    children = [info.name for info in (other.info for other in entries.values()) if info.parent == parsed.key]
    if parsed.json:
        output.print_json(output.detailed(entry) | {"children": children})
        return
    amount = str if parsed.bytes else display.size
    info, volume, usage = entry.info, entry.volume, entry.usage
    fields = [
        ("key", info.name),
        ("kind", str(info.kind)),
        ("parent", info.parent),
        ("created", output.time(info.created)),
        ("updated", output.time(info.updated)),
        *(("label", f"{name}={value}") for name, value in sorted(info.labels.items())),
        ("size", amount(usage.size) if usage else ""),
        ("inodes", str(usage.inodes) if usage else ""),
        ("subvolume", f"{volume.path}, id {volume.info.id}" if volume else ""),
        ("mounted", "yes" if entry.mounted else "no"),
        *(("child", name) for name in children),
        ("problem", entry.problem),
    ]
    display.fields((name, value) for name, value in fields if value)


def _df(parsed: argparse.Namespace) -> None:
    from snapshotter import inventory, space

    with arguments.reading(parsed) as store:
        amounts = space.of_store(store, inventory.take(store))
        whole = space.of_filesystem(store.root)
    if parsed.json:
        kinds = {name: asdict(each) for name, each in amounts.items()}
        output.print_json(kinds | {"filesystem": asdict(whole) | {"metadata_full": round(whole.metadata_full, 4)}})
        return
    amount = str if parsed.bytes else display.size
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
        print(f"{whole.deleted} deleted subvolumes are being cleaned")


def _frees(parsed: argparse.Namespace) -> None:
    from snapshotter import space

    with arguments.reading(parsed) as store:
        size = space.frees(store, parsed.keys)
    if parsed.json:
        output.print_json({"keys": parsed.keys, "size": size})
    else:
        print(size if parsed.bytes else display.size(size))


def _usage(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        usages = [(key, store.usage(key)) for key in parsed.keys]
    if parsed.json:
        output.print_json([{"key": key, "size": usage.size, "inodes": usage.inodes} for key, usage in usages])
    else:
        amount = str if parsed.bytes else display.size
        rows = [(key, amount(usage.size), str(usage.inodes)) for key, usage in usages]
        display.table(("KEY", "SIZE", "INODES"), rows)
