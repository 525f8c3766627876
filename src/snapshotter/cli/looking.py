"""
The commands that say what holds space and snapshots, and what is wrong; they change nothing, need no lock, and work
beside whoever has the store.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from snapshotter.cli import arguments, display, output
from snapshotter.cli.progress import tracked
from snapshotter.errors import InvalidArgumentError, UnavailableError
from snapshotter.text import printable

if TYPE_CHECKING:
    from snapshotter.analysis.references import References

_CONTAINERD = "/run/containerd/containerd.sock"


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
        size = space.frees(store, parsed.keys, tracked)
    if parsed.json:
        output.print_json({"keys": parsed.keys, "size": size})
    else:
        print(output.amount(parsed)(size))


def _why(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import holders

    with arguments.reading(parsed) as store:
        found = holders.find(store, parsed.key)
    references, unasked = _ask_containerd(parsed, store.client)
    if parsed.json:
        mounts = [mount._asdict() for mount in found.mounts]
        others = {"mounts": mounts, "containerd": references and output.values(references)}
        output.print_json(output.values(found) | others)
        return
    fields = [("child", name) for name in found.children]
    fields += [
        ("mount", f"{mount.path} in the namespace of process {mount.pid}{', read-only' if mount.read_only else ''}")
        for mount in found.mounts
    ]
    for process in found.processes:
        uses = [*process.uses, *([f"{process.open_files} open files"] if process.open_files else [])]
        fields.append(("process", f"{process.pid} {process.command} ({', '.join(uses)})"))
    if references:
        fields += [("container", name) for name in references.containers]
        fields += [("image", name) for name in references.images]
        fields += [("lease", name) for name in references.leases]
        fields += [("label", f"{name}={value}") for name, value in sorted(references.labels.items())]
        if not references.known:
            fields.append(("containerd", "does not know it, and removes it when it collects garbage next"))
    display.fields(fields)
    if not fields:
        print("nothing keeps it")
    if unasked:
        print(printable(f"containerd was not asked: {unasked}"), file=sys.stderr)


def _ask_containerd(parsed: argparse.Namespace, client: str) -> "tuple[References | None, str]":
    """
    What containerd says of a snapshot, or why it was not asked; neither for one that is none of its own.
    """
    if client == "local":
        return None, ""
    try:
        from snapshotter.analysis import references

        return references.find(parsed.containerd, client, parsed.key), ""
    except InvalidArgumentError:
        return None, ""
    except UnavailableError as error:
        return None, str(error)
    except ModuleNotFoundError as error:
        return None, f"{error.name} is missing: pip install 'btrfs-snapshotter[daemon]'"


def _diff(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import difference

    with arguments.reading(parsed) as store:
        if parsed.other is None:
            changes = difference.from_parent(store, parsed.key)
        else:
            changes = difference.between(store, parsed.key, parsed.other)
    if parsed.json:
        output.print_json([output.values(change) for change in changes])
        return
    amount = output.amount(parsed)
    rows = []
    for change in changes:
        size, before = ("" if each is None else amount(each) for each in (change.size, change.size_before))
        path = f"{change.path} from {change.source}" if change.source else change.path
        rows.append((change.change, change.type, before, size, path))
    display.table(("CHANGE", "TYPE", "BEFORE", "SIZE", "PATH"), rows)


def _du(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import directories

    with arguments.reading(parsed) as store:
        found = directories.measure(store, parsed.key, parsed.depth, tracked)
    found.sort(key=lambda directory: (-directory.exclusive - directory.shared, directory.path))
    if parsed.json:
        output.print_json([output.values(directory) for directory in found])
        return
    amount = output.amount(parsed)
    display.table(
        ("EXCLUSIVE", "SHARED", "INODES", "PATH"),
        [(amount(each.exclusive), amount(each.shared), str(each.inodes), each.path) for each in found],
    )
