"""
The command ``pybtrfs``: some of the ``btrfs`` command, in its words and columns, for machines without btrfs-progs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pybtrfs import device, filesystem, image, qgroup, space, subvolume, syscall
from pybtrfs._version import __version__
from pybtrfs.errors import not_subvolume
from pybtrfs.items import FS_TREE_OBJECTID
from pybtrfs.path import opened

if TYPE_CHECKING:
    from datetime import datetime

DONE, FAILED, INTERRUPTED = 0, 1, 130

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_COPIES = {"dup": 2, "raid1": 2, "raid10": 2, "raid1c3": 3, "raid1c4": 4}
_PARITY = {"raid5": 1, "raid6": 2}
_NO_UUID = "-".ljust(36)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command with *argv*, by default the process's arguments, and return its exit code: 0 done, 1 failed, 130
    interrupted.

    Wrong usage raises SystemExit with 2, and ``--help`` and ``--version`` with 0.
    """
    arguments = parser().parse_args(argv)
    try:
        code: int | None = arguments.run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # who read has seen enough
    except (OSError, ValueError) as error:
        return _complain(error)
    return code or DONE


def _complain(error: Exception) -> int:
    text = str(error)
    if isinstance(error, OSError):
        place = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        text = f"{error.strerror}{place}{notes}"
    print("ERROR:", text, file=sys.stderr)
    return FAILED


# -- arguments


