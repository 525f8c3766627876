"""
Comparison of the snapshots of a store with containerd's own rows of them.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from snapshotter.analysis import containerd, references
from snapshotter.analysis.references import NotLoadedError
from snapshotter.client import Client
from snapshotter.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Difference:
    """
    The difference between the rows of containerd and the snapshots of a store.

    Args:
        without_snapshot: The keys of containerd's rows whose snapshot the store lacks. Children come before parents.
        without_row: The keys of the snapshots that containerd does not know, sorted.
    """

    without_snapshot: tuple[str, ...]
    without_row: tuple[str, ...]


def users(addresses: Sequence[str], snapshotter: str, daemon: str) -> list[str]:
    """
    Return those of the containerds at *addresses* that use the daemon at the socket *daemon*.

    Raises:
        NotLoadedError: No containerd has loaded the snapshotter.
        UnavailableError: A containerd does not answer in time, or every containerd uses another daemon.
    """
    found = locate(addresses, snapshotter)
    if users := [address for address, socket in found.items() if is_same(socket, daemon)]:
        return users
    others = ", ".join(f"the containerd at {address!r} uses {socket!r}" for address, socket in found.items())
    raise UnavailableError(f"the daemon of the store is at {daemon!r}, but {others}")


def locate(addresses: Sequence[str], snapshotter: str) -> dict[str, str]:
    """
    Return the daemon's socket in each containerd at *addresses* that has loaded the snapshotter.

    Raises:
        NotLoadedError: No containerd has loaded the snapshotter.
        UnavailableError: A containerd does not answer in time.
    """
    found = {}
    failure: NotLoadedError | None = None
    for address in addresses:
        try:
            found[address] = references.locate(address, snapshotter)
        except NotLoadedError as error:
            failure = error
    if failure and not found:
        raise failure
    return found


def is_same(socket: str, other: str) -> bool:
    """
    Return whether two paths lead to one socket.
    """
    return os.path.realpath(socket) == os.path.realpath(other)


def compare(address: str, snapshotter: str, daemon: str) -> Difference:
    """
    Compare the rows of the containerd at *address* with the snapshots that *daemon* serves to it.

    Looks again after a second if the two differ, and leaves out passing differences.
    Two snapshots of one name count as one.

    Args:
        daemon: The socket of the daemon, by `references.locate`.

    Raises:
        NotLoadedError: containerd has not loaded the snapshotter.
        UnavailableError: containerd or the daemon does not answer in time.
    """
    found = _look(address, snapshotter, daemon)
    if found[0] or found[1]:
        time.sleep(references.ROW_SECONDS)
        again = _look(address, snapshotter, daemon)
        found = found[0] & again[0], found[1] & again[1]
    # A snapshot is made after its parent, and has a larger number.
    newest_first = sorted(found[0], key=lambda key: int(key.split("/")[1]), reverse=True)
    return Difference(tuple(newest_first), tuple(sorted(found[1])))


def _look(address: str, snapshotter: str, daemon: str) -> tuple[set[str], set[str]]:
    with Client(daemon, snapshotter=snapshotter, timeout=30.0) as client:
        client.missed()
        keys = {info.name for info in client.walk()}
        known = references.known(address, snapshotter)
        # containerd has just asked the daemon for the snapshot of each row.
        missed = {key for key in client.missed() if containerd.split(key)}
    return missed, {key for key in keys if containerd.split(key) not in known}
