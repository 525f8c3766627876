"""
The files that differ between two subvolumes, found in time proportional to the changes, not to the files.

A snapshot shares every leaf of its tree with its source until an item in the leaf changes. So a search reads only the
changed leaves. A directory whose entries changed has a changed inode.
"""

import os
from collections.abc import Generator, Iterator
from typing import Literal, NamedTuple

from pybtrfs.items import InodeItem
from pybtrfs.path import Target, opened
from pybtrfs.subvolume.files import Name, Tree, WalkedTree, differs, file_type
from pybtrfs.subvolume.info import get_id, get_info

ChangeKind = Literal["added", "modified", "deleted", "renamed"]


class Change(NamedTuple):
    """
    A path that was added, modified, deleted or renamed.

    Args:
        path: The path from the root of the subvolume; the former path if the file is deleted.
        type: ``file``, ``directory``, ``symlink``, ``fifo``, ``socket`` or ``device``.
        size: In bytes; None if the file is deleted.
        size_before: In bytes; None if the file is added.
        source: The former path if the file is renamed, else "".
    """

    path: str
    change: ChangeKind
    type: str
    size: int | None
    size_before: int | None
    source: str = ""


def changes(target: Target, since: Target) -> Generator[Change, None, None]:
    """
    Yield the changes that lead from the subvolume *since* to the subvolume *target*, in no order.

    A file is modified if its content, owner, mode, extended attributes or number of links changed. A directory is
    modified if its owner or mode changed. The files in a renamed directory are yielded only if they changed themselves.
    Nested subvolumes are not searched. Changes of a writable subvolume that the kernel holds in memory are not seen:
    data to write back, and deleted names. `filesystem.sync` writes them.

    Issues ``BTRFS_IOC_TREE_SEARCH_V2``, which needs ``CAP_SYS_ADMIN``, and reads only what changed.

    Args:
        since: A read-only snapshot of *target*, the subvolume that *target* is a snapshot of, or an older snapshot of
            the same subvolume. The changes between unrelated subvolumes are wrong.

    Raises:
        PermissionError: The caller has no ``CAP_SYS_ADMIN``.
    """
    with opened(target) as fd, opened(since) as since_fd:
        old = get_info(since_fd)
        yield from compare(Tree(fd, old.id), Tree(fd, get_id(fd)), old.ctransid)


def compare(old: Tree | WalkedTree | None, new: Tree | WalkedTree, since: int) -> Iterator[Change]:
    """
    Yield the changes that lead from the tree *old* to the tree *new*, as `changes` does.

    Args:
        old: The tree that *new* was snapshotted from; None to compare with an empty one.
        since: The last transaction that changed *old*; only later changes of *new* are compared.
    """
    return _Comparison(old, new, since).changes()


class _Comparison:
    """
    The comparison of the tree *new* with the tree *old*.

    Args:
        old: The tree that *new* was snapshotted from; None to compare with an empty one.
        since: The last transaction that changed *old*; only later changes of *new* are compared.
    """

    def __init__(self, old: Tree | WalkedTree | None, new: Tree | WalkedTree, since: int) -> None:
        self._old = old
        self._new = new
        self._since = since
        self._changed = dict(new.changed(since))
        self._deleted: dict[Name, int] = {}
        self._added: dict[Name, int] = {}

    def changes(self) -> Iterator[Change]:
        self._compare_directories()
        sources = {number: name for name, number in self._deleted.items()}
        for name, number in self._added.items():
            inode, before = self._inode(number), self._before(number)
            source = sources.pop(number, None) if before else None
            if source and self._old:
                del self._deleted[source]
                yield from _change("renamed", self._new.path(name), inode, before, self._old.path(source))
            else:
                yield from _change("added", self._new.path(name), inode, None)
        for number, inode in self._changed.items():
            before = self._before(number)
            if before and differs(inode, before, inode.ctime, before.ctime):
                for name in self._new.names(number):
                    if name not in self._added:
                        yield from _change("modified", self._new.path(name), inode, before)
        if self._old:
            for name, number in self._deleted.items():
                yield from _change("deleted", self._old.path(name), None, self._old.inode(number))

    def _compare_directories(self) -> None:
        """
        Find the added and deleted names: in changed and added directories, and below deleted directories.
        """
        for number, inode in self._changed.items():
            if file_type(inode) == "directory":
                now = self._new.entries(number)
                before = self._old.entries(number) if self._old and self._before(number) else {}
                same = {name for name, entry in now.items() if before.get(name) == entry and not self._is_new(entry)}
                self._added.update({Name(number, name): entry for name, entry in now.items() if name not in same})
                self._deleted.update({Name(number, name): entry for name, entry in before.items() if name not in same})
        pending = list(self._deleted.values())
        while self._old and pending:
            number = pending.pop()
            gone = self._old.inode(number)
            if gone and file_type(gone) == "directory" and (self._is_new(number) or not self._inode(number)):
                entries = self._old.entries(number)
                self._deleted.update({Name(number, name): entry for name, entry in entries.items()})
                pending += entries.values()

    def _is_new(self, number: int) -> bool:
        """
        Return whether the inode was made after *since*, even if it reuses the number of a deleted inode.
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
    Yield the change, or nothing if the file has been deleted since.
    """
    shown = inode or before
    if shown and path is not None and source is not None:
        size, size_before = (_size(each) if each else None for each in (inode, before))
        yield Change(os.fsdecode(path), change, file_type(shown), size, size_before, os.fsdecode(source))


def _size(inode: InodeItem) -> int:
    return 0 if file_type(inode) == "directory" else inode.size
