"""
Listing the subvolumes in others.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice
from types import MappingProxyType
from typing import NamedTuple

from pybtrfs import ioctl, syscall
from pybtrfs.items import FS_TREE_OBJECTID
from pybtrfs.path import ENCODING, ERRORS, Target, opened
from pybtrfs.subvolume.info import (
    SubvolumeInfo,
    directory_path,
    get_id,
    get_info,
    is_deleted,
    is_root,
    lookup_root,
)
from pybtrfs.tree_search import search_subvolume_records

_REMEMBERED = 4096
_OUT_OF_REACH = (
    errno.EACCES,
    errno.EXDEV,  # something is mounted on it
    errno.ENAMETOOLONG,
    errno.ENOENT,  # deleted or renamed meanwhile, as the others
    errno.ENOTDIR,
    errno.ELOOP,
)


class SubvolumeEntry(NamedTuple):
    """
    A subvolume, and its path below the one whose content was listed.
    """

    path: str
    info: SubvolumeInfo


class SubvolumeRef(NamedTuple):
    """
    A subvolume directly below another one, and the inode number of the directory there that contains it.
    """

    id: int
    dir_id: int


def iterate(
    filesystem: Target, *, top: int = FS_TREE_OBJECTID, directories: Mapping[int, str] = MappingProxyType({})
) -> Iterator[SubvolumeEntry]:
    """
    Yield all subvolumes below the subvolume *top*, or below the one that contains *filesystem* for 0, with their paths
    from it.

    They come by id. What is deleted and not yet cleaned is left out. Memory does not grow with their number, and the
    listing is not atomic: what is created or deleted meanwhile is listed or not, and what is renamed has one name or
    the other. Times and transactions of what is not yet committed are not seen.

    Issues one tree search (Linux 3.16), and ``BTRFS_IOC_INO_LOOKUP`` once for each directory that contains subvolumes
    and is not itself one; of more than some thousands, once more for each that comes again. They need
    ``CAP_SYS_ADMIN``.

    To a caller without it the kernel shows what is below *filesystem*, which must then be the root of *top*: by
    `children`, `get_child_path` and `get_info`, each before what it contains. What the caller may not open, and what
    something is mounted on, is left out with everything in it. This needs Linux 5.6.

    Args:
        directories: Paths of directories in *top*, from its root and with a slash behind, by inode number, for which
            the kernel need not be asked: of a directory with many, each with one subvolume, os.scandir tells both.

    Raises:
        PermissionError: The caller lacks ``CAP_SYS_ADMIN``, and *filesystem* is not the root of *top*.
    """
    with opened(filesystem) as fd:
        if top == 0:
            top = get_id(fd)
        records = search_subvolume_records(fd)
        try:
            first = list(islice(records, 1))
        except PermissionError:
            if not is_root(fd) or get_id(fd) != top:
                raise
            yield from _walk(fd, "")
            return
        paths = _Paths(fd, top, directories)
        make = tuple.__new__  # of a NamedTuple half as expensive as its own
        parent = directory = 0
        above: str | None = None
        for record in chain(first, records):
            subvolid, name, parent_id, dirid, _ = record  # of a plain tuple cheaper than of an info
            if dirid != directory or parent_id != parent:
                parent, directory = parent_id, dirid
                above = paths.of(parent_id, dirid) if parent_id else None  # what is deleted is nowhere
            if above is not None and subvolid != top:
                path = above + name.decode(ENCODING, ERRORS)
                yield make(SubvolumeEntry, (path, make(SubvolumeInfo, record)))


def children(target: Target) -> Iterator[SubvolumeRef]:
    """
    Yield the subvolumes directly below the one that contains *target*, by id.

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
    Return the path of *child* from *target*, the root of the subvolume that `children` found it in.

    Issues ``BTRFS_IOC_INO_LOOKUP_USER`` (Linux 4.18). The caller must be able to read and search *target* and the
    directories in between, except the last one.

    Raises:
        FileNotFoundError: There is no such subvolume any more.
        OSError: ENAMETOOLONG: the path has more than 3,823 bytes; `get_path` finds it.
    """
    with opened(target) as fd:
        name, directory = ioctl.ino_lookup_user(fd, child.dir_id, child.id)
        return os.fsdecode(directory + name)


def open_beneath(fd: int, path: str | bytes) -> int:
    """
    Return a file descriptor of a directory below *fd*, where no link and no mount leads elsewhere.

    Raises:
        OSError: EXDEV: something is mounted on it, or on the way. ELOOP: a symbolic link is.
    """
    beneath = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_XDEV | syscall.RESOLVE_NO_SYMLINKS
    return syscall.openat2(fd, path, os.O_RDONLY | os.O_DIRECTORY, beneath)


def open_child(fd: int, path: str, child: SubvolumeRef) -> int:
    """
    Return a file descriptor of the root of *child*, at *path* from *fd*.

    Raises:
        FileNotFoundError: Something else is there by now.
        OSError: EXDEV: something is mounted on it.
    """
    child_fd = open_beneath(fd, path)
    try:
        if is_root(child_fd) and get_id(child_fd) == child.id:
            return child_fd
        raise FileNotFoundError(errno.ENOENT, f"the subvolume {child.id} is there no longer", path)
    except BaseException:
        os.close(child_fd)
        raise


def opened_children(fd: int) -> Generator[tuple[SubvolumeRef, str, int], None, None]:
    """
    Yield the subvolumes directly below one, each with its path and a file descriptor that is open until the next one;
    the last one until this is at its end, or closed.

    What the caller may not open, and what something is mounted on, is left out.
    """
    for child in children(fd):
        try:
            path = get_child_path(fd, child)
            child_fd = open_child(fd, path, child)
        except OSError as error:
            if error.errno not in _OUT_OF_REACH:
                raise
            continue
        try:
            yield child, path, child_fd
        finally:
            os.close(child_fd)


def _walk(fd: int, above: str) -> Iterator[SubvolumeEntry]:
    with closing(opened_children(fd)) as found:
        for _, path, child_fd in found:
            try:
                info = get_info(child_fd)
            except FileNotFoundError:
                continue  # deleted meanwhile
            yield SubvolumeEntry(above + path, info)
            yield from _walk(child_fd, f"{above}{path}/")


class _Paths:
    """
    The paths of directories from the subvolume *top*, with a slash behind; those asked for last are remembered.
    """

    def __init__(self, fd: int, top: int, directories: Mapping[int, str]) -> None:
        self._fd = fd
        self._top = top
        self._directories = directories
        self._known: OrderedDict[tuple[int, int], str | None] = OrderedDict()

    def of(self, subvolid: int, dirid: int) -> str | None:
        """
        The path of a directory in a subvolume; None when it is not below the top, or no longer there.
        """
        where = subvolid, dirid
        if where in self._known:
            return self._known[where]
        path: str | None = None
        # From the inside out: the directories above whose paths are not known, and the names of their subvolumes.
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
            # Renaming subvolumes into one another meanwhile may make a loop of what is seen.
            if found is None or is_deleted(found) or any(where == seen for seen, _ in unknown):
                unknown.append((where, ""))
                break
            unknown.append((where, os.fsdecode(found.name) + "/"))
            where = found.parent_id, found.dirid
        for where, name in reversed(unknown):
            inside = None if path is None else self._inside(*where)
            path = None if path is None or inside is None else f"{path}{name}{inside}"
            if len(self._known) == _REMEMBERED:
                self._known.popitem(last=False)  # of a dict it would take longer and longer
            self._known[where] = path
        return path

    def _inside(self, subvolid: int, dirid: int) -> str | None:
        if subvolid == self._top and dirid in self._directories:
            return self._directories[dirid]
        try:
            return os.fsdecode(directory_path(self._fd, subvolid, dirid))
        except FileNotFoundError:
            return None