def parser() -> argparse.ArgumentParser:
    """
    All the arguments of the command.
    """
    whole = argparse.ArgumentParser(
        prog="pybtrfs",
        description="btrfs with nothing but the kernel: some of the btrfs command, in its words and columns.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    groups = whole.add_subparsers(metavar="COMMAND", required=True)

    def group(name: str, text: str) -> Any:
        return groups.add_parser(name, help=text, allow_abbrev=False).add_subparsers(metavar="COMMAND", required=True)

    def command(place: Any, name: str, run: Any, text: str, *paths: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = place.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        added.set_defaults(run=run)
        for path in paths:
            added.add_argument(path.lower().rstrip("+"), metavar=path.rstrip("+"), nargs="+" if "+" in path else None)
        return added

    volumes = group("subvolume", "make, delete, list and show subvolumes")
    listing = command(volumes, "list", _list, "list subvolumes; to ordinary users, those below the path", "PATH")
    for option, text in (
        ("-o", "only those directly below the subvolume that contains the path"),
        ("-p", "the id of the subvolume that contains each"),
        ("-c", "the generation of its creation"),
        ("-g", "its generation, which is shown anyway"),
        ("-u", "its uuid"),
        ("-q", "the uuid of what it is a snapshot of"),
        ("-R", "the uuid of what it was received as"),
        ("-s", "only snapshots, with the time of their creation"),
        ("-r", "only read-only ones"),
        ("-d", "only deleted ones that are not yet cleaned"),
        ("-t", "as a table"),
    ):
        listing.add_argument(option, action="store_true", help=text)
    listing.add_argument(
        "--sort",
        metavar="KEY,...",
        type=_sort,
        default=[],
        help="by rootid, gen, ogen or path, each with - in front for the largest first",
    )
    show = command(volumes, "show", _show, "show a subvolume and its snapshots", "PATH")
    create = command(volumes, "create", _create, "create empty subvolumes", "DEST+")
    snapshot = command(volumes, "snapshot", _snapshot, "make a snapshot, at a name or in a directory", "SOURCE", "DEST")
    snapshot.add_argument("-r", action="store_true", dest="read_only", help="read-only")
    snapshot.add_argument(
        "-R", "--recursive", action="store_true", help="of the subvolumes in it as well, one after the other"
    )
    for parser_of_new in (create, snapshot):
        parser_of_new.add_argument(
            "-i",
            metavar="QGROUP",
            type=_qgroup,
            action="append",
            dest="qgroups",
            help="let it join this one, as in 1/5",
        )
    delete = command(volumes, "delete", _delete, "delete subvolumes", "PATH+")
    delete.add_argument("-c", "--commit-after", action="store_true", help="have it on disk at the end")
    delete.add_argument("-C", "--commit-each", action="store_true", help="have each on disk before the next")
    delete.add_argument("-i", "--subvolid", metavar="ID", type=int, help="the one with this id, of the filesystem PATH")
    delete.add_argument("-R", "--recursive", action="store_true", help="with the subvolumes in them")
    sync = command(volumes, "sync", _sync, "wait until deleted subvolumes are cleaned", "PATH")
    sync.add_argument("ids", metavar="ID", nargs="*", type=int, help="by default all of them")
    default = command(volumes, "get-default", _get_default, "show the one mounted when none is named", "PATH")
    set_default = command(volumes, "set-default", _set_default, "let one be mounted when none is named")
    set_default.add_argument("target", metavar="{PATH | ID PATH}", nargs="+", help="the subvolume")

    usage = command(groups, "usage", _usage, "show what a filesystem holds and can hold", "PATH")
    usage.add_argument("-b", "--raw", action="store_true", help="in bytes")
    for parser_of_reading in (listing, show, default, usage):
        parser_of_reading.add_argument("--json", action="store_true", help="print JSON")

    images = group("image", "make a btrfs in a file, and mount it")
    image_create = command(images, "create", _image_create, "make an image", "FILE")
    image_create.add_argument("size", metavar="SIZE", type=_size, help="as in 20G")
    image_create.add_argument("--sparse", action="store_true", help="do not reserve its space")
    command(images, "mount", _image_mount, "mount an image", "FILE", "TARGET").add_argument(
        "-o", metavar="OPTIONS", dest="options", default="", help="mount options"
    )
    command(images, "unmount", _image_unmount, "unmount an image", "TARGET")
    return whole


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


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(iB)?", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 512M or 20G")
    return int(match[1]) << 10 * "_KMGT".index(match[2].upper() or "_")


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


class _Usage:
    """
    What a filesystem has allocated to block groups and holds in them: *raw* counts every copy on the devices.
    """

    def __init__(self, path: str) -> None:
        spaces = space.get(path)
        devices = list(device.iterate(path))
        self.devices = devices
        self.groups = [group for group in spaces if group.type != "global reserve"]
        self.reserve = next(group for group in spaces if group.type == "global reserve")
        count = len(devices)
        self.ratios = [_ratio(group.profile, count) for group in self.groups]
        self.size = sum(each.total_bytes for each in devices)
        self.allocated = sum(each.bytes_used for each in devices)
        self.missing = sum(each.total_bytes for each in devices if not os.path.exists(each.path))
        self.slack = sum(_device_size(each.path) - each.total_bytes for each in devices)
        self.used = sum(int(group.used_bytes * ratio) for group, ratio in zip(self.groups, self.ratios, strict=True))
        data_total, data_used, self.data_ratio = self._sums("data")
        _, _, self.metadata_ratio = self._sums("metadata")
        self.unallocated = self.size - self.allocated
        self.free = self.free_min = int((data_total - data_used) / self.data_ratio)
        if self.unallocated >= 16 << 20:  # less is no room for a block group
            self.free += int(self.unallocated / self.data_ratio)
            self.free_min += int(self.unallocated / max(self.ratios))
        stat = os.statvfs(path)
        self.available = stat.f_bavail * stat.f_frsize
        self.multiple = sorted(
            {one.type for one in self.groups for two in self.groups if one.type == two.type and one != two}
        )

    def _sums(self, type_: str) -> tuple[float, float, float]:
        """
        Raw total and use of what holds data, or metadata, and the ratio of raw to usable bytes.
        """
        total = raw = used = 0.0
        for group, ratio in zip(self.groups, self.ratios, strict=True):
            if type_ in group.type.split("+"):
                total += group.total_bytes
                raw += group.total_bytes * ratio
                used += group.used_bytes * ratio
        return raw, used, raw / total if total else 1.0


def _ratio(profile: str, devices: int) -> float:
    parity = _PARITY.get(profile)
    return devices / (devices - parity) if parity else _COPIES.get(profile, 1)


def _device_size(path: str) -> int:
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END)


