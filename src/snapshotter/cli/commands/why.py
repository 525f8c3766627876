"""
``snapshotter why``.
"""

import argparse
from typing import TYPE_CHECKING

from snapshotter.analysis import holders
from snapshotter.cli import arguments, display, keys, output, protection
from snapshotter.errors import InvalidArgumentError, NotFoundError
from snapshotter.text import printable

if TYPE_CHECKING:
    from snapshotter.analysis.references import References


def add(commands: arguments.Commands) -> None:
    why = commands.add("why", _why, arguments.KEY, arguments.JSON, example="snapshotter why base")
    protection.add_socket(why)


def _why(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        key = parsed.key
        try:
            found = holders.find(store, key)  # also of a removed snapshot
        except NotFoundError:
            key = keys.resolve(parsed, store, key)
            found = holders.find(store, key)
        client = store.opened.ownership.client
    references, unasked = (None, "") if found.removed else _ask_containerd(parsed, client, key)
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


def _ask_containerd(parsed: argparse.Namespace, client: str, key: str) -> "tuple[References | None, str]":
    """
    Return containerd's references to the snapshot *key* of *client*, or the reason why containerd was not asked.

    Both are empty if the snapshot is not one of containerd's.
    """
    if not protection.is_foreign(client, [key]):
        return None, ""
    try:
        addresses = protection.sockets(parsed, client)
        from snapshotter.analysis import references

        return references.find_anywhere(addresses, client, key).references, ""
    except InvalidArgumentError:
        return None, ""
    except protection.UNASKED as error:
        return None, protection.unasked(error)
