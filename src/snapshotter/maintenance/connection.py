"""
Diagnosis of the connection between a store and its client: the daemon, containerd, and containerd's rows.
"""

import contextlib
import shlex
from collections.abc import Collection, Iterator, Sequence

from snapshotter.analysis import containerd, references, rows
from snapshotter.analysis.references import NotLoadedError
from snapshotter.client import check_serving
from snapshotter.errors import Error, UnavailableError
from snapshotter.model import Problem
from snapshotter.store import lock
from snapshotter.store.lock import Holder

_START = "start the daemon: `systemctl start btrfs-snapshotter`"
_RESTART = "read its log: `journalctl -u btrfs-snapshotter`; then `systemctl restart btrfs-snapshotter`"
_CHECK = (
    "`snapshotter setup containerd --check`, on k3s and RKE2 with `--for k3s` or `--for rke2`, lists the missing "
    "settings; then restart containerd"
)


def examine(root: str, client: str, keys: Collection[str], addresses: Sequence[str]) -> Iterator[Problem]:
    """
    Yield the problems between the store at *root* and its client.

    Every question has a time limit. Connects to the daemon, which starts a daemon that systemd starts on demand.

    Args:
        client: The name of the snapshotter in containerd.
        keys: The keys of the snapshots.
        addresses: The sockets of containerd to ask; empty if the store is not containerd's.
    """
    users: dict[str, str] = {}
    silent: list[Problem] = []
    for address in addresses:
        try:
            users[address] = references.locate(address, client)
        except NotLoadedError as error:
            # The snapshots of a BuildKit without containerd are in this namespace, and no containerd knows them.
            if not keys or any(not key.startswith("buildkit/") for key in keys):
                silent.append(Problem(address, str(error), _CHECK))
        except UnavailableError as error:
            silent.append(Problem(address, str(error), "start containerd, or name its socket with --containerd"))
    holder = _holder(root, users)
    if holder and holder.socket:
        try:
            check_serving(holder.socket)
        except Error as error:
            yield Problem(root, f"its daemon, process {holder.pid}, does not serve it: {error}", _RESTART)
            return
    if not users:
        yield from silent
        return
    if not holder:
        yield Problem(root, f"no daemon serves it, but {_expected(users)}", _START)
    elif not holder.socket:
        what = f"process {holder.pid} ({holder.command}) has it and does not serve it, but {_expected(users)}"
        yield Problem(root, what, f"stop that process; then {_START}")
    elif ours := [address for address, socket in users.items() if rows.is_same(socket, holder.socket)]:
        for address in ours:
            yield from _differences(address, client, holder.socket)
    else:
        cure = (
            "correct the address in the drop-in, as `snapshotter setup containerd` prints it; then restart containerd"
        )
        yield Problem(root, f"its daemon is at {holder.socket!r}, but {_expected(users)}", cure)


def _holder(root: str, users: dict[str, str]) -> Holder | None:
    """
    Return the process that has the store at *root*, once systemd has started a daemon that it starts on demand.
    """
    if not (holder := lock.find_holder(root)):
        for socket in users.values():
            with contextlib.suppress(Error):
                check_serving(socket)
                holder = lock.find_holder(root)
    return holder


def _expected(users: dict[str, str]) -> str:
    return " and ".join(f"the containerd at {address!r} expects it at {socket!r}" for address, socket in users.items())


def _differences(address: str, client: str, daemon: str) -> Iterator[Problem]:
    try:
        found = rows.compare(address, client, daemon)
        needs = references.needed(address, client) if found.without_snapshot else {}
    except Error as error:
        yield Problem(address, f"its snapshots cannot be compared: {error}", "look into the log of containerd")
        return
    for key in found.without_snapshot:
        namespace, name = containerd.split(key) or ("", key)
        need = needs.get((namespace, name), "a label or a child")
        remove = references.removal(address, client, namespace, name)
        cure = f"`{remove}`, then pull the image or create the container again"
        yield Problem(key, f"containerd has it for {need}, but the store does not", cure)
    for key in found.without_row:
        what = "containerd does not know it, and removes it at its next garbage collection"
        yield Problem(key, what, f"`snapshotter rm --force {shlex.quote(key)}` removes it at once")
