"""
``snapshotter why``.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from snapshotter.analysis import holders
from snapshotter.cli import arguments, display, output
from snapshotter.errors import InvalidArgumentError, UnavailableError
from snapshotter.model import LOCAL
from snapshotter.text import printable

if TYPE_CHECKING:
    from snapshotter.analysis.references import References

_CONTAINERD = "/run/containerd/containerd.sock"


def add(commands: arguments.Commands) -> None:
    why = commands.add("why", _why, arguments.KEY, arguments.JSON, example="snapshotter why base")
    why.add_argument(
        "--containerd", metavar="SOCKET", default=_CONTAINERD, help="socket of containerd (default: %(default)s)"
    )


def _why(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        found = holders.find(store, parsed.key)
    references, unasked = (None, "") if found.removed else _ask_containerd(parsed, store.client)
    if parsed.json:
        mounts = [mount._asdict() for mount in found.mounts]
        others = {"mounts": mounts, "containerd": references and output.values(references)}
        output.print_json(output.values(found) | others)
        return
    fields = [("child", name) for name in found.children]
    fields += [("mount", f"{mount.text}{', read-only' if mount.read_only else ''}") for mount in found.mounts]
    for process in found.processes:
        uses = [*process.uses, *([f"{process.open_files} open files"] if process.open_files else [])]
        fields.append(("process", f"{process.pid} {process.command} ({', '.join(uses)})"))
    if references:
        fields += [("container", name) for name in references.containers]
        fields += [("image", name) for name in references.images]
        fields += [("lease", name) for name in references.leases]
        fields += [("label", f"{name}={value}") for name, value in sorted(references.labels.items())]
        if not references.known:
            fields.append(("containerd", "does not know the snapshot, and removes it at the next garbage collection"))
    display.fields(fields)
    if found.removed:
        print("the snapshot is removed, and destroyed once nothing is mounted")
    elif not fields:
        print("nothing keeps the snapshot")
    if unasked:
        print(printable(f"cannot ask containerd: {unasked}"), file=sys.stderr)


def _ask_containerd(parsed: argparse.Namespace, client: str) -> "tuple[References | None, str]":
    """
    Return containerd's references to a snapshot, or why containerd cannot be asked.

    Both are empty if the snapshot is not one of containerd's.
    """
    if client == LOCAL:
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
