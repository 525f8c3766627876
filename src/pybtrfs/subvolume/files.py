"""
Files of a subvolume, read from its tree or, without ``CAP_SYS_ADMIN``, from its directories.

No file is opened and no link followed, so the content of an untrusted image cannot redirect a read. The reads are not
atomic: while the subvolume is written to, their results may not match.
"""

import contextlib
import os
import stat
from collections.abc import Generator
from typing import NamedTuple

from pybtrfs import items, tree_search
from pybtrfs.items import (
    DIR_INDEX_KEY,
    FIRST_FREE_OBJECTID,
    INODE_EXTREF_KEY,
    INODE_ITEM_KEY,
    INODE_REF_KEY,
    InodeItem,
    Item,
    Key,
)
from pybtrfs.path import open_in_pieces, owned

_SMALL = 4096  # bytes; the initial buffer for the items of one inode
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Name(NamedTuple):
    """
    A name of an inode.

    Args:
        directory: The inode number of the directory that has the name.
    """

    directory: int
    name: bytes


def file_type(inode: InodeItem) -> str:
    """
    Return the type of an inode: ``file``, ``directory``, ``symlink``, ``fifo``, ``socket``, ``device`` or ``unknown``.
    """
    return _TYPES.get(stat.S_IFMT(inode.mode), "unknown")


def names(item: Item) -> Generator[Name, None, None]:
    """
    Yield the names in an INODE_REF or INODE_EXTREF item; nothing for any other item.
    """
    if item.type == INODE_REF_KEY:
        for ref in items.inode_ref(item.data):
            yield Name(item.offset, ref.name)
    elif item.type == INODE_EXTREF_KEY:
        for extref in items.inode_extref(item.data):
            yield Name(extref.parent_objectid, extref.name)


class Tree:
    """
    The tree of the subvolume *subvolid* on the filesystem of *fd*.

    All methods issue tree searches, which need ``CAP_SYS_ADMIN``.
    """

    def __init__(self, fd: int, subvolid: int) -> None:
        self.subvolid = subvolid
        self._fd = fd
        self._paths: dict[int, bytes] = {FIRST_FREE_OBJECTID: b""}

    def changed(self, transid: int) -> Generator[tuple[int, InodeItem], None, None]:
        """
        Yield the inodes that changed after the transaction *transid*, with their numbers; unlinked inodes are skipped.
        """
        for item in tree_search.search_changes(self._fd, transid, tree_id=self.subvolid):
            if item.type == INODE_ITEM_KEY and (inode := items.inode_item(item.data)).nlink:
                yield item.objectid, inode

    def inode(self, number: int) -> InodeItem | None:
        """
        Return an inode, or None if it does not exist.
        """
        for item in self._search(number, INODE_ITEM_KEY, INODE_ITEM_KEY):
            return items.inode_item(item.data)
        return None

    def names(self, number: int) -> list[Name]:
        """
        Return the names of an inode; ``.`` for the root.
        """
        if number == FIRST_FREE_OBJECTID:
            return [Name(number, b".")]
        found = self._search(number, INODE_REF_KEY, INODE_EXTREF_KEY)
        return [name for item in found for name in names(item)]

    def entries(self, directory: int) -> dict[bytes, int]:
        """
        Return the inode numbers in a directory by name, without nested subvolumes.
        """
        return {
            entry.name: entry.location.objectid
            for item in self._search(directory, DIR_INDEX_KEY, DIR_INDEX_KEY)
            for entry in items.dir_item(item.data)
            if entry.location.type == INODE_ITEM_KEY
        }

    def path(self, name: Name) -> bytes | None:
        """
        Return the path of a name from the root of the subvolume, or None if a directory above it was deleted
        concurrently.
        """
        missing: dict[int, bytes] = {}
        directory = name.directory
        while directory not in self._paths:
            above = self.names(directory)
            # Concurrent renames of directories into each other can look like a cycle.
            if not above or directory in missing:
                return None
            missing[directory] = above[0].name
            directory = above[0].directory
        path = self._paths[directory]
        for directory, own in reversed(missing.items()):
            path = self._paths[directory] = path + own + b"/"
        return path + name.name

    def _search(self, number: int, first: int, last: int) -> Generator[Item, None, None]:
        return tree_search.search(
            self._fd,
            tree_id=self.subvolid,
            min_key=Key(number, first, 0),
            max_key=Key(number, last, tree_search.MAX),
            buffer_size=_SMALL,
        )


