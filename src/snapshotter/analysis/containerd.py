"""
The places of containerd's sockets, and the form of its keys: everything about containerd that needs no call.
"""

import os

from snapshotter.errors import UnavailableError

# The second is the socket of both k3s and RKE2.
SOCKETS = ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock")


def sockets(given: str | None) -> list[str]:
    """
    Return the sockets to ask: *given*, else ``$CONTAINERD_ADDRESS``, else every known socket that exists.

    Raises:
        UnavailableError: Nothing is given, and no socket of containerd exists.
    """
    if chosen := given or os.environ.get("CONTAINERD_ADDRESS"):
        return [chosen]
    if found := [path for path in SOCKETS if os.path.exists(path)]:
        return found
    raise UnavailableError(f"there is no socket of containerd at {' or '.join(SOCKETS)}: name it with --containerd")


def split(key: str) -> tuple[str, str] | None:
    """
    Return the namespace and the name in a *key* of containerd, NAMESPACE/NUMBER/NAME; None for another key.
    """
    namespace, number, name = ([*key.split("/", 2), "", ""])[:3]
    return (namespace, name) if namespace and number.isdecimal() and name else None
