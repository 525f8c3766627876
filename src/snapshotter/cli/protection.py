"""
Protection of containerd's snapshots from deletion by hand: containerd is asked before its store loses a snapshot.
"""

import argparse
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from snapshotter.analysis import containerd
from snapshotter.cli.codes import missing_extra
from snapshotter.cli.confirmation import agreed
from snapshotter.errors import FailedPreconditionError, UnavailableError, quoted
from snapshotter.model import LOCAL
from snapshotter.store import lock

if TYPE_CHECKING:
    from snapshotter.analysis.references import Answer

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
    """
    if not client:
        raise UnavailableError(
            "the store's record lost the name of its client: bind it again with `snapshotter init --client NAME`"
        )
    return containerd.sockets(parsed.containerd)


def unasked(error: Exception) -> str:
    """
    Return the reason why containerd was not asked, for an error among `UNASKED`.
    """
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(error)
    return str(error)


def refusals(
    parsed: argparse.Namespace, client: str, keys: Collection[str], parents: Mapping[str, str]
) -> dict[str, FailedPreconditionError]:
    """
    Return the reasons against the removal of snapshots, by key, for those of *keys* that have to stay.

    Args:
        parents: The parent of each snapshot of the store, by key.

    Raises:
        FailedPreconditionError: containerd cannot be asked, and ``--containerd-is-gone`` is not given or not confirmed.
    """
    if not is_foreign(client, keys):
        return {}
    answers = ask(parsed, lambda: _answers(parsed, client, keys, parents))
    if answers is None:
        return {}
    if parsed.force and (unknown := [key for key, answer in answers.items() if not answer.references.known]):
        from snapshotter.analysis import references

        time.sleep(references.ROW_SECONDS)
        answers |= ask(parsed, lambda: _answers(parsed, client, unknown, parents)) or {}
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
    present = {containerd.split(key) for key in parents}
    found = [
        f"{quoted(parent)} (parent of {quoted(key)})"
        for key, parent in parents.items()
        if parent and parent not in parents
    ]
    for (namespace, name), reference in _needed(parsed, client).items():
        if (namespace, name) not in present:
            found.append(f"{quoted(name)} of namespace {namespace!r} ({reference})")
    return found


def missing(parsed: argparse.Namespace, client: str, root: str) -> list[str]:
    """
    Return the snapshots that containerd has and the store lacks, with their references and ctr's command for removal.

    Raises:
        UnavailableError: containerd or the daemon of the store does not answer.
    """
    addresses = sockets(parsed, client)
    from snapshotter.analysis import references, rows

    holder = lock.find_holder(root)
    if not holder or not holder.socket:
        raise UnavailableError("no daemon serves the store")
    found = []
    for address in rows.users(addresses, client, holder.socket):
        if keys := rows.compare(address, client, holder.socket).without_snapshot:
            needs = references.needed(address, client)
            for key in keys:
                namespace, name = containerd.split(key) or ("", key)
                command = references.removal(address, client, namespace, name)
                found.append(f"{quoted(key)} ({needs.get((namespace, name), 'a label or a child')}): `{command}`")
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
    if reason := ask(parsed, lambda: _use(parsed, client)):
        raise FailedPreconditionError(f"containerd uses the snapshots of client {client!r}: {reason}")


def _use(parsed: argparse.Namespace, client: str) -> str:
    """
    Return containerd's use of the snapshots of *client*, and the way to end it; empty if there is none.
    """
    for (namespace, name), reference in _needed(parsed, client).items():
        return (
            f"{reference} in namespace {namespace!r} needs {quoted(name)}: remove the containers, images and leases of "
            f"namespace {namespace!r} with ctr first"
        )
    from snapshotter.analysis import references, rows

    for address in rows.locate(sockets(parsed, client), client):
        for namespace in references.occupied(address, client):
            command = references.removal(address, client, namespace, "KEY")
            return (
                f"it has snapshots in namespace {namespace!r}: start the daemon, remove each with `{command}`, and "
                "stop the daemon again"
            )
    return ""


def _answers(
    parsed: argparse.Namespace, client: str, keys: Iterable[str], parents: Mapping[str, str]
) -> "dict[str, Answer]":
    """
    Return containerd's answer for each of *keys*, or its answer for a descendant if only that is referred to.
    """
    from snapshotter.analysis import references

    addresses = sockets(parsed, client)

    def find(key: str) -> references.Answer:
        # A key without containerd's form is asked for like a name, so that containerd has to answer for it as well.
        return references.find_anywhere(addresses, client, key if containerd.split(key) else f"default/0/{key}")

    found = {}
    for key in keys:
        found[key] = answer = find(key)
        if answer.references.known and not answer.needs(client):
            descendants = (find(each) for each in _descendants(key, parents))
            found[key] = next((each for each in descendants if each.needs(client)), answer)
    return found


def _descendants(key: str, parents: Mapping[str, str]) -> list[str]:
    """
    Return the descendants of the snapshot *key*, the most distant first.
    """
    found, generation = [], [key]
    while generation:
        generation = [child for child, parent in parents.items() if parent in generation]
        found += generation
    return found[::-1]


def _needed(parsed: argparse.Namespace, client: str) -> dict[tuple[str, str], str]:
    from snapshotter.analysis import references

    found: dict[tuple[str, str], str] = {}
    for address in sockets(parsed, client):
        found |= references.needed(address, client)
    return found


def _refusal(parsed: argparse.Namespace, client: str, key: str, answer: "Answer") -> FailedPreconditionError | None:
    from snapshotter.analysis.references import removal

    found = answer.references
    if not found.known:
        if parsed.force:
            return None
        return FailedPreconditionError(
            f"containerd does not know snapshot {quoted(key)}, and removes it at its next garbage collection: "
            "--force removes it now"
        )
    needs = answer.needs(client)
    objects = ", ".join(needs) or "its list of snapshots"
    if found.name != (containerd.split(key) or ("", key))[1]:
        objects += f", by way of {quoted(found.name)}"
    commands = dict.fromkeys(needs.values() or [removal(answer.address, client, found.namespace, found.name)])
    instead = " and ".join(f"`{command}`" for command in commands)
    return FailedPreconditionError(
        f"containerd uses snapshot {quoted(key)} for {objects}: remove it there, with {instead}"
    )
