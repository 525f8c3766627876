"""
The containers and images of containerd that use the snapshots of a store.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from snapshotter.analysis import containerd
from snapshotter.cli.codes import DONE, complain
from snapshotter.cli.protection import UNASKED, unasked
from snapshotter.contract import Snapshotter
from snapshotter.errors import UnavailableError
from snapshotter.model import LOCAL

if TYPE_CHECKING:
    from snapshotter.analysis.references import User


def users(client: str, addresses: Sequence[str]) -> "list[User]":
    """
    Return the containers and images that use the snapshots of *client*, asked of each containerd for two seconds.

    Raises:
        UnavailableError: No containerd answers.
        ModuleNotFoundError: The extra for asking is not installed.
    """
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


class UsedBy:
    """
    The users of each snapshot of a store.

    Args:
        users: All users; None if containerd was not asked.
    """

    def __init__(self, users: "Iterable[User] | None") -> None:
        self.asked = users is not None
        self._users: dict[tuple[str, str], list[User]] = {}
        for user in users or ():
            self._users.setdefault((user.namespace, user.snapshot), []).append(user)

    def of(self, key: str) -> "list[User]":
        """
        Return the users of the snapshot *key*, containers first.
        """
        name = containerd.split(key)
        found = self._users.get(name, []) if name else []
        return sorted(found, key=lambda user: (user.kind != "container", user.name))

    def text(self, key: str) -> str:
        """
        Return the names of the users of the snapshot *key*, for people.
        """
        return ", ".join(_shown(self.of(key)))

    def json(self, *keys: str) -> dict[str, Any]:
        """
        Return the users of the snapshots *keys* as members of a JSON object; none if containerd was not asked.
        """
        if not self.asked:
            return {}
        found = [user for key in keys for user in self.of(key)]
        return {
            f"{kind}s": list(dict.fromkeys(user.id for user in found if user.kind == kind))
            for kind in ("container", "image")
        }

    def count(self, keys: Iterable[str]) -> str:
        """
        Return the number of the users of the snapshots *keys*, for people.
        """
        found = {user for key in keys for user in self.of(key)}
        counts = {
            "container": sum(user.kind == "container" for user in found),
            "image": len(_shown([user for user in found if user.kind == "image"])),
        }
        return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count)


def find(store: Snapshotter) -> UsedBy:
    """
    Ask containerd for the users of the snapshots of *store*; silent if the store is not containerd's or none is here.
    """
    client = store.opened.ownership.client
    if client in ("", LOCAL):
        return UsedBy(None)
    try:
        addresses = containerd.sockets(None)
    except UnavailableError:
        return UsedBy(None)
    try:
        return UsedBy(users(client, addresses))
    except UNASKED as error:
        complain(f"containerd was not asked for containers and images: {unasked(error)}", DONE)
        return UsedBy(None)


def _shown(users: "list[User]") -> list[str]:
    """
    Return the names to show of *users*. A tag of an image stands for its digests, which the CRI plugin adds.
    """
    names = list(dict.fromkeys(user.name for user in users))
    digests = [user.name for user in users if user.kind == "image" and _is_digest(user.name)]
    tags = [user.name for user in users if user.kind == "image" and not _is_digest(user.name)]
    return [name for name in names if not tags or name not in digests]


def _is_digest(name: str) -> bool:
    return "@" in name or name.startswith("sha256:")