class WalkedTree:
    """
    The files of the subvolume *fd*, as `Tree` has them, from a walk over all its directories. Needs no privilege.

    An inode has only the numbers that stat(2) returns. If a number was reused after its inode was deleted, both
    inodes look like one.
    """

    def __init__(self, fd: int) -> None:
        self._inodes: dict[int, InodeItem] = {}
        self._entries: dict[int, dict[bytes, int]] = {}
        self._names: dict[int, list[Name]] = {}
        self._paths: dict[int, bytes] = {}
        self._device = os.fstat(fd).st_dev
        left = [b""]
        while left:
            path = left.pop()
            try:
                directory_fd = open_in_pieces(fd, path)
            except OSError:
                continue  # deleted or replaced since the listing, or not readable
            with owned(directory_fd):
                left += self._add(directory_fd, path)

    def _add(self, fd: int, path: bytes) -> list[bytes]:
        """
        Add the directory *fd* and its entries, and return the paths of the directories in it.
        """
        status = os.fstat(fd)
        if status.st_dev != self._device:
            return []
        self._inodes[status.st_ino] = _inode(status)
        self._paths[status.st_ino] = above = path + b"/" if path else b""
        entries = self._entries[status.st_ino] = {}
        directories = []
        for name in map(os.fsencode, os.listdir(fd)):
            with contextlib.suppress(FileNotFoundError):  # deleted since the listing
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if found.st_dev == self._device:  # neither a nested subvolume nor a mount
                    entries[name] = found.st_ino
                    self._inodes[found.st_ino] = _inode(found)
                    self._names.setdefault(found.st_ino, []).append(Name(status.st_ino, name))
                    if stat.S_ISDIR(found.st_mode):
                        directories.append(above + name)
        return directories

    def changed(self, transid: int) -> Generator[tuple[int, InodeItem], None, None]:
        """
        Yield all inodes with their numbers, because a walk knows no transactions.
        """
        yield from self._inodes.items()

    def inode(self, number: int) -> InodeItem | None:
        """
        Return an inode, or None if it does not exist.
        """
        return self._inodes.get(number)

    def names(self, number: int) -> list[Name]:
        """
        Return the names of an inode; ``.`` for the root.
        """
        return [Name(number, b".")] if number == FIRST_FREE_OBJECTID else self._names.get(number, [])

    def entries(self, directory: int) -> dict[bytes, int]:
        """
        Return the inode numbers in a directory by name, without nested subvolumes.
        """
        return self._entries.get(directory, {})

    def path(self, name: Name) -> bytes | None:
        """
        Return the path of a name from the root of the subvolume, or None if the directory is not known.
        """
        above = self._paths.get(name.directory)
        return None if above is None else above + name.name


def _inode(status: os.stat_result) -> InodeItem:
    return InodeItem(
        generation=0,
        transid=0,
        size=status.st_size,
        nbytes=status.st_blocks * 512,
        nlink=status.st_nlink,
        uid=status.st_uid,
        gid=status.st_gid,
        mode=status.st_mode,
        rdev=status.st_rdev,
        flags=0,
        sequence=0,
        atime=status.st_atime_ns,
        ctime=status.st_ctime_ns,
        mtime=status.st_mtime_ns,
        otime=0,
    )


def differs(now: InodeItem, before: InodeItem, time_now: int, time_before: int) -> bool:
    """
    Return whether an inode changed against its parent snapshot.

    Reading a file is not a change, nor is a change of the entries of a directory.

    Args:
        time_now: The time of *now* to compare, its ctime or mtime.
        time_before: The same time of *before*.
    """
    if (now.mode, now.uid, now.gid, now.rdev) != (before.mode, before.uid, before.gid, before.rdev):
        return True
    return not stat.S_ISDIR(now.mode) and (now.size, now.nlink, time_now) != (before.size, before.nlink, time_before)
