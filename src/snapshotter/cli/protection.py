"""
Protection of containerd's snapshots from deletion by hand: containerd is asked before its store loses a snapshot.
"""

import argparse
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from snapshotter.cli.confirmation import agreed
from snapshotter.errors import FailedPreconditionError, UnavailableError, quoted
from snapshotter.model import LOCAL

if TYPE_CHECKING:
    from snapshotter.analysis.references import Answer

# containerd writes its own row of a snapshot a moment after the store has the snapshot.
_ROW_SECONDS = 1.0

_SOCKET_HELP = "socket of containerd (default: $CONTAINERD_ADDRESS, else the sockets of containerd, k3s and RKE2)"

UNASKED = (UnavailableError, ModuleNotFoundError)  # the errors of asking containerd

T = TypeVar("T")


def add_socket(parser: argparse.ArgumentParser) -> None:
    """
    Declare the flag that names containerd's socket.
    """
    parser.add_argument("--containerd", metavar="SOCKET", help=_SOCKET_HELP)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """
    Declare the flags of a command that deletes snapshots or takes them from their client.
    """
    add_socket(parser)
    parser.add_argument(
        "--containerd-is-gone",
        action="store_true",
        help="proceed although containerd, whose store it is, does not answer; asks first",
    )


def is_foreign(client: str, keys: Iterable[str]) -> bool:
    """
    Return whether the snapshots *keys* may belong to containerd.

    Args:
        client: The client that the store is bound to; empty if unknown, as after a repair of the store's record.
    """
    if client:
        return client != LOCAL
    return any(len(parts := key.split("/", 2)) == 3 and parts[1].isdecimal() for key in keys)


def sockets(parsed: argparse.Namespace, client: str) -> list[str]:
    """
    Return the sockets of containerd to ask about the store of *client*.

    Raises:
        UnavailableError: No socket exists, or the store's record lost the name of its client.
        ModuleNotFoundError: The extra for asking is not installed.
    """
    from snapshotter.analysis import references

    if not client:
        raise UnavailableError(
            "the store's record lost the name of its client: bind it again with `snapshotter init --client NAME`"
        )
    return references.sockets(parsed.containerd)


def unasked(error: Exception) -> str:
    """
    Return the reason why containerd was not asked, for an error among `UNASKED`.
    """
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is missing: pip install 'btrfs-snapshotter[daemon]'"
    return str(error)


def refusals(parsed: argparse.Namespace, client: str, keys: Collection[str]) -> dict[str, FailedPreconditionError]:
    """
    Return the reasons against the removal of snapshots, by key, for those of *keys* that have to stay.

    Raises:
        FailedPreconditionError: containerd cannot be asked, and ``--containerd-is-gone`` is not given or not confirmed.
    """
    if not is_foreign(client, keys):
        return {}
    answers = ask(parsed, lambda: _answers(parsed, client, keys))
    if answers is None:
        return {}
    if parsed.force and (unknown := [key for key, answer in answers.items() if not answer.references.known]):
        time.sleep(_ROW_SECONDS)
        answers |= ask(parsed, lambda: _answers(parsed, client, unknown)) or {}
    return {key: reason for key, answer in answers.items() if (reason := _refusal(parsed, client, key, answer))}


def ask(parsed: argparse.Namespace, question: Callable[[], T]) -> T | None:
    """
    Return containerd's answer to *question*, or None if it has none and ``--containerd-is-gone`` is confirmed.

    Raises:
        FailedPreconditionError: containerd cannot be asked, and ``--containerd-is-gone`` is not given or not confirmed.
    """
    try:
        return question()
    except UNASKED as error:
        reason = unasked(error)
    if not parsed.containerd_is_gone:
        raise FailedPreconditionError(
            f"the store is containerd's, which cannot be asked for its needs: {reason}; start it and the daemon, or "
            "give --containerd-is-gone if nothing will use the snapshots again"
        )
    if not parsed.yes and not agreed(f"{reason}; proceed without containerd?"):
        raise FailedPreconditionError("not confirmed: nothing was changed")
    return None


def lost(parsed: argparse.Namespace, client: str, parents: Mapping[str, str]) -> list[str]:
    """
    Return the snapshots that are not in the store although containerd refers to them, each with its reference.

    Args:
        parents: The parent of each usable snapshot of the store, by key. A parent without an entry is lost, too.

    Raises:
        UnavailableError: containerd does not answer.
    """
    from snapshotter.analysis import references

    present = {references.split(key) for key in parents}
    found = [
        f"{quoted(parent)} (parent of {quoted(key)})"
        for key, parent in parents.items()
        if parent and parent not in parents
    ]
    for (namespace, name), reference in _needed(parsed, client).items():
        if (namespace, name) not in present:
            found.append(f"{quoted(name)} of namespace {namespace!r} ({reference})")
    return found


def check_rebinding(parsed: argparse.Namespace, client: str, keys: Collection[str]) -> None:
    """
    Raise an error if the store's snapshots must not be taken from *client*.

    Raises:
        FailedPreconditionError: containerd refers to the snapshots, or cannot be asked.
    """
    if not is_foreign(client, keys):
        return
    if not client:
        if parsed.client == LOCAL:
            ask(parsed, lambda: sockets(parsed, client))
        return
    needed = ask(parsed, lambda: _needed(parsed, client))
    for (namespace, name), reference in (needed or {}).items():
        raise FailedPreconditionError(
            f"containerd uses the snapshots of client {client!r}: {reference} in namespace {namespace!r} needs "
            f"{quoted(name)}: remove the containers, images and leases of namespace {namespace!r} with ctr first"
        )


def _answers(parsed: argparse.Namespace, client: str, keys: Iterable[str]) -> "dict[str, Answer]":
    from snapshotter.analysis import references

    addresses = sockets(parsed, client)
    # A key without containerd's form is asked for like a name, so that containerd has to answer for it as well.
    asked = {key: key if references.split(key) else f"default/0/{key}" for key in keys}
    return {key: references.find_anywhere(addresses, client, name) for key, name in asked.items()}


def _needed(parsed: argparse.Namespace, client: str) -> dict[tuple[str, str], str]:
    from snapshotter.analysis import references

    found: dict[tuple[str, str], str] = {}
    for address in sockets(parsed, client):
        found |= references.needed(address, client)
    return found


def _refusal(parsed: argparse.Namespace, client: str, key: str, answer: "Answer") -> FailedPreconditionError | None:
    references = answer.references
    if not references.known:
        if parsed.force:
            return None
        return FailedPreconditionError(
            f"containerd does not know snapshot {quoted(key)}, and removes it at its next garbage collection: "
            "--force removes it now"
        )
    ctr = f"ctr --address {shlex.quote(answer.address)} --namespace {shlex.quote(references.namespace)}"
    needs = [
        *((f"container {name!r}", f"containers rm {shlex.quote(name)}") for name in references.containers),
        *((f"image {name!r}", f"images rm {shlex.quote(name)}") for name in references.images),
        *((f"lease {name!r}", f"leases rm {shlex.quote(name)}") for name in references.leases),
    ]
    itself = f"snapshots --snapshotter {shlex.quote(client)} rm {shlex.quote(references.name)}"
    needs += [(f"label '{name}={value}'", itself) for name, value in sorted(references.labels.items())]
    objects = ", ".join(name for name, _ in needs) or "its list of snapshots"
    commands = dict.fromkeys(f"`{ctr} {command}`" for _, command in needs or [("", itself)])
    return FailedPreconditionError(
        f"containerd uses snapshot {quoted(key)} for {objects}: remove it there, with {' and '.join(commands)}"
    )
