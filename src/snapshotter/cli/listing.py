"""
The commands that show what there is; they change nothing, need no lock, and work beside whoever has the store.
"""

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from snapshotter.analysis import family
from snapshotter.cli import arguments, display, output
from snapshotter.errors import DataLossError, NotFoundError, quoted
from snapshotter.model import Info

if TYPE_CHECKING:
    from snapshotter.analysis.inventory import Entry


class _Column(NamedTuple):
    """
    A column of ls.

    Attributes:
        of: The value that rows are sorted by; None stands first, and is shown as nothing.
    """

    of: Callable[[Any], Any]
    text: Callable[[Any], str] = str


_OF_INFO = {
    "key": _Column(lambda info: info.name),
    "kind": _Column(lambda info: info.kind),
    "parent": _Column(lambda info: info.parent),
    "created": _Column(lambda info: info.created, output.time),
    "updated": _Column(lambda info: info.updated, output.time),
    "labels": _Column(lambda info: ",".join(f"{name}={value}" for name, value in sorted(info.labels.items()))),
}
_OF_ENTRY = {
    "size": _Column(lambda entry: entry.usage and entry.usage.size),
    "inodes": _Column(lambda entry: entry.usage and entry.usage.inodes),
    "children": _Column(lambda entry: entry.children),
    "mounted": _Column(lambda entry: entry.mounted, lambda mounted: "yes" if mounted else ""),
    "subvolid": _Column(lambda entry: entry.volume and entry.volume.info.id),
    "problem": _Column(lambda entry: entry.problem),
}
_SHOWN = ["key", "kind", "parent", "created"]


def add(commands: arguments.Commands) -> None:
    mounts = commands.add(
        "mounts",
        _mounts,
        "print how to mount an active snapshot or a view",
        arguments.KEY,
        arguments.JSON,
        example="snapshotter mounts web /mnt | sh",
    )
    mounts.add_argument("target", metavar="TARGET", nargs="?", default="TARGET", help="where")
    ls = commands.add(
        "ls",
        _ls,
        "list snapshots",
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter ls 'kind==active,labels.owner==me' 'parent==base' --columns=key,size --sort=-size",
    )
    ls.add_argument("filters", metavar="FILTER", nargs="*", help="containerd's filters; one of them has to match")
    ls.add_argument(
        "--columns",
        metavar="NAMES",
        type=_columns,
        default=_SHOWN,
        help=f"of {', '.join([*_OF_INFO, *_OF_ENTRY])}; by default {','.join(_SHOWN)}",
    )
    ls.add_argument(
        "--sort", metavar="COLUMN", type=_sort, default="key", help="or --sort=-COLUMN, for the largest first"
    )
    commands.add(
        "tree",
        _tree,
        "show snapshots below their parents, with what each added and all that rests on it did",
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter tree --bytes",
    )
    commands.add(
        "info",
        _info,
        "describe one snapshot",
        arguments.KEY,
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter info web",
    )
    commands.add(
        "usage",
        _usage,
        "measure what snapshots add to their parents",
        arguments.KEYS,
        arguments.JSON,
        arguments.BYTES,
        example="snapshotter usage web base",
    )


def _columns(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in _OF_INFO and name not in _OF_ENTRY:
            raise argparse.ArgumentTypeError(f"{name!r} is no column")
    return names


def _sort(text: str) -> str:
    _columns(text.removeprefix("-"))
    return text


def _mounts(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        output.print_mounts(parsed, store.mounts(parsed.key))


def _ls(parsed: argparse.Namespace) -> None:
    sort: str = parsed.sort.removeprefix("-")
    measured = not _OF_ENTRY.keys().isdisjoint([sort, *([] if parsed.json else parsed.columns)])
    entries: dict[str, Entry] = {}
    with arguments.reading(parsed) as store:
        infos = sorted(store.walk(*parsed.filters), key=lambda info: info.name)
        if measured:
            from snapshotter.analysis import inventory

            entries = inventory.take(store).entries
            infos = [info for info in infos if info.name in entries]

    def value(info: Info, name: str) -> Any:
        return _OF_INFO[name].of(info) if name in _OF_INFO else _OF_ENTRY[name].of(entries[info.name])

    def order(info: Info) -> tuple[bool, Any]:
        found = value(info, sort)
        return found is not None, found

    if parsed.sort != "key":
        infos.sort(key=order, reverse=parsed.sort != sort)
    if parsed.json:
        output.print_json([output.described(info) for info in infos])
        return
    rows = [[_text(parsed, name, value(info, name)) for name in parsed.columns] for info in infos]
    display.table([name.upper() for name in parsed.columns], rows)


def _text(parsed: argparse.Namespace, name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "size":
        return output.amount(parsed)(value)
    return (_OF_INFO.get(name) or _OF_ENTRY[name]).text(value)


def _tree(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import inventory

    with arguments.reading(parsed) as store:
        entries = inventory.take(store).entries
    lines = list(family.walk(entry.info for entry in entries.values()))
    totals = family.totals(lines, {key: entry.usage.size if entry.usage else 0 for key, entry in entries.items()})
    if parsed.json:
        output.print_json(
            [
                output.detailed(entries[info.name]) | {"depth": depth, "total": totals[info.name]}
                for depth, _, info in lines
            ]
        )
        return
    amount = output.amount(parsed)
    rows = []
    for _, branch, info in lines:
        entry = entries[info.name]
        lost = "lost" if entry.problem else ""
        size, inodes = (amount(entry.usage.size), str(entry.usage.inodes)) if entry.usage else (lost, "")
        state = "broken" if entry.problem else "mounted" if entry.mounted else ""
        rows.append((branch + info.name, str(info.kind), size, amount(totals[info.name]), inodes, state))
    display.table(("KEY", "KIND", "SIZE", "TOTAL", "INODES", "STATE"), rows)


def _info(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import inventory

    with arguments.reading(parsed) as store:
        store.stat(parsed.key)
        entries = inventory.take(store, measured=False).entries
        entry = entries.get(parsed.key)
        if entry is None:
            raise NotFoundError(f"snapshot {quoted(parsed.key)} was removed or committed meanwhile")
        with contextlib.suppress(DataLossError):  # its own subvolume or its parent's is lost
            entry = entry._replace(usage=store.usage(parsed.key))
    children = [other.info.name for other in entries.values() if other.info.parent == parsed.key]
    if parsed.json:
        output.print_json(output.detailed(entry) | {"children": children})
        return
    amount = output.amount(parsed)
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


def _usage(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        usages = [(key, store.usage(key)) for key in parsed.keys]
    if parsed.json:
        output.print_json([{"key": key, "size": usage.size, "inodes": usage.inodes} for key, usage in usages])
    else:
        amount = output.amount(parsed)
        rows = [(key, amount(usage.size), str(usage.inodes)) for key, usage in usages]
        display.table(("KEY", "SIZE", "INODES"), rows)
