"""
Which extents are a set of subvolumes' alone: the bytes on disk that come back when all of them are destroyed.

Nobody counts that in advance: quotas would, and stall the filesystem. So each extent that may be is asked for, by its
back references in the kernel; those that a relative has at the same place of the same file are not, for that is cheaper
to see, and of a layer with thousands of children much cheaper.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from pybtrfs import items, subvolume, tree_search
from pybtrfs.extent import get_references
from pybtrfs.items import EXTENT_DATA_KEY, FileExtent, Key
from pybtrfs.subvolume import SubvolumeInfo

_ONE_EXTENT = 512  # bytes that hold it with its header

T = TypeVar("T")


class Track(Protocol):
    """
    Passes things on one by one, and shows somebody how far that is; `iter` shows nobody.
    """

    def __call__(self, things: Iterable[T], /) -> Iterable[T]: ...


class Extent(NamedTuple):
    """
    An extent, and a place that refers to it.

    Args:
        size: What it takes on disk, in bytes.
        inode: The number of the file's inode.
        offset: Where in the file, in bytes.
    """

    bytenr: int
    size: int
    inode: int
    offset: int


def iterate(fd: int, subvolid: int, base: SubvolumeInfo | None = None) -> Iterator[Extent]:
    """
    The extents of the files of a subvolume, as often as a file refers to them; none once it is deleted. Data that is
    kept with the inode, up to 2 KiB, is in none.

    Args:
        base: The read-only subvolume that it is a snapshot of, or was before it was committed: what that has at the
            same place is left out, and most of it never looked at.
    """
    since = base.ctransid + 1 if base else 0
    with contextlib.suppress(FileNotFoundError):
        for item in tree_search.search_files(fd, tree_id=subvolid, min_transid=since):
            if item.type == EXTENT_DATA_KEY:
                found = items.extent_data(item.data)
                if isinstance(found, FileExtent) and found.disk_bytenr:
                    extent = Extent(found.disk_bytenr, found.disk_num_bytes, item.objectid, item.offset)
                    if base is None or not has(fd, base.id, extent):
                        yield extent


def has(fd: int, subvolid: int, wanted: Extent) -> bool:
    """
    Whether a subvolume has the extent *wanted* at the same place.
    """
    key = Key(wanted.inode, EXTENT_DATA_KEY, wanted.offset)
    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
        for item in tree_search.search(fd, tree_id=subvolid, min_key=key, max_key=key, buffer_size=_ONE_EXTENT):
            found = items.extent_data(item.data)
            return isinstance(found, FileExtent) and found.disk_bytenr == wanted.bytenr
    return False


def unshared(fd: int, extents: Iterable[Extent], owners: Collection[int], track: Track = iter) -> dict[int, int]:
    """
    Of *extents*, those that no subvolume but *owners* refers to: where they are, and their size.

    What is deleted, and not yet cleaned, refers to nothing. Needs ``CAP_SYS_ADMIN``.
    """
    living = _Living(fd)

    def shared(found: Extent) -> bool:
        roots = {reference.root for reference in get_references(fd, found.bytenr)}
        return any(root not in owners and living[root] for root in roots)

    unique = {found.bytenr: found for found in extents}
    return {found.bytenr: found.size for found in track(unique.values()) if not shared(found)}


class _Living(dict[int, bool]):
    """
    Whether a subvolume is there, and not deleted.
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
