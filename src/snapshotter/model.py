"""
The values that the contract takes and returns, in containerd's terms.

An *active* snapshot is writable; `commit` makes it *committed*, and so a possible *parent* of other snapshots. A *view*
is a read-only look at a parent. A *key* names an active snapshot or a view, a *name* a committed snapshot.
"""

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

__all__ = [
    "EPOCH",
    "LOCAL",
    "IdMap",
    "Info",
    "Kind",
    "Located",
    "Measured",
    "Mount",
    "Problem",
    "Status",
    "Usage",
    "UsageDefinition",
]

EPOCH = datetime.fromtimestamp(0, UTC)

LOCAL = "local"  # the client name of the library and the command

UsageDefinition = Literal["added", "containerd"]


class Kind(enum.StrEnum):
    """
    The kind of a snapshot; ``str()`` and JSON give containerd's spelling.
    """

    VIEW = "View"
    ACTIVE = "Active"
    COMMITTED = "Committed"


class Info(NamedTuple):
    """
    The metadata of a snapshot.

    Args:
        name: The key of an active snapshot or a view, the name of a committed snapshot.
        parent: The name of a committed snapshot; ``""`` without a parent.
        labels: No value is empty.
        created: The time of prepare, view or commit, in UTC.
        updated: The time of the last change of labels, in UTC; first equal to *created*.
    """

    kind: Kind
    name: str
    parent: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    created: datetime = EPOCH
    updated: datetime = EPOCH


class Mount(NamedTuple):
    """
    A mount(2) for the caller to make.

    Args:
        type: The filesystem type, or ``"bind"``.
        source: A device, or a path.
        target: A path below the mount point; ``""`` for the mount point itself.
        options: As in fstab: ``"ro"``, ``"subvolid=257"``.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


class IdMap(NamedTuple):
    """
    The map from the ids in a container's user namespace to ids of the host.

    Args:
        uids: The map of users, as ``CONTAINER:HOST:SIZE[,...]``.
        gids: The map of groups.
        owner: The uid of the host that the container's root has.
    """

    uids: str
    gids: str
    owner: int

    @property
    def options(self) -> tuple[str, str]:
        """
        The options of a mount, in containerd's form.
        """
        return f"uidmap={self.uids}", f"gidmap={self.gids}"


class Usage(NamedTuple):
    """
    The disk usage of a snapshot, without its parents.

    Args:
        size: In bytes.
        inodes: The number of files, directories and all other inodes.
    """

    size: int = 0
    inodes: int = 0

    def __add__(self, other: "Usage") -> "Usage":  # type: ignore[override]  # a tuple's concatenates
        return Usage(self.size + other.size, self.inodes + other.inodes)


class Measured(NamedTuple):
    """
    The usage of a snapshot by both definitions.

    Args:
        added: The bytes that the snapshot added on disk, and the inodes that it created or changed.
        containerd: The number that containerd's own snapshotters report: the whole size of every changed file.
    """

    added: Usage
    containerd: Usage


class Problem(NamedTuple):
    """
    An inconsistency of a store.

    Args:
        subject: The key of the snapshot concerned, or a path if no snapshot is.
        what: The inconsistency.
        cure: The command, or the manual step, that resolves it.
    """

    subject: str
    what: str
    cure: str


class Status(NamedTuple):
    """
    The state of an open store, in numbers.

    Args:
        snapshots: The number of snapshots of each kind.
        pending: The number of removed snapshots, and of subvolumes replaced by a commit, that await destruction.
        problems: The number of `Snapshotter.problems`.
    """

    snapshots: Mapping[Kind, int]
    pending: int
    problems: int


class Located(NamedTuple):
    """
    A snapshot and the place of its content.

    Args:
        path: The path of its subvolume, relative to the root, even if the subvolume is lost. A view has its parent's,
            or that of the empty subvolume.
        usage: Its usage if no system call is needed to know it, else None.
        problem: The reason why the snapshot cannot be used; ``""`` if it can.
    """

    info: Info
    path: str
    usage: Usage | None
    problem: str
