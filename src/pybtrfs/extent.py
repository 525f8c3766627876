"""
Extents of files, the references to them, and the extents that only some subvolumes reference.

Only quotas count in advance how many bytes come back when subvolumes are destroyed, and quotas stall the filesystem.
`unshared` asks the kernel for the back references of each extent instead. `has_reference` is cheaper: use it first to
skip extents that a parent or child has at the same offset of the same file.
"""

import contextlib
import errno
import os
from collections.abc import Collection, Generator, Iterable
from typing import NamedTuple, Protocol, TypeVar

from pybtrfs import ioctl, items, subvolume, tree_search
from pybtrfs.items import EXTENT_DATA_KEY, FileExtent, Key
from pybtrfs.path import Target, opened
from pybtrfs.subvolume import SubvolumeInfo

_SMALL, _LARGEST = 1 << 12, 1 << 24  # sizes of a LOGICAL_INO buffer in bytes; the kernel fills no more than the larger
_ONE_ITEM = 512  # bytes; a buffer for one file extent item and its header

T = TypeVar("T")


class Extent(NamedTuple):
    """
    An extent, and one place in a file that references it.

    Args:
        bytenr: The logical address in the filesystem.
        size: The size on disk, in bytes.
        inum: The inode number of the file.
        offset: The offset in the file, in bytes.
    """

    bytenr: int
    size: int
    inum: int
    offset: int


class ExtentReference(NamedTuple):
    """
    A reference to an extent.

    Args:
        inum: The inode number of the file.
        offset: The offset in the file, in bytes.
        root: The id of the subvolume that contains the file.
    """

    inum: int
    offset: int
    root: int


class Track(Protocol):
    """
    Yields the given things one by one and reports the progress; `iter` reports nothing.
    """

    def __call__(self, things: Iterable[T], /) -> Iterable[T]: ...


def iterate(filesystem: Target, subvolid: int, base: SubvolumeInfo | None = None) -> Generator[Extent, None, None]:
    """
    Yield the extents of the files of a subvolume, once for each reference; nothing if the subvolume is deleted.

    Inline data of up to 2 KiB has no extent. Data that is not written back is not seen.

    Issues tree searches, which need ``CAP_SYS_ADMIN``.

    Args:
        base: The read-only subvolume it was snapshotted from. Extents that the base has at the same offset are skipped,
            most of them without being read.
    """
    since = base.ctransid + 1 if base else 0
    with opened(filesystem) as fd, contextlib.suppress(FileNotFoundError):
        for item in tree_search.search_files(fd, tree_id=subvolid, min_transid=since):
            if item.type == EXTENT_DATA_KEY:
                found = items.extent_data(item.data)
                if isinstance(found, FileExtent) and found.disk_bytenr:
                    extent = Extent(found.disk_bytenr, found.disk_num_bytes, item.objectid, item.offset)
                    if base is None or not has_reference(fd, base.id, extent):
                        yield extent


def has_reference(filesystem: Target, subvolid: int, extent: Extent) -> bool:
    """
    Return whether a subvolume references *extent* at the same offset of the same inode; not if it is deleted.

    Issues one tree search, which needs ``CAP_SYS_ADMIN``.
    """
    key = Key(extent.inum, EXTENT_DATA_KEY, extent.offset)
    with opened(filesystem) as fd, contextlib.suppress(FileNotFoundError):
        for item in tree_search.search(fd, tree_id=subvolid, min_key=key, max_key=key, buffer_size=_ONE_ITEM):
            found = items.extent_data(item.data)
            return isinstance(found, FileExtent) and found.disk_bytenr == extent.bytenr
    return False


def get_references(filesystem: Target, bytenr: int) -> tuple[ExtentReference, ...]:
    """
    Return the references to any part of the extent at *bytenr*, or an empty tuple if the extent is free.

    References from deleted subvolumes that the kernel has not cleaned yet are included.

    Issues ``BTRFS_IOC_LOGICAL_INO_V2`` (Linux 4.15), which needs ``CAP_SYS_ADMIN`` and takes some microseconds for each
    reference.

    Raises:
        OSError: EOVERFLOW: there are more than 699,000 references.
    """
    with opened(filesystem) as fd:
        size = _SMALL
        while True:
            try:
                found, missed = ioctl.logical_ino_v2(fd, bytenr, size, ioctl.LOGICAL_INO_ARGS_IGNORE_OFFSET)
            except FileNotFoundError:
                return ()
            if not missed:
                return tuple(map(ExtentReference._make, found))
            if size == _LARGEST:
                raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW), filesystem)
            size = _LARGEST


def unshared(
    filesystem: Target, extents: Iterable[Extent], owners: Collection[int], track: Track = iter
) -> dict[int, int]:
    """
    Return the *extents* that no subvolume but *owners* references: their sizes in bytes, by bytenr.

    References from deleted subvolumes do not count.

    Issues the ioctl of `get_references` for each extent, and a tree search for each subvolume that is found. Both need
    ``CAP_SYS_ADMIN``.

    Args:
        owners: Ids of subvolumes.
        track: Wraps the extents while they are checked.
    """
    with opened(filesystem) as fd:
        alive = _Alive(fd)

        def shared(extent: Extent) -> bool:
            roots = {reference.root for reference in get_references(fd, extent.bytenr)}
            return any(root not in owners and alive[root] for root in roots)

        unique = {extent.bytenr: extent for extent in extents}
        return {extent.bytenr: extent.size for extent in track(unique.values()) if not shared(extent)}


class _Alive(dict[int, bool]):
    """
    Whether a subvolume exists and is not deleted, by id; each is looked up once.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def __missing__(self, subvolid: int) -> bool:
        try:
            subvolume.get_info(self._fd, subvolid)
        except FileNotFoundError:
            self[subvolid] = False
        else:
            self[subvolid] = True
        return self[subvolid]
