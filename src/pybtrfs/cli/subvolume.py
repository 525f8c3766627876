"""
``pybtrfs subvolume``: create, delete, list and show subvolumes, as ``btrfs subvolume`` does.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from pybtrfs import filesystem, qgroup, subvolume
from pybtrfs.cli.arguments import add_command, add_group, add_json
from pybtrfs.cli.output import DONE, column, complain, json_value, local_time, write, write_json, write_lines
from pybtrfs.errors import not_subvolume
from pybtrfs.items import FS_TREE_OBJECTID
from pybtrfs.path import opened
from pybtrfs.tree_search import is_permitted

if TYPE_CHECKING:
    from collections.abc import Callable

    from pybtrfs.cli.arguments import Commands

_PLAIN = ("ID", "gen", "cgen", "parent", "top level", "path")  # columns of numbers and texts
_SORT_KEYS = {"rootid": "ID", "gen": "gen", "ogen": "cgen", "path": "path"}


def add_commands(commands: Commands) -> None:
    """
    Declare the commands.
    """
    group = add_group(commands, "subvolume", "create, delete, list and show subvolumes")

    listing = add_command(group, "list", _list, "list subvolumes; without CAP_SYS_ADMIN, as with --below", "PATH")
    listing.add_argument(
        "--below", action="store_true", help="list only subvolumes below the directory PATH, with paths from it"
    )
    for option, text in (
        ("-o", "list only the children of the subvolume that contains PATH"),
        ("-p", "show the id of the containing subvolume"),
        ("-c", "show the generation at creation"),
        ("-g", "no effect, because the generation is always shown"),
        ("-u", "show the uuid"),
        ("-q", "show the uuid of the snapshot's source"),
        ("-R", "show the received uuid"),
        ("-s", "list only snapshots, and show their creation time"),
        ("-r", "list only read-only subvolumes"),
        ("-d", "list only deleted subvolumes that are not cleaned yet"),
        ("-t", "print a table"),
    ):
        listing.add_argument(option, action="store_true", help=text)
    listing.add_argument(
        "--sort",
        metavar="KEY,...",
        type=_sort,
        default=[],
        help="sort by rootid, gen, ogen or path; - before a key reverses its order",
    )
    add_json(listing)

    add_json(add_command(group, "show", _show, "show a subvolume and its snapshots", "PATH"))

    create = add_command(group, "create", _create, "create empty subvolumes", "DEST+")
    snapshot = add_command(
        group, "snapshot", _snapshot, "create a snapshot at DEST, or in DEST if it is a directory", "SOURCE", "DEST"
    )
    snapshot.add_argument("-r", action="store_true", dest="read_only", help="make the snapshot read-only")
    snapshot.add_argument(
        "-R", "--recursive", action="store_true", help="snapshot nested subvolumes too, which is not atomic"
    )
    for parser in (create, snapshot):
        parser.add_argument(
            "-i",
            metavar="QGROUP",
            type=_qgroup,
            action="append",
            dest="qgroups",
            help="add the new subvolume to the qgroup, such as 1/5",
        )

    delete = add_command(
        group, "delete", _delete, "delete subvolumes; without CAP_SYS_ADMIN, file by file if necessary", "PATH+"
    )
    delete.add_argument("-c", "--commit-after", action="store_true", help="commit once after all deletions")
    delete.add_argument("-C", "--commit-each", action="store_true", help="commit after each deletion")
    delete.add_argument(
        "-i", "--subvolid", metavar="ID", type=int, help="delete the subvolume ID of the filesystem at PATH"
    )
    delete.add_argument("-R", "--recursive", action="store_true", help="delete nested subvolumes too")

    sync = add_command(group, "sync", _sync, "wait until the kernel has cleaned deleted subvolumes", "PATH")
    sync.add_argument("ids", metavar="ID", nargs="*", type=int, help="the deleted subvolumes, by default all")

    add_command(group, "get-root", _get_root, "print the path of the subvolume that contains PATH", "PATH")
    get_path = add_command(group, "get-path", _get_path, "print the path of the subvolume ID below the directory PATH")
    get_path.add_argument("subvolid", metavar="ID", type=int)
    get_path.add_argument("path", metavar="PATH")

    add_json(add_command(group, "get-default", _get_default, "show the default subvolume", "PATH"))
    set_default = add_command(group, "set-default", _set_default, "set the default subvolume")
    set_default.add_argument(
        "target", metavar="{PATH | ID PATH}", nargs="+", help="the subvolume, or its id and the path of the filesystem"
    )


def _sort(text: str) -> list[tuple[str, bool]]:
    keys = []
    for part in text.split(","):
        word = _SORT_KEYS.get(part.lstrip("+-"))
        if word is None:
            raise argparse.ArgumentTypeError(f"{part!r} is not a sort key: use {', '.join(_SORT_KEYS)}")
        keys.append((word, part.startswith("-")))
    return keys


def _qgroup(text: str) -> int:
    level, slash, number = text.rpartition("/")
    try:
        return qgroup.qgroupid(int(level) if slash else 0, int(number))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a qgroup, such as 1/5") from None


def _list(arguments: argparse.Namespace) -> None:
    # Hot path: of each entry, only the values that are shown or sorted by are computed.
    entries, values = _deleted(arguments.path) if arguments.d else _listed(arguments)
    for word, descending in reversed(arguments.sort):
        entries.sort(key=values[word], reverse=descending)
    words = ["ID", "gen"]
    words += ["cgen"] if arguments.c or arguments.s else []
    words += ["parent"] if arguments.p else []
    words += ["top level"]
    words += ["otime"] if arguments.s else []
    words += ["parent_uuid"] if arguments.q else []
    words += ["received_uuid"] if arguments.R else []
    words += ["uuid"] if arguments.u else []
    words += ["path"]
    if arguments.json:
        write_json([{word: json_value(values[word](entry)) for word in words} for entry in entries])
        return
    lines = []
    if arguments.t:
        lines += ["".join(f"{word}\t" for word in words), "".join(f"{'-' * len(word)}\t" for word in words)]
        template = "\t".join("%s\t" if word == "top level" else "%s" for word in words)
    else:
        template = " ".join(f"{word} %s" for word in words)
    columns = [values[word] if word in _PLAIN else _column(values[word]) for word in words]
    lines += map(template.__mod__, zip(*[map(value, entries) for value in columns], strict=True))
    write_lines(lines)


def _column(value: Callable[[Any], Any]) -> Callable[[Any], str]:
    return lambda entry: column(value(entry))


def _listed(arguments: argparse.Namespace) -> tuple[list[Any], dict[str, Callable[[Any], Any]]]:
    """
    Return the subvolumes to list, and functions that return the value of a column.
    """
    own, above = subvolume.get_id(arguments.path), ""
    below = arguments.below or not is_permitted(arguments.path)
    entries = list(subvolume.iterate_below(arguments.path) if below else subvolume.iterate(arguments.path))
    if not below and not arguments.o and own != FS_TREE_OBJECTID:
        above = subvolume.get_path(arguments.path, own) + "/"
    if arguments.o:
        entries = [entry for entry in entries if entry.info.parent_id == own]
    if arguments.s:
        entries = [entry for entry in entries if entry.info.parent_uuid]
    if arguments.r:
        entries = [entry for entry in entries if entry.info.read_only]
    return entries, {
        "ID": lambda entry: entry[1][0],
        "gen": lambda entry: entry[1].generation,
        "cgen": lambda entry: entry[1].otransid,
        "parent": lambda entry: entry[1][2],
        "top level": lambda entry: entry[1][2],
        "otime": lambda entry: entry[1].otime.astimezone(),
        "parent_uuid": lambda entry: entry[1].parent_uuid,
        "received_uuid": lambda entry: entry[1].received_uuid,
        "uuid": lambda entry: entry[1].uuid,
        "path": lambda entry: entry[0].removeprefix(above),
    }


def _deleted(path: str) -> tuple[list[Any], dict[str, Callable[[Any], Any]]]:
    """
    Return the deleted subvolumes, and functions that return the value of a column.
    """
    fixed: dict[str, Any] = dict.fromkeys(("cgen", "parent", "top level"), 0)
    fixed |= {**dict.fromkeys(("otime", "parent_uuid", "received_uuid", "uuid")), "path": "DELETED"}
    return list(subvolume.iterate_deleted(path)), {
        "ID": lambda entry: entry.id,
        "gen": lambda entry: entry.generation,
        **{word: partial(_fixed, value) for word, value in fixed.items()},
    }


def _fixed(value: Any, _: Any) -> Any:
    return value


def _show(arguments: argparse.Namespace) -> None:
    with subvolume.Subvolume(arguments.path) as opened:
        info = subvolume.get_info(opened)
        try:
            path = subvolume.get_path(opened, info.id) or "/"
            snapshots = [
                entry.path
                for entry in subvolume.iterate(opened)
                if info.uuid and entry.info.raw.parent_uuid == info.raw.uuid
            ]
        except PermissionError:
            path, snapshots = arguments.path, []
    values: list[tuple[str, str, Any]] = [
        ("Name", "\t\t\t", info.name or "<FS_TREE>"),
        ("UUID", "\t\t\t", info.uuid),
        ("Parent UUID", "\t\t", info.parent_uuid),
        ("Received UUID", "\t\t", info.received_uuid),
        ("Creation time", "\t\t", local_time(info.otime, info.raw.otime)),
        ("Subvolume ID", "\t\t", info.id),
        ("Generation", "\t\t", info.generation),
        ("Gen at creation", "\t", info.otransid),
        ("Parent ID", "\t\t", info.parent_id),
        ("Top level ID", "\t\t", info.parent_id),
        ("Flags", "\t\t\t", "readonly" if info.read_only else None),
        ("Send transid", "\t\t", info.stransid),
        ("Send time", "\t\t", local_time(info.stime, info.raw.stime)),
        ("Receive transid", "\t", info.rtransid),
        ("Receive time", "\t\t", local_time(info.rtime, info.raw.rtime)),
    ]
    if arguments.json:
        words = {word: json_value(value) for word, _, value in values}
        write_json({"path": path, **words, "Snapshots": snapshots})
        return
    write(path)
    for word, gap, value in values:
        write(f"\t{word}: {gap}{'-' if value is None else value}")
    write("\tSnapshot(s):")
    for name in snapshots:
        write(f"\t\t\t\t{name}")


def _create(arguments: argparse.Namespace) -> None:
    for dest in arguments.dest:
        subvolume.create(dest, inherit=_inherit(arguments))
        write(f"Create subvolume '{_named(dest)}'")


def _snapshot(arguments: argparse.Namespace) -> None:
    dest = arguments.dest
    if os.path.isdir(dest):
        dest = os.path.join(dest, os.path.basename(os.path.abspath(arguments.source)))
    subvolume.snapshot(
        arguments.source,
        dest,
        read_only=arguments.read_only,
        recursive=arguments.recursive,
        inherit=_inherit(arguments),
    )
    kind = "readonly snapshot" if arguments.read_only else "snapshot"
    write(f"Create a {kind} of '{arguments.source}' in '{_named(dest)}'")


def _inherit(arguments: argparse.Namespace) -> qgroup.QgroupInherit | None:
    return qgroup.QgroupInherit(tuple(arguments.qgroups)) if arguments.qgroups else None


def _named(dest: str) -> str:
    head, tail = os.path.split(dest.rstrip("/"))
    return os.path.join(head or ".", tail)


def _delete(arguments: argparse.Namespace) -> int:
    if arguments.subvolid is not None:
        return _delete_by_id(arguments)
    code = DONE
    with subvolume.batch() as batch:
        for path in arguments.path:
            last = path is arguments.path[-1]
            commit = "commit" if arguments.commit_each or (arguments.commit_after and last) else "no-commit"
            directory, name = os.path.split(os.path.abspath(path))
            directory = os.path.realpath(directory)
            try:
                if not subvolume.is_subvolume(path):
                    raise not_subvolume(path)
                write(f"Delete subvolume ({commit}): '{os.path.join(directory, name)}'")
                if arguments.commit_after:
                    batch.delete(path, recursive=arguments.recursive, unlink=True)
                else:
                    subvolume.delete(path, recursive=arguments.recursive, unlink=True)
                if arguments.commit_each:
                    with opened(directory) as fd:
                        os.fsync(fd)
            except (OSError, ValueError) as error:
                code = complain(error)
    return code


def _delete_by_id(arguments: argparse.Namespace) -> int:
    if len(arguments.path) > 1:
        raise ValueError("-i takes exactly one PATH, which names the filesystem")
    [path] = arguments.path
    place = subvolume.get_path(path, arguments.subvolid)
    commit = "commit" if arguments.commit_after or arguments.commit_each else "no-commit"
    write(f"Delete subvolume ({commit}): '{os.path.join(path, place)}'")
    subvolume.delete_by_id(path, arguments.subvolid, recursive=arguments.recursive)
    if commit == "commit":
        filesystem.sync(path)
    return DONE


def _sync(arguments: argparse.Namespace) -> None:
    ids = arguments.ids or [deleted.id for deleted in subvolume.iterate_deleted(arguments.path)]
    if not ids:
        return
    write(f"Waiting for {len(ids)} subvolume{'s' if len(ids) > 1 else ''}")
    for number, subvolid in enumerate(ids, 1):
        filesystem.sync(arguments.path)  # the kernel starts cleaning after a commit
        subvolume.wait_deleted(arguments.path, subvolid)
        write(f"Subvolume id {subvolid} is gone ({number}/{len(ids)})")


def _get_root(arguments: argparse.Namespace) -> None:
    write(subvolume.get_root(arguments.path))


def _get_path(arguments: argparse.Namespace) -> None:
    path = subvolume.get_path_below(arguments.path, arguments.subvolid)
    write(os.path.join(arguments.path, path) if path else arguments.path)


def _get_default(arguments: argparse.Namespace) -> None:
    subvolid = subvolume.get_default(arguments.path)
    info = subvolume.get_info(arguments.path, subvolid)
    path = subvolume.get_path(arguments.path, subvolid)
    if arguments.json:
        write_json({"ID": subvolid, "gen": info.generation, "top level": info.parent_id, "path": path})
    elif subvolid == FS_TREE_OBJECTID:
        write(f"ID {subvolid} (FS_TREE)")
    else:
        write(f"ID {subvolid} gen {info.generation} top level {info.parent_id} path {path}")


def _set_default(arguments: argparse.Namespace) -> None:
    match arguments.target:
        case [path]:
            with subvolume.Subvolume(path) as target:
                subvolume.set_default(target, subvolume.get_id(target))
        case [subvolid, path]:
            subvolume.set_default(path, int(subvolid))
        case _:
            raise ValueError("set-default takes PATH, or ID and PATH")
