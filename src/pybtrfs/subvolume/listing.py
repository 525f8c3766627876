"""
Listing of nested subvolumes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from contextlib import closing, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pybtrfs import ioctl, items, syscall
from pybtrfs.items import FIRST_FREE_OBJECTID, FS_TREE_OBJECTID, ROOT_TREE_OBJECTID, Key
from pybtrfs.path import ENCODING, ERRORS, Target, open_in_pieces, opened, owned
from pybtrfs.subvolume.info import (
    SubvolumeInfo,
    directory_path,
    get_id,
    get_info,
    is_deleted,
    is_root,
    lookup,
    lookup_root,
)
from pybtrfs.tree_search import MAX, is_permitted, search, search_subvolume_records

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterator, Mapping

_REMEMBERED = 4096  # paths of directories
UNREACHABLE = (
    errno.EACCES,
    errno.EXDEV,  # something is mounted on it
    errno.ENAMETOOLONG,
    # Deleted or replaced concurrently:
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
)


class SubvolumeEntry(NamedTuple):
    """
    A subvolume, and its path from the subvolume that was listed.
    """

    path: str
    info: SubvolumeInfo


class SubvolumeRef(NamedTuple):
    """
    A child subvolume: its id, and the inode number of the directory that contains it.
    """

    id: int
    dir_id: int


def iterate(
    filesystem: Target, *, top: int = FS_TREE_OBJECTID, directories: Mapping[int, str] = MappingProxyType({})
) -> Generator[SubvolumeEntry, None, None]:
    """
    Yield all subvolumes below the subvolume *top*, by id, with their paths from *top*.

    Deleted subvolumes are skipped. Memory use does not grow with the number of subvolumes. The listing is not atomic: a
    subvolume that is created or deleted concurrently may be listed or not. The path of a subvolume that is renamed
    concurrently is the old or the new path. Times and transactions that are not committed yet are not seen.

    Issues one tree search (Linux 3.16), and ``BTRFS_IOC_INO_LOOKUP`` for each directory that contains subvolumes and is
    not a subvolume itself; some thousand directories are cached. Both need ``CAP_SYS_ADMIN``.

    Without ``CAP_SYS_ADMIN``, *filesystem* must be the root of *top*. The listing is then that of `iterate_below`.

    Args:
        top: The id of a subvolume; 0 means the subvolume that contains *filesystem*, wherever *filesystem* is in it.
        directories: Known paths of directories in *top*, with a trailing slash, by inode number; the kernel is not
            asked for them. os.scandir has both for a directory of many directories with one subvolume each.

    Raises:
        FileNotFoundError: *top* does not exist, or is deleted.
        PermissionError: The caller lacks ``CAP_SYS_ADMIN``, and *filesystem* is not the root of *top*.
    """
    with opened(filesystem) as fd:
        if top == 0:
            top = get_id(fd)
        yield from _listed(fd, top, directories) if _may_search(fd, top) else _walk(fd)


def iterate_below(directory: Target) -> Generator[SubvolumeEntry, None, None]:
    """
    Yield all subvolumes below *directory*, a subvolume or any directory in one, with their paths from *directory*.

    The subvolumes are those of the filesystem, also where something is mounted on them. A directory that is renamed
    concurrently may seem to have none. Otherwise the listing is as `iterate` describes it.

    Issues the calls of `iterate`, which need ``CAP_SYS_ADMIN``. Without it, opens each subvolume (Linux 5.6), uses
    `children`, `get_child_path` and `get_info`, and yields each subvolume before its children. A subvolume that the
    caller cannot open, or that has something mounted on it, is skipped with everything below it.

    Raises:
        NotADirectoryError: *directory* is a file of another kind.
    """
    with opened(directory) as fd:
        top = get_id(fd)
        _check_directory(fd)
        if is_permitted(fd):
            above = os.fsdecode(directory_path(fd, top, syscall.fstat_ino(fd)))
            yield from _listed(fd, top, {}, above)
        else:
            yield from _walk(fd)


def get_path_below(directory: Target, subvolid: int) -> str:
    """
    Return the path of the subvolume *subvolid* from *directory*; ``""`` for *directory* itself.

    Joined to the path of a mount point, this is a path by which the subvolume can be opened, unless something is
    mounted above it. `get_path` returns the path from the top level instead.

    Issues tree searches and ``BTRFS_IOC_INO_LOOKUP``, which need ``CAP_SYS_ADMIN``. Without it, opens the subvolumes
    below *directory* until it finds *subvolid*, as `iterate_below` does.

    Raises:
        FileNotFoundError: The subvolume does not exist, or is not below *directory*.
        NotADirectoryError: *directory* is a file of another kind.
    """
    with opened(directory) as fd:
        _check_directory(fd)
        top, inode = get_id(fd), syscall.fstat_ino(fd)
        if subvolid == top and inode == FIRST_FREE_OBJECTID:
            return ""
        try:
            found = lookup(fd, subvolid)
        except PermissionError:
            with closing(_walk(fd)) as entries:
                path = next((path for path, info in entries if info.id == subvolid), None)
        else:
            paths = _Paths(fd, top, {}, os.fsdecode(directory_path(fd, top, inode)))
            above = paths.of(found.parent_id, found.dirid) if found.parent_id else None
            path = None if above is None else above + os.fsdecode(found.name)
        if path is None:
            raise FileNotFoundError(errno.ENOENT, f"subvolume {subvolid} is not below the directory")
        return path


def _may_search(fd: int, top: int) -> bool:
    """
    Return whether the caller may search trees for the subvolumes below *top*; if not, *fd* must be the root of *top*.
    """
    try:
        lookup(fd, top)
    except PermissionError as error:
        if not is_root(fd) or get_id(fd) != top:
            error.add_note("`iterate_below` needs no privilege")
            raise
        return False
    return True


def _check_directory(fd: int) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _listed(
    fd: int, top: int, directories: Mapping[int, str], below: str = ""
) -> Generator[SubvolumeEntry, None, None]:
    """
    Yield the subvolumes below the directory *below* of the subvolume *top*, by tree search.
    """
    paths = _Paths(fd, top, directories, below)
    make = tuple.__new__  # halves the cost of constructing a NamedTuple
    parent = directory = 0
    above: str | None = None
    for record in search_subvolume_records(fd):
        subvolid, name, parent_id, dirid, _ = record  # unpacking a plain tuple is cheaper than an info's properties
        if dirid != directory or parent_id != parent:
            parent, directory = parent_id, dirid
            above = paths.of(parent_id, dirid) if parent_id else None  # a deleted subvolume has no parent
        if above is not None and subvolid != top:
            path = above + name.decode(ENCODING, ERRORS)
            yield make(SubvolumeEntry, (path, make(SubvolumeInfo, record)))


def children(target: Target) -> Generator[SubvolumeRef, None, None]:
    """
    Yield the children of the subvolume that contains *target*, by id.

    Issues ``BTRFS_IOC_GET_SUBVOL_ROOTREF`` (Linux 4.18), which needs no privilege.
    """
    with opened(target) as fd:
        more: int | None = 0
        while more is not None:
            found, more = ioctl.get_subvol_rootref(fd, more)
            for treeid, dirid in found:
                yield SubvolumeRef(treeid, dirid)


def get_child_path(target: Target, child: SubvolumeRef) -> str:
    """
    Return the path of *child* from *target*, the root of the subvolume whose `children` include it, or a directory in
    it.

    Issues ``BTRFS_IOC_INO_LOOKUP_USER`` (Linux 4.18). The caller must have read and search permission on *target* and
    on the directories below it, except the last.

    Raises:
        FileNotFoundError: The subvolume does not exist any more.
        PermissionError: The caller lacks the permission, or *child* is not below *target*.
        OSError: ENAMETOOLONG: the path has more than 3,823 bytes; use `get_path`.
    """
    with opened(target) as fd:
        name, directory = ioctl.ino_lookup_user(fd, child.dir_id, child.id)
        return os.fsdecode(directory + name)


def nested(fd: int, subvolid: int) -> Generator[SubvolumeInfo, None, None]:
    """
    Yield the subvolumes nested in the subvolume *subvolid* at any depth, each before its children.

    The cost depends on their number only, because no other subvolume is read. A subvolume that is deleted concurrently
    is skipped.

    Issues tree searches, which need ``CAP_SYS_ADMIN``.
    """
    levels = [references(fd, subvolid)]
    while levels:
        child = next(levels[-1], None)
        if child is None:
            levels.pop()
            continue
        with suppress(FileNotFoundError):
            yield get_info(fd, child.id)
            levels.append(references(fd, child.id))


def references(fd: int, subvolid: int) -> Generator[SubvolumeRef, None, None]:
    """
    Yield the children of the subvolume *subvolid*, as `children` does, by a tree search.
    """
    key = Key(subvolid, items.ROOT_REF_KEY, 0)
    last = key._replace(offset=MAX)
    for item in search(fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=last, buffer_size=4096):
        yield SubvolumeRef(item.offset, items.root_ref(item.data).dirid)


def open_inode(fd: int, treeid: int, objectid: int) -> int:
    """
    Open a directory of the subvolume *treeid* by its inode number, and return its file descriptor.

    The length of the path and the permissions above do not matter.

    Issues tree searches, which need ``CAP_SYS_ADMIN``, and open_by_handle_at(2), which needs ``CAP_DAC_READ_SEARCH``.
    If open_by_handle_at(2) is refused and *fd* is the root of a subvolume that contains *treeid*, opens the path in
    pieces (Linux 5.6).
    """
    key = Key(objectid, items.INODE_ITEM_KEY, 0)
    item = next(search(fd, tree_id=treeid, min_key=key, max_key=key), None)
    if item is None:
        raise FileNotFoundError(errno.ENOENT, f"subvolume {treeid} has no inode {objectid}")
    generation = items.inode_item(item.data).generation
    try:
        return syscall.open_by_handle_at(fd, treeid, objectid, generation, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        if not is_root(fd):
            raise
    top, path = get_id(fd), directory_path(fd, treeid, objectid)
    while treeid != top:
        found = lookup(fd, treeid)
        treeid = found.parent_id
        path = directory_path(fd, treeid, found.dirid) + found.name + b"/" + path
    return open_in_pieces(fd, path)


def open_reference(fd: int, child: SubvolumeRef) -> int:
    """
    Open the root of *child*, a child of the subvolume with the root *fd*, and return its file descriptor.

    Goes by the inode as `open_inode` does, and without the privilege by the path.
    """
    try:
        return open_inode(fd, child.id, FIRST_FREE_OBJECTID)
    except PermissionError:
        return open_child(fd, get_child_path(fd, child), child)


def open_child(fd: int, path: str, child: SubvolumeRef) -> int:
    """
    Open the root of *child*, at *path* from *fd*, and return its file descriptor.

    Raises:
        FileNotFoundError: Another file has replaced the subvolume.
        OSError: EXDEV: something is mounted on the subvolume.
    """
    child_fd = open_in_pieces(fd, path)
    try:
        if is_root(child_fd) and get_id(child_fd) == child.id:
            return child_fd
        raise FileNotFoundError(errno.ENOENT, f"subvolume {child.id} is not there any more", path)
    except BaseException:
        os.close(child_fd)
        raise


def walk(
    fd: int, *, unreachable: Container[int] = UNREACHABLE, without: int = 0
) -> Generator[tuple[SubvolumeRef, str, int], None, None]:
    """
    Yield the subvolumes below the directory *fd*, each with its path and an open file descriptor of its root.

    Each comes before its children. Its descriptor is closed when the generator advances or is closed, so that the
    number of open files does not limit the depth.

    Args:
        unreachable: A subvolume is skipped with everything below it, if this includes the errno of opening it.
        without: The id of a subvolume to skip with everything below it.
    """
    levels = [("", _children(fd, unreachable))]
    while levels:
        above, left = levels[-1]
        found = next(left, None)
        if found is None:
            levels.pop()
            continue
        child, path = found[0], above + found[1]
        if child.id == without:
            continue
        try:
            child_fd = open_child(fd, path, child)
        except OSError as error:
            if error.errno not in unreachable:
                raise
            continue
        with owned(child_fd):
            yield child, path, child_fd
            with suppress(FileNotFoundError):  # deleted concurrently
                levels.append((path + "/", iter(list(_children(child_fd, unreachable)))))


def _children(fd: int, unreachable: Container[int]) -> Iterator[tuple[SubvolumeRef, str]]:
    for child in children(fd):
        try:
            path = get_child_path(fd, child)
        except OSError as error:
            if error.errno not in unreachable:
                raise
        else:
            yield child, path


def _walk(fd: int) -> Generator[SubvolumeEntry, None, None]:
    """
    Yield the subvolumes below the directory *fd*, without a privilege.
    """
    with closing(walk(fd)) as found:
        for _, path, child_fd in found:
            with suppress(FileNotFoundError):  # deleted concurrently
                info = get_info(child_fd)
                yield SubvolumeEntry(path, info)


class _Paths:
    """
    A cache of the paths of directories, with a trailing slash, from the directory *below* of the subvolume *top*.
    """

    def __init__(self, fd: int, top: int, directories: Mapping[int, str], below: str) -> None:
        self._fd = fd
        self._top = top
        self._directories = directories
        self._below = below
        self._known: OrderedDict[tuple[int, int], str | None] = OrderedDict()

    def of(self, subvolid: int, dirid: int) -> str | None:
        """
        Return the path of a directory in a subvolume, or None if it is deleted or somewhere else.
        """
        where = subvolid, dirid
        if where in self._known:
            return self._known[where]
        path: str | None = None
        # From the inside out: the directories whose paths are unknown, each with the name of its subvolume.
        unknown: list[tuple[tuple[int, int], str]] = []
        while True:
            if where in self._known:
                path = self._known[where]
                break
            subvolid, _ = where
            if subvolid == self._top:
                unknown.append((where, ""))
                path = ""
                break
            found = lookup_root(self._fd, subvolid)
            # Concurrent renames of subvolumes into each other can look like a cycle.
            if found is None or is_deleted(found) or any(where == seen for seen, _ in unknown):
                unknown.append((where, ""))
                break
            unknown.append((where, os.fsdecode(found.name) + "/"))
            where = found.parent_id, found.dirid
        for where, name in reversed(unknown):
            inside = None if path is None else self._inside(*where)
            path = None if path is None or inside is None else f"{path}{name}{inside}"
            if len(self._known) == _REMEMBERED:
                self._known.popitem(last=False)  # removing the oldest entry of a dict slows down with each removal
            self._known[where] = path
        return path

    def _inside(self, subvolid: int, dirid: int) -> str | None:
        if subvolid == self._top and dirid in self._directories:
            return self._directories[dirid]
        try:
            path = os.fsdecode(directory_path(self._fd, subvolid, dirid))
        except FileNotFoundError:
            return None
        if subvolid != self._top:
            return path
        return path.removeprefix(self._below) if path.startswith(self._below) else None
