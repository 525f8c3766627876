"""
Output formats that several commands share.
"""

import argparse
import contextlib
import json
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

from snapshotter.model import Info, Mount
from snapshotter.text import format_size

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from snapshotter.analysis.inventory import Entry


def print_json(value: Any) -> None:
    """
    Print *value* as JSON; a list has one element a line.
    """
    if isinstance(value, list):
        print("[" + ",\n ".join(map(json.dumps, value)) + "]")
    else:
        print(json.dumps(value, indent=2))


def values(value: "DataclassInstance") -> dict[str, Any]:
    """
    Return *value* as a JSON object.
    """
    from dataclasses import asdict  # slow to import, and most commands do without

    return asdict(value)


def described(info: Info) -> dict[str, Any]:
    """
    Return *info* as a JSON object.
    """
    return {
        "kind": str(info.kind),
        "name": info.name,
        "parent": info.parent,
        "created": info.created.isoformat(timespec="microseconds"),
        "updated": info.updated.isoformat(timespec="microseconds"),
        "labels": dict(info.labels),
    }


def detailed(entry: "Entry") -> dict[str, Any]:
    """
    Return *entry* as a JSON object, as `described`, with its usage, subvolume and state.
    """
    return described(entry.info) | {
        "size": entry.usage and entry.usage.size,
        "inodes": entry.usage and entry.usage.inodes,
        "subvolume": entry.volume and entry.volume.path,
        "subvolid": entry.volume and entry.volume.info.id,
        "mounted": entry.mounted,
        "problem": entry.problem,
    }


def amount(arguments: argparse.Namespace) -> Callable[[int], str]:
    """
    Return the function that formats sizes: in bytes with ``--bytes``, else with units.
    """
    return str if arguments.bytes else format_size


def time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def print_mounts(arguments: argparse.Namespace, mounts: Iterable[Mount]) -> None:
    if arguments.json:
        print_json([mount._asdict() for mount in mounts])
        return
    for mount in mounts:
        print(mount_command(mount, getattr(arguments, "target", "TARGET")))


def mount_command(mount: Mount, target: str) -> str:
    """
    Return the mount(8) command line that performs *mount* at *target*.
    """
    kind = [] if mount.type == "bind" else ["-t", mount.type]
    options = ["-o", ",".join(mount.options)] if mount.options else []
    point = os.path.join(target, mount.target) if mount.target else target
    return shlex.join(["mount", *kind, *options, mount.source, point])


@contextlib.contextmanager
def replaced(path: str) -> Iterator[IO[bytes]]:
    """
    Open the file *path* for writing, and rename it into place when the ``with`` ends without an exception.

    Devices and FIFOs are written directly.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "wb") as file:
                yield file
            return
    import tempfile

    path = os.path.realpath(path)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)[:200]}.", dir=os.path.dirname(path))
    except OSError as error:
        error.filename = path
        raise
    try:
        with open(fd, "wb") as file:
            yield file
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