def _usage(arguments: argparse.Namespace) -> None:
    usage = _Usage(arguments.path)
    if arguments.json:
        _print_json(
            {
                "device-size": usage.size,
                "device-allocated": usage.allocated,
                "device-unallocated": usage.unallocated,
                "device-missing": usage.missing,
                "device-slack": usage.slack,
                "used": usage.used,
                "free-estimated": usage.free,
                "free-estimated-min": usage.free_min,
                "free-statfs": usage.available,
                "data-ratio": usage.data_ratio,
                "metadata-ratio": usage.metadata_ratio,
                "global-reserve": usage.reserve.total_bytes,
                "global-reserve-used": usage.reserve.used_bytes,
                "multiple-profiles": usage.multiple,
                "block-groups": [
                    {"type": group.type, "profile": group.profile, "size": group.total_bytes, "used": group.used_bytes}
                    for group in usage.groups
                ],
                "devices": [{"path": each.path, "devid": each.devid} for each in usage.devices],
            }
        )
        return

    def amount(value: int) -> str:
        return str(value) if arguments.raw else _pretty(value)

    width = 18 if arguments.raw else 10
    multiple = f"yes\t({', '.join(usage.multiple)})" if usage.multiple else "no"
    _print("Overall:")
    for word, gap, text in (
        ("Device size", "\t\t", amount(usage.size).rjust(width)),
        ("Device allocated", "\t\t", amount(usage.allocated).rjust(width)),
        ("Device unallocated", "\t\t", amount(usage.unallocated).rjust(width)),
        ("Device missing", "\t\t", amount(usage.missing).rjust(width)),
        ("Device slack", "\t\t", amount(usage.slack).rjust(width)),
        ("Used", "\t\t\t", amount(usage.used).rjust(width)),
        ("Free (estimated)", "\t\t", f"{amount(usage.free).rjust(width)}\t(min: {amount(usage.free_min)})"),
        ("Free (statfs, df)", "\t\t", amount(usage.available).rjust(width)),
        ("Data ratio", "\t\t\t", f"{usage.data_ratio:.2f}".rjust(width)),
        ("Metadata ratio", "\t\t", f"{usage.metadata_ratio:.2f}".rjust(width)),
        (
            "Global reserve",
            "\t\t",
            f"{amount(usage.reserve.total_bytes).rjust(width)}\t(used: {amount(usage.reserve.used_bytes)})",
        ),
        ("Multiple profiles", "\t\t", multiple.rjust(width)),
    ):
        _print(f"    {word}:{gap}{text}")
    for type_ in ("data", "data+metadata", "metadata", "system"):
        for group, ratio in zip(usage.groups, usage.ratios, strict=True):
            if group.type == type_:
                percent = f"{100 * group.used_bytes / group.total_bytes:.2f}%" if group.total_bytes else "0.00%"
                _print(
                    f"\n{_titled(group.type)},{_profile(group.profile)}: Size:{amount(group.total_bytes)}, "
                    f"Used:{amount(group.used_bytes)} ({percent})"
                )
                if len(usage.devices) == 1:
                    _print_device(usage.devices[0].path, amount(int(group.total_bytes * ratio)))
    _print("\nUnallocated:")
    for each in usage.devices:
        _print_device(each.path, amount(each.total_bytes - each.bytes_used))


def _print_device(path: str, text: str) -> None:
    _print(f"   {path}\t{text:>10}")


def _titled(type_: str) -> str:
    return "+".join(word.capitalize() for word in type_.split("+"))


def _profile(name: str) -> str:
    return name if name == "single" else name.upper()


def _pretty(value: int) -> str:
    amount, unit = float(value), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.2f}{_UNITS[unit]}"


# -- images


def _image_create(arguments: argparse.Namespace) -> None:
    image.create(arguments.file, arguments.size, sparse=arguments.sparse)


def _image_mount(arguments: argparse.Namespace) -> None:
    options = {"options": arguments.options} if arguments.options else {}
    image.mount(arguments.file, arguments.target, **options)


def _image_unmount(arguments: argparse.Namespace) -> None:
    syscall.umount2(arguments.target, syscall.UMOUNT_NOFOLLOW)


# -- output


def _print(text: str) -> None:
    # Names are bytes, and are written as they are.
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2))


def _moment(moment: datetime, nanoseconds: int) -> str | None:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %z}" if nanoseconds else None


def _plain(value: Any) -> Any:
    """
    What JSON can say of a value.
    """
    if value is None or isinstance(value, int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _text(value: Any) -> str:
    """
    A value in a listing, where what is missing is a uuid.
    """
    if value is None:
        return _NO_UUID
    return f"{value:%Y-%m-%d %H:%M:%S}" if hasattr(value, "isoformat") else str(value)
