"""
The files that differ between two snapshots, found in time proportional to the changes, not to the files.
"""

from collections.abc import Iterator

from pybtrfs import subvolume
from pybtrfs.path import opened
from pybtrfs.subvolume.changes import Change, compare
from pybtrfs.subvolume.files import Tree, WalkedTree
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, quoted, translating


def between(store: Snapshotter, key: str, other: str) -> list[Change]:
    """
    Return the changes that lead from the snapshot *key* to the snapshot *other*, sorted by path.

    Either snapshot must be an ancestor of the other.

    A file is modified if its content, owner, mode, extended attributes or number of links changed. A directory is
    modified if its owner or mode changed. The files in a renamed directory are listed only if they changed themselves.
    Nested subvolumes are not searched. Changes of an active snapshot that the kernel holds in memory are not seen: data
    to write back, and deleted names.

    Without ``CAP_SYS_ADMIN``, compares every file of both snapshots.

    Raises:
        NotFoundError: No snapshot has one of the keys.
        FailedPreconditionError: Neither snapshot is an ancestor of the other.
        DataLossError: The subvolume of one snapshot is gone.
    """
    ancestors, others = list(_line(store, key)), list(_line(store, other))
    if key in others:
        return _changes(store, key, other)
    if other in ancestors:
        return sorted(map(_inverse, _changes(store, other, key)), key=_path)
    common = next((ancestor for ancestor in ancestors if ancestor in others), None)
    cure = f"compare each with their common ancestor {quoted(common)}" if common else "they have no common ancestor"
    raise FailedPreconditionError(
        f"neither of the snapshots {quoted(key)} and {quoted(other)} is an ancestor of the other: {cure}"
    )


def from_parent(store: Snapshotter, key: str) -> list[Change]:
    """
    Return the changes of the snapshot *key* to its parent; without a parent, every file is added.

    The rest is as in `between`.
    """
    return _changes(store, store.stat(key).parent, key)


def _line(store: Snapshotter, key: str) -> Iterator[str]:
    """
    Yield *key* and the keys of its ancestors.
    """
    while key:
        yield key
        key = store.stat(key).parent


def _changes(store: Snapshotter, base: str, key: str) -> list[Change]:
    with translating(f"compare snapshot {quoted(key)}"), opened(store.root) as fd:
        path, base_path = store.subvolume(key), store.subvolume(base) if base else ""
        try:
            old = subvolume.get_info(base_path) if base else None
            tree = Tree(fd, subvolume.get_id(path))
            changes = compare(Tree(fd, old.id) if old else None, tree, old.ctransid if old else 0)
        except PermissionError:
            changes = compare(_walked(base_path) if base else None, _walked(path), 0)
        return sorted(changes, key=_path)


def _walked(path: str) -> WalkedTree:
    with opened(path) as fd:
        return WalkedTree(fd)


def _path(change: Change) -> str:
    return change.path


def _inverse(change: Change) -> Change:
    return change._replace(
        path=change.source or change.path,
        source=change.source and change.path,
        change="deleted" if change.change == "added" else "added" if change.change == "deleted" else change.change,
        size=change.size_before,
        size_before=change.size,
    )
