"""
The containers and images of containerd that use the snapshots of a store.
"""

from typing import TYPE_CHECKING

from snapshotter.analysis import containerd
from snapshotter.errors import UnavailableError

if TYPE_CHECKING:
    from snapshotter.analysis.references import User


def users(client: str, socket: str | None = None) -> "list[User]":
    """
    Return the containers and images that use the snapshots of *client*, asked of containerd for two seconds.

    Args:
        socket: The socket to ask, instead of every known socket that exists.

    Raises:
        UnavailableError: No containerd answers.
        ModuleNotFoundError: The extra for asking is not installed.
    """
    addresses = containerd.sockets(socket)
    from snapshotter.analysis import references  # slow to import, so only if a socket exists

    found: list[User] = []
    failures = []
    for address in addresses:
        try:
            found += references.users(address, client)
        except UnavailableError as error:
            failures.append(error)
    if len(failures) == len(addresses):
        raise failures[0]
    return found
