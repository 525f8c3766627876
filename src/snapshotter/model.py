"""
What is said about a snapshot: its kind, its description, its size, and how to mount it.
"""

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

__all__ = ["Info", "Kind", "Measured", "Mount", "Usage"]

EPOCH = datetime.fromtimestamp(0, UTC)


class Kind(enum.StrEnum):
    """
    What a snapshot is; ``str()`` and JSON give containerd's spelling.
    """

    VIEW = "View"
    ACTIVE = "Active"
    COMMITTED = "Committed"


class Info(NamedTuple):
    """
    The description of one snapshot.

    Args:
        name: The key of an active snapshot or a view, the name of a committed one.
        parent: The name of a committed snapshot; ``""`` for none.
        labels: None of the values is empty.
        created: When the snapshot was prepared, viewed or committed, in UTC.
        updated: When its labels last changed, in UTC; *created* at birth.
    """

    kind: Kind
    name: str
    parent: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    created: datetime = EPOCH
    updated: datetime = EPOCH


class Usage(NamedTuple):
    """
    What a snapshot takes on disk, without its parents.

    Args:
        size: In bytes.
        inodes: Files, directories and everything else that has an inode.
    """

    size: int = 0
    inodes: int = 0

    def __add__(self, other: "Usage") -> "Usage":  # type: ignore[override]  # numbers, where a tuple's is for any length
        return Usage(self.size + other.size, self.inodes + other.inodes)


class Measured(NamedTuple):
    """
    The usage of a snapshot by both definitions.

    Args:
        added: Bytes that it added on disk, and inodes that it made or changed.
        containerd: What containerd's own snapshotters say: the whole size of every file that differs.
    """

    added: Usage
    containerd: Usage


class Mount(NamedTuple):
    """
    One mount(2) to be made by the caller.

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


UsageDefinition = Literal["added", "containerd"]

LOCAL = "local"  # the client of library and command


class Problem(NamedTuple):
    """
    Something wrong with a store.

    Args:
        subject: A key, or the path of what has none.
    """

    subject: str
    what: str
    cure: str


class Status(NamedTuple):
    """
    A store in numbers.

    Args:
        pending: Removed snapshots, and former subvolumes of committed ones, that are not destroyed yet.
        problems: As many as `Snapshotter.problems` has.
    """

    snapshots: Mapping[Kind, int]
    pending: int
    problems: int


class Located(NamedTuple):
    """
    A snapshot, and where what it holds is.

    Args:
        path: Of its subvolume, from the root; of a view its parent's, or an empty one. Empty when that is lost.
        usage: What it adds to its parent, where no system call is needed to know.
        problem: Why it cannot be used; empty when it can.
    """

    info: Info
    path: str
    usage: Usage | None
    problem: str
