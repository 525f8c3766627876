"""
The command ``pybtrfs``: some of the ``btrfs`` command, in its words and columns, for machines without btrfs-progs.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from pybtrfs import filesystem, qgroup, subvolume
from pybtrfs.cli.output import DONE, _complain, _moment, _plain, _print, _print_json, _text
from pybtrfs.errors import not_subvolume
from pybtrfs.items import FS_TREE_OBJECTID
from pybtrfs.path import opened

# -- arguments


def _sort(text: str) -> list[tuple[str, bool]]:
    words = {"rootid": "ID", "gen": "gen", "ogen": "cgen", "path": "path"}
    keys = []
    for part in text.split(","):
        word = words.get(part.lstrip("+-"))
        if word is None:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(words)}")
        keys.append((word, part.startswith("-")))
    return keys


def _qgroup(text: str) -> int:
    level, slash, number = text.rpartition("/")
    try:
        return qgroup.qgroupid(int(level) if slash else 0, int(number))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a qgroup, such as 1/5") from None


# -- subvolumes


def _list(arguments: argparse.Namespace) -> None:
    rows = _deleted_rows(arguments.path) if arguments.d else _rows(arguments)
    for word, descending in reversed(arguments.sort):
        rows.sort(key=lambda row: row[word], reverse=descending)
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
        _print_json([{word: _plain(row[word]) for word in words} for row in rows])
        return
    if arguments.t:
        _print("".join(f"{word}\t" for word in words))
        _print("".join(f"{'-' * len(word)}\t" for word in words))
    for row in rows:
        texts = [(word, _text(row[word])) for word in words]
        if arguments.t:
            _print("\t".join(text + "\t" * (word == "top level") for word, text in texts))
        else:
            _print(" ".join(f"{word} {text}" for word, text in texts))


def _rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    own = subvolume.get_id(arguments.path)
    try:
        entries = list(subvolume.iterate(arguments.path))
        above = "" if own == FS_TREE_OBJECTID else subvolume.get_path(arguments.path, own) + "/"
    except PermissionError:
        entries = list(subvolume.iterate(arguments.path, top=0))
        above = ""
    return [
        {
            "ID": info.id,
            "gen": info.generation,
            "cgen": info.otransid,
            "parent": info.parent_id,
            "top level": info.parent_id,
            "otime": info.otime.astimezone(),
            "parent_uuid": info.parent_uuid,
            "received_uuid": info.received_uuid,
            "uuid": info.uuid,
            "path": path if arguments.o else path.removeprefix(above),
        }
        for path, info in entries
        if (not arguments.o or info.parent_id == own)
        and (not arguments.s or info.parent_uuid)
        and (not arguments.r or info.read_only)
    ]


def _deleted_rows(path: str) -> list[dict[str, Any]]:
    gone = {"cgen": 0, "parent": 0, "top level": 0, "path": "DELETED"}
    unknown = dict.fromkeys(("otime", "parent_uuid", "received_uuid", "uuid"))
    return [
        {"ID": deleted.id, "gen": deleted.generation, **gone, **unknown} for deleted in subvolume.iterate_deleted(path)
    ]


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
        ("Creation time", "\t\t", _moment(info.otime, info.raw.otime)),
        ("Subvolume ID", "\t\t", info.id),
        ("Generation", "\t\t", info.generation),
        ("Gen at creation", "\t", info.otransid),
        ("Parent ID", "\t\t", info.parent_id),
        ("Top level ID", "\t\t", info.parent_id),
        ("Flags", "\t\t\t", "readonly" if info.read_only else None),
        ("Send transid", "\t\t", info.stransid),
        ("Send time", "\t\t", _moment(info.stime, info.raw.stime)),
        ("Receive transid", "\t", info.rtransid),
        ("Receive time", "\t\t", _moment(info.rtime, info.raw.rtime)),
    ]
    if arguments.json:
        words = {word: _plain(value) for word, _, value in values}
        _print_json({"path": path, **words, "Snapshots": snapshots})
        return
    _print(path)
    for word, gap, value in values:
        _print(f"\t{word}: {gap}{'-' if value is None else value}")
    _print("\tSnapshot(s):")
    for name in snapshots:
        _print(f"\t\t\t\t{name}")


def _create(arguments: argparse.Namespace) -> None:
    for dest in arguments.dest:
        subvolume.create(dest, inherit=_inherit(arguments))
        _print(f"Create subvolume '{_named(dest)}'")


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
    _print(f"Create a {kind} of '{arguments.source}' in '{_named(dest)}'")


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
                _print(f"Delete subvolume ({commit}): '{os.path.join(directory, name)}'")
                if arguments.commit_after:
                    batch.delete(path, recursive=arguments.recursive)
                else:
                    subvolume.delete(path, recursive=arguments.recursive)
                if arguments.commit_each:
                    with opened(directory) as fd:
                        os.fsync(fd)
            except (OSError, ValueError) as error:
                code = _complain(error)
    return code


def _delete_by_id(arguments: argparse.Namespace) -> int:
    if len(arguments.path) > 1:
        raise ValueError("with -i there is one PATH, that of the filesystem")
    [path] = arguments.path
    place = subvolume.get_path(path, arguments.subvolid)
    commit = "commit" if arguments.commit_after or arguments.commit_each else "no-commit"
    _print(f"Delete subvolume ({commit}): '{os.path.join(path, place)}'")
    subvolume.delete_by_id(path, arguments.subvolid, recursive=arguments.recursive)
    if commit == "commit":
        filesystem.sync(path)
    return DONE


def _sync(arguments: argparse.Namespace) -> None:
    ids = arguments.ids or [deleted.id for deleted in subvolume.iterate_deleted(arguments.path)]
    if not ids:
        return
    _print(f"Waiting for {len(ids)} subvolume{'s' if len(ids) > 1 else ''}")
    for number, subvolid in enumerate(ids, 1):
        filesystem.sync(arguments.path)  # the cleaner begins after a commit
        subvolume.wait_deleted(arguments.path, subvolid)
        _print(f"Subvolume id {subvolid} is gone ({number}/{len(ids)})")


def _get_default(arguments: argparse.Namespace) -> None:
    subvolid = subvolume.get_default(arguments.path)
    info = subvolume.get_info(arguments.path, subvolid)
    path = subvolume.get_path(arguments.path, subvolid)
    if arguments.json:
        _print_json({"ID": subvolid, "gen": info.generation, "top level": info.parent_id, "path": path})
    elif subvolid == FS_TREE_OBJECTID:
        _print(f"ID {subvolid} (FS_TREE)")
    else:
        _print(f"ID {subvolid} gen {info.generation} top level {info.parent_id} path {path}")


def _set_default(arguments: argparse.Namespace) -> None:
    match arguments.target:
        case [path]:
            with subvolume.Subvolume(path) as target:
                subvolume.set_default(target, subvolume.get_id(target))
        case [subvolid, path]:
            subvolume.set_default(path, int(subvolid))
        case _:
            raise ValueError("set-default takes PATH, or ID and PATH")


# -- usage


# -- images


# -- output
