"""
What changed between two snapshots, in the number of changes, not of files.

A snapshot shares every leaf of its tree with what it was made of until something in the leaf changes. So a search meets
the changed leaves only, and the directories whose entries changed are the ones whose inodes did.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pybtrfs import subvolume
from pybtrfs.items import InodeItem
from pybtrfs.path import opened
from pybtrfs.subvolume.files import Name, Tree, differs, file_type
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, quoted, translating

ChangeKind = Literal["added", "modified", "deleted", "renamed"]


@dataclass(frozen=True, slots=True)
class Change:
    """
    One path that is not what it was.

    Args:
        path: From the root of the snapshot; where it was, when it is deleted.
        type: ``file``, ``directory``, ``symlink``, ``fifo``, ``socket`` or ``device``.
        size: In bytes; None when it is deleted.
        size_before: None when it is added.
        source: The path that it had, when it is renamed.
    """

    path: str
    change: ChangeKind
    type: str
    size: int | None
    size_before: int | None
    source: str = ""


def between(store: Snapshotter, key: str, other: str) -> list[Change]:
    """
    What makes the snapshot *other* of *key*, by path; one of them has to rest on the other one, however far below.

    What a directory that was renamed contains is not listed. A file is modified when its content, owner, mode or
    extended attributes are, or when it got or lost a link; a directory when its owner or mode are. What is not written
    back is not seen, and nested subvolumes are not looked into. Needs ``CAP_SYS_ADMIN``.

    Raises:
        NotFoundError: No snapshot has one of the keys.
        FailedPreconditionError: Neither rests on the other.
        DataLossError: The subvolume of one is gone.
    """
    ancestors, others = list(_line(store, key)), list(_line(store, other))
    if key in others:
        return _changes(store, key, other)
    if other in ancestors:
        return sorted(map(_inverse, _changes(store, other, key)), key=_path)
    common = next((ancestor for ancestor in ancestors if ancestor in others), None)
    cure = f"compare each with {quoted(common)}, on which both do" if common else "they have nothing in common"
    raise FailedPreconditionError(f"neither of {quoted(key)} and {quoted(other)} rests on the other: {cure}")


def from_parent(store: Snapshotter, key: str) -> list[Change]:
    """
    What the snapshot *key* changed of its parent; everything in it when it has none. As `between` for the rest.
    """
    return _changes(store, store.stat(key).parent, key)


def _line(store: Snapshotter, key: str) -> Iterator[str]:
    """
    A snapshot, its parent, its parent's, and so on.
    """
    while key:
        yield key
        key = store.stat(key).parent


def _changes(store: Snapshotter, base: str, key: str) -> list[Change]:
    with translating(f"compare snapshot {quoted(key)}"), opened(store.root) as fd:
        new = Tree(fd, subvolume.get_id(store.subvolume(key)))
        if not base:
            return sorted(_Comparison(None, new, 0).changes(), key=_path)
        old = subvolume.get_info(store.subvolume(base))
        return sorted(_Comparison(Tree(fd, old.id), new, old.ctransid).changes(), key=_path)


def _path(change: Change) -> str:
    return change.path


def _inverse(change: Change) -> Change:
    return replace(
        change,
        path=change.source or change.path,
        source=change.source and change.path,
        change="deleted" if change.change == "added" else "added" if change.change == "deleted" else change.change,
        size=change.size_before,
        size_before=change.size,
    )


class _Comparison:
    """
    Of the tree *new* with *old*, of which it was a snapshot that was changed after the transaction *since*.
    """

    def __init__(self, old: Tree | None, new: Tree, since: int) -> None:
        self._old = old
        self._new = new
        self._since = since
        self._changed = dict(new.changed(since))
        self._gone: dict[Name, int] = {}
        self._come: dict[Name, int] = {}

    def changes(self) -> Iterator[Change]:
        self._compare_directories()
        sources = {number: name for name, number in self._gone.items()}
        for name, number in self._come.items():
            inode, before = self._inode(number), self._before(number)
            source = sources.pop(number, None) if before else None
            if source and self._old:
                del self._gone[source]
                yield from _change("renamed", self._new.path(name), inode, before, self._old.path(source))
            else:
                yield from _change("added", self._new.path(name), inode, None)
        for number, inode in self._changed.items():
            before = self._before(number)
            if before and differs(inode, before, inode.ctime, before.ctime):
                for name in self._new.names(number):
                    if name not in self._come:
                        yield from _change("modified", self._new.path(name), inode, before)
        if self._old:
            for name, number in self._gone.items():
                yield from _change("deleted", self._old.path(name), None, self._old.inode(number))

    def _compare_directories(self) -> None:
        """
        Find the names that came and went: in directories that changed, that came, or that went themselves.
        """
        for number, inode in self._changed.items():
            if file_type(inode) == "directory":
                now = self._new.entries(number)
                before = self._old.entries(number) if self._old and self._before(number) else {}
                same = {name for name, entry in now.items() if before.get(name) == entry and not self._is_new(entry)}
                self._come.update({Name(number, name): entry for name, entry in now.items() if name not in same})
                self._gone.update({Name(number, name): entry for name, entry in before.items() if name not in same})
        pending = list(self._gone.values())
        while self._old and pending:
            number = pending.pop()
            gone = self._old.inode(number)
            if gone and file_type(gone) == "directory" and (self._is_new(number) or not self._inode(number)):
                entries = self._old.entries(number)
                self._gone.update({Name(number, name): entry for name, entry in entries.items()})
                pending += entries.values()

    def _is_new(self, number: int) -> bool:
        """
        Whether the inode was made since, if only with the number of one that was deleted.
        """
        inode = self._changed.get(number)
        return inode is not None and inode.generation > self._since

    def _inode(self, number: int) -> InodeItem | None:
        return self._changed.get(number) or self._new.inode(number)

    def _before(self, number: int) -> InodeItem | None:
        return None if self._old is None or self._is_new(number) else self._old.inode(number)


def _change(
    change: ChangeKind,
    path: bytes | None,
    inode: InodeItem | None,
    before: InodeItem | None,
    source: bytes | None = b"",
) -> Iterator[Change]:
    """
    The change, unless what it is of was deleted meanwhile.
    """
    one = inode or before
    if one and path is not None and source is not None:
        size, size_before = (_size(each) if each else None for each in (inode, before))
        yield Change(os.fsdecode(path), change, file_type(one), size, size_before, os.fsdecode(source))


def _size(inode: InodeItem) -> int:
    return 0 if file_type(inode) == "directory" else inode.size
