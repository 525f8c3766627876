"""
``snapshotter ls``.
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from snapshotter.cli import arguments, display, output, used_by
from snapshotter.errors import InvalidArgumentError
from snapshotter.model import Info
from snapshotter.text import nearest

if TYPE_CHECKING:
    from snapshotter.analysis.inventory import Entry


class _Column(NamedTuple):
    """
    A column of ls.

    Attributes:
        of: Returns the value of a row, by which rows are sorted; None sorts first, and its cell is empty.
        text: Formats the value.
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
_BROKEN = "lost"  # in place of the size of a snapshot that cannot be measured; the column "problem" says why
_SHOWN = ["key", "kind", "parent", "created"]
_USED_BY = "used-by"  # also shown by default if containerd answers

_NAMES = (*_OF_INFO, *_OF_ENTRY, _USED_BY)


def add(commands: arguments.Commands) -> None:
    ls = commands.add(
        "ls",
        _ls,
        arguments.JSON,
        arguments.BYTES,
        arguments.NO_TRUNC,
        example="snapshotter ls 'kind==active,labels.owner==me' 'parent==base' --columns=key,size --sort=-size",
    )
    ls.add_argument(
        "filters",
        metavar="FILTER",
        nargs="*",
        type=_filter,
        help="filter in containerd's syntax; a snapshot has to match one of them",
    )
    ls.add_argument(
        "--columns",
        metavar="NAMES",
        type=_columns,
        help=f"columns to show (default: {','.join(_SHOWN)}, and {_USED_BY} if containerd answers), "
        f"of {', '.join(_NAMES)}",
    )
    ls.add_argument(
        "--sort",
        metavar="COLUMN",
        type=_sort,
        default="key",
        help="column to sort by; --sort=-COLUMN sorts the largest first",
    )


def _filter(text: str) -> str:
    """
    Return *text* unless it asks for what no snapshot has. containerd accepts such filters, and finds nothing.
    """
    from snapshotter.contract import filters  # slow to import

    try:
        filters.check(text)
    except InvalidArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _columns(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in _NAMES:
            known = nearest(name, _NAMES)
            raise argparse.ArgumentTypeError(f"{name!r} is not a column: did you mean {known!r}?")
    return names


def _sort(text: str) -> str:
    _columns(text.removeprefix("-"))
    return text


def _ls(parsed: argparse.Namespace) -> None:
    sort: str = parsed.sort.removeprefix("-")
    columns: list[str] = parsed.columns or _SHOWN
    measured = not _OF_ENTRY.keys().isdisjoint([sort, *([] if parsed.json else columns)])
    entries: dict[str, Entry] = {}
    with arguments.measuring(parsed) if measured else arguments.reading(parsed) as store:
        infos = sorted(store.walk(*parsed.filters), key=lambda info: info.name)
        if measured:
            from snapshotter.analysis import inventory

            entries = inventory.take(store).entries
            infos = [info for info in infos if info.name in entries]
        asking = parsed.json or not parsed.columns or _USED_BY in (sort, *columns)
        users = used_by.find(store) if asking else used_by.UsedBy(None)
    if users.asked and not parsed.columns:
        columns = [*columns, _USED_BY]

    def value(info: Info, name: str) -> Any:
        if name == _USED_BY:
            return users.text(info.name) or None
        return _OF_INFO[name].of(info) if name in _OF_INFO else _OF_ENTRY[name].of(entries[info.name])

    def order(info: Info) -> tuple[bool, Any]:
        found = value(info, sort)
        return found is not None, found

    if parsed.sort != "key":
        infos.sort(key=order, reverse=parsed.sort != sort)
    if parsed.json:
        output.print_json([output.described(info) | users.json(info.name) for info in infos])
        return
    rows = [
        [
            _BROKEN if name == "size" and _is_broken(entries[info.name]) else _text(parsed, name, value(info, name))
            for name in columns
        ]
        for info in infos
    ]
    display.table([name.upper().replace("-", " ") for name in columns], rows, whole=parsed.no_trunc)


def _is_broken(entry: "Entry") -> bool:
    return bool(entry.problem) and not entry.usage


def _text(parsed: argparse.Namespace, name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "size":
        return output.amount(parsed)(value)
    return value if name == _USED_BY else (_OF_INFO.get(name) or _OF_ENTRY[name]).text(value)
