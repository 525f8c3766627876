"""
``snapshotter why``.
"""

import argparse
from typing import TYPE_CHECKING

from snapshotter.analysis import holders
from snapshotter.cli import arguments, display, output, protection
from snapshotter.errors import InvalidArgumentError
from snapshotter.text import printable

if TYPE_CHECKING:
    from snapshotter.analysis.references import References


def add(commands: arguments.Commands) -> None:
    why = commands.add("why", _why, arguments.KEY, arguments.JSON, example="snapshotter why base")
    protection.add_socket(why)


def _why(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        found = holders.find(store, parsed.key)
    references, unasked = (None, "") if found.removed else _ask_containerd(parsed, store.opened.ownership.client)
    if parsed.json:
        mounts = [mount._asdict() for mount in found.mounts]
        others = {"mounts": mounts, "containerd": references and output.values(references), "unasked": unasked}
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
        print("no child, mount or process keeps the snapshot" if unasked else "nothing keeps the snapshot")
    if unasked:
        print(printable(f"containerd was not asked: {unasked}"))


def _ask_containerd(parsed: argparse.Namespace, client: str) -> "tuple[References | None, str]":
    """
    Return containerd's references to a snapshot of *client*, or the reason why containerd was not asked.

    Both are empty if the snapshot is not one of containerd's.
    """
    if not protection.is_foreign(client, [parsed.key]):
        return None, ""
    try:
        addresses = protection.sockets(parsed, client)
        from snapshotter.analysis import references

        return references.find_anywhere(addresses, client, parsed.key).references, ""
    except InvalidArgumentError:
        return None, ""
    except protection.UNASKED as error:
        return None, protection.unasked(error)
