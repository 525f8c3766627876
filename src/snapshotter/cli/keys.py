"""
The snapshot that a KEY on the command line means.
"""

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING

from snapshotter.analysis import containerd
from snapshotter.cli.codes import DONE, complain
from snapshotter.cli.display import SHORTENED
from snapshotter.cli.protection import UNASKED, unasked
from snapshotter.cli.used_by import users
from snapshotter.contract import Snapshotter
from snapshotter.errors import InvalidArgumentError, NotFoundError, quoted
from snapshotter.model import LOCAL
from snapshotter.text import nearest

if TYPE_CHECKING:
    from snapshotter.client import Client

_LISTED = 10  # matches in an error


def resolve(parsed: argparse.Namespace, store: "Snapshotter | Client", text: str) -> str:
    """
    Return the key that *text* means in *store*, and print the key if it is not *text* itself.

    *text* is a key, or the name in a key of containerd, or else the unique beginning of either. ``…`` stands for the
    middle of a key, as in tables. If nothing matches, containerd is asked for the active snapshot of a container of
    this name, or the top layer of an image.

    Raises:
        NotFoundError: *text* means no snapshot. The message names the nearest key.
        InvalidArgumentError: *text* means several snapshots. The message lists them.
    """
    try:
        return store.stat(text).name
    except NotFoundError:
        keys = sorted(info.name for info in store.walk())
    reason = ""
    found = _beginning(text, keys)
    if not found:
        found, reason = _of_containerd(parsed, store, text, keys)
    if not found:
        known = f": did you mean {quoted(nearest(text, keys))}?" if keys else ": the store is empty"
        raise NotFoundError(f"snapshot {quoted(text)} does not exist{known}{reason}")
    if len(found) > 1:
        rest = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise InvalidArgumentError(
            f"{quoted(text)} means several snapshots: {', '.join(map(quoted, found[:_LISTED]))}{rest}"
        )
    complain(f"{quoted(text)} means {quoted(found[0])}", DONE)
    return found[0]


def parent(parsed: argparse.Namespace, store: "Snapshotter | Client") -> str:
    """
    Return the key that PARENT on the command line means, or "" without PARENT.
    """
    return parsed.parent and resolve(parsed, store, parsed.parent)


def _beginning(text: str, keys: Collection[str]) -> list[str]:
    """
    Return the keys that are called *text*, else those that begin with it.
    """
    head, _, tail = text.partition(SHORTENED)
    return [key for key in keys if text in _names(key)] or [
        key for key in keys if any(name.startswith(head) and name.endswith(tail) for name in _names(key))
    ]


def _names(key: str) -> tuple[str, ...]:
    names = containerd.split(key)
    return (key, names[1]) if names else (key,)


def _of_containerd(
    parsed: argparse.Namespace, store: "Snapshotter | Client", text: str, keys: Collection[str]
) -> tuple[list[str], str]:
    """
    Return the keys of the snapshots of a container or an image, or the reason why containerd was not asked.
    """
    client = store.opened.ownership.client if isinstance(store, Snapshotter) else store.snapshotter
    if client in ("", LOCAL):
        return [], ""
    try:
        found = users(client, containerd.sockets(getattr(parsed, "containerd", None)))
    except UNASKED as error:
        return [], f" (containerd was not asked for a container or an image of this name: {unasked(error)})"
    named = {(user.namespace, user.snapshot) for user in found if user.is_called(text)}
    return [key for key in keys if containerd.split(key) in named], ""
