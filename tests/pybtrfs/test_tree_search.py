"""
Tree searches on real btrfs.
"""

import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybtrfs import filesystem, ioctl, items, kernel, subvolume, tree_search
from pybtrfs._ffi import ffi
from pybtrfs.errors import NotBtrfsError
from pybtrfs.items import DirItem, FileExtent, InlineExtent, InodeItem, InodeRef, Item, Key
from pybtrfs.tree_search import (
    MAX,
    MAX_KEY,
    MIN_KEY,
    Changes,
    search,
    search_changes,
    search_files,
    search_subvolumes,
    sum_changes,
)

pytestmark = pytest.mark.btrfs


@pytest.fixture
def files(btrfs: Path) -> Path:
    """
    A subvolume with a few hundred files of several kinds.
    """
    base = btrfs / "base"
    subvolume.create(base)
    for number in range(300):
        (base / f"file {number}").write_bytes(b"x" * number)
    (base / "large").write_bytes(os.urandom(1 << 20))
    os.setxattr(base / "large", "user.small", b"value")
    os.link(base / "large", base / "link")
    filesystem.sync(base)
    return base


@pytest.fixture(params=["V2", "V1"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    A kernel with both searches, and a kernel with the old search only.
    """
    if request.param == "V1":
        call = kernel.current.ioctl

        def lacking(fd: int, name: str, *argument: Any) -> int:
            if name == "BTRFS_IOC_TREE_SEARCH_V2":
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
            return call(fd, name, *argument)

        monkeypatch.setattr(kernel.current, "ioctl", lacking)
    return str(request.param)


def test_everything_is_found_in_order(files: Path, version: str) -> None:
    """
    A search of a whole tree finds each item once, sorted by key, with either ioctl.
    """
    found = list(search(files))
    keys = [item[:3] for item in found]
    assert keys == sorted(set(keys))
    inodes = {item.objectid: items.decode(item) for item in found if item.type == items.INODE_ITEM_KEY}
    assert len(inodes) == 302
    for name in os.listdir(files):
        status = (files / name).stat()
        inode = inodes[status.st_ino]
        assert isinstance(inode, InodeItem)
        assert (inode.size, inode.mode, inode.nlink) == (status.st_size, status.st_mode, status.st_nlink)
        assert (inode.mtime, inode.ctime) == (status.st_mtime_ns, status.st_ctime_ns)
        assert inode.otime <= inode.ctime


@pytest.mark.parametrize("buffer_size", [1, 200, 4096, 65536, 1 << 20, 1 << 25])
def test_the_buffer_makes_no_difference(files: Path, buffer_size: int) -> None:
    """
    Buffers of any size find the same items. A buffer that is too small for an item grows.
    """
    assert list(search(files, buffer_size=buffer_size)) == list(search(files))


@pytest.mark.parametrize("buffer_size", [0, -1])
def test_no_buffer(files: Path, buffer_size: int) -> None:
    """
    A buffer of no bytes is refused, where the search would not end.
    """
    for call in (search, partial(search_subvolumes, kind=ioctl.SubvolInfo)):
        with pytest.raises(ValueError, match=f"{buffer_size} is not a size of a buffer"):
            next(call(files, buffer_size=buffer_size))


def test_real_items_are_decoded(files: Path) -> None:
    """
    The kernel's items of files, names and attributes are decoded to the values that stat and getxattr return.
    """
    number = (files / "large").stat().st_ino
    found = list(search(files, min_key=Key(number, 0, 0), max_key=Key(number, 255, MAX)))
    decoded = {item.type: items.decode(item) for item in found}
    refs = decoded[items.INODE_REF_KEY]
    assert isinstance(refs, tuple)
    assert [ref.name for ref in refs if isinstance(ref, InodeRef)] == [b"large", b"link"]
    (attribute,) = decoded[items.XATTR_ITEM_KEY]
    assert isinstance(attribute, DirItem)
    assert (attribute.name, attribute.data, attribute.type) == (b"user.small", b"value", items.FT_XATTR)
    extents = [items.extent_data(item.data) for item in found if item.type == items.EXTENT_DATA_KEY]
    assert sum(extent.num_bytes for extent in extents if isinstance(extent, FileExtent)) == 1 << 20
    assert all(isinstance(extent, FileExtent) and extent.type == items.FILE_EXTENT_REG for extent in extents)

    number = (files / "file 7").stat().st_ino
    key = Key(number, items.EXTENT_DATA_KEY, 0)
    (item,) = search(files, min_key=key, max_key=key)
    extent = items.extent_data(item.data)
    assert isinstance(extent, InlineExtent)
    assert extent.data == b"x" * 7

    entries = [
        entry
        for item in search(files, min_key=Key(256, items.DIR_INDEX_KEY, 0), max_key=Key(256, items.DIR_INDEX_KEY, MAX))
        for entry in items.dir_item(item.data)
    ]
    assert sorted(os.fsdecode(entry.name) for entry in entries) == sorted(os.listdir(files))
    assert {entry.type for entry in entries} == {items.FT_REG_FILE}


def test_one_key(files: Path, version: str) -> None:
    """
    A range of one key finds one item. A range that ends before it begins finds nothing.
    """
    key = Key(256, items.INODE_ITEM_KEY, 0)
    (item,) = search(files, min_key=key, max_key=key)
    assert item[:3] == key
    assert list(search(files, min_key=Key(257, 0, 0), max_key=key)) == []


def test_types_in_between_are_found(files: Path) -> None:
    """
    The keys bound one range, so objectids in the middle have all their items.
    """
    found = list(search(files, min_key=Key(257, 108, 0), max_key=Key(259, 1, MAX)))
    assert {item.type for item in found if item.objectid == 258} >= {1, 12}
    assert all(Key(257, 108, 0) <= item[:3] <= Key(259, 1, MAX) for item in found)


def test_what_changed_since(files: Path) -> None:
    """
    With *min_transid*, only leaves written since that transaction are searched.
    """
    transid = max(item.transid for item in search(files))
    assert list(search(files, min_transid=transid + 1)) == []
    (files / "file 299").write_bytes(b"changed")
    filesystem.sync(files)
    found = list(search(files, min_transid=transid + 1))
    number = (files / "file 299").stat().st_ino
    assert number in {item.objectid for item in found if item.type == items.INODE_ITEM_KEY}
    assert all(item.transid > transid for item in found)
    assert len(found) < len(list(search(files)))
    assert list(search(files, max_transid=transid - 1)) == []


def test_an_item_larger_than_the_buffer(files: Path, version: str) -> None:
    """
    The largest item is found whole. The old ioctl cannot return it, and raises an error instead of an item without
    data.
    """
    os.setxattr(files / "large", "user.large", b"v" * 12000)
    number = (files / "large").stat().st_ino
    key = Key(number, items.XATTR_ITEM_KEY, 0)

    def values() -> list[bytes]:
        return [
            entry.data
            for item in search(files, min_key=key, max_key=key._replace(offset=MAX), buffer_size=100)
            for entry in items.dir_item(item.data)
        ]

    if version == "V2":
        assert set(values()) == {b"value", b"v" * 12000}
    else:
        with pytest.raises(OSError) as caught:
            values()
        assert caught.value.errno == errno.EOVERFLOW
        assert caught.value.filename == files


def test_items_without_data(btrfs: Path, version: str) -> None:
    """
    An item without data is found, such as the orphan item of an unlinked open file.
    """
    subvolume.create(btrfs / "base")
    with open(btrfs / "base/file", "wb") as file:
        os.unlink(btrfs / "base/file")
        number = os.fstat(file.fileno()).st_ino
        key = Key(items.ORPHAN_OBJECTID, items.ORPHAN_ITEM_KEY, number)
        (item,) = search(btrfs / "base", min_key=key, max_key=key)
    assert items.decode(item) == b""


@pytest.mark.parametrize("buffer_size", [400, 4096, 1 << 18])
def test_changes(files: Path, monkeypatch: pytest.MonkeyPatch, buffer_size: int) -> None:
    """
    The inodes and extents that changed after a transaction are found whole and in order, in buffers of any size.
    """

    def changes(transid: int) -> list[Item]:
        def changed(item: Item) -> bool:
            if item.type == items.INODE_ITEM_KEY:
                return items.inode_item(item.data).transid > transid
            return item.type == items.EXTENT_DATA_KEY and items.extent_data(item.data).generation > transid

        return [item for item in search(files) if changed(item)]

    monkeypatch.setattr(tree_search, "_CHANGES_SIZE", buffer_size)
    transid = max(item.transid for item in search(files))
    assert list(search_changes(files, transid)) == []
    (files / "file 7").write_bytes(b"other")
    (files / "file 200").chmod(0o700)
    (files / "new").write_bytes(os.urandom(5000))
    with open(files / "large", "r+b") as file:
        file.seek(8192)
        file.write(b"y" * 4096)
    (files / "file 8").unlink()
    filesystem.sync(files)
    since = list(search_changes(files, transid))
    assert since == changes(transid)
    assert {item.objectid for item in since} == {
        (files / name).stat().st_ino for name in (".", "file 7", "file 200", "new", "large")
    }
    assert list(search_changes(files, 0)) == changes(0)
    assert list(search_changes(files.parent, 0, tree_id=subvolume.get_id(files))) == changes(0)
    of_files = {items.INODE_ITEM_KEY, items.EXTENT_DATA_KEY}
    written = [item for item in search(files, min_transid=transid + 1) if item.type in of_files]
    assert list(search_files(files.parent, tree_id=subvolume.get_id(files), min_transid=transid + 1)) == written
    assert len(since) < len(written)


def test_changes_need_privilege(files: Path, tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    with pytest.raises(FileNotFoundError):
        list(search_changes(files, 0, tree_id=1 << 40))
    with pytest.raises(NotBtrfsError):
        list(search_changes(tmp_path, 0))
    with pytest.raises(PermissionError) as caught:
        unprivileged(lambda: list(search_changes(files, 0)))
    assert caught.value.__notes__ == ["BTRFS_IOC_TREE_SEARCH_V2", "needs CAP_SYS_ADMIN"]


def test_sums(files: Path) -> None:
    """
    The sums of a subvolume, of a snapshot against its base, and of several trees, are those of the items.
    """
    inline, large = sum(range(300)), 1 << 20
    everything = Changes(inline + large, 302, 302, sum(blocks(path) for path in files.iterdir()) - large)
    assert sum_changes(files, 0) == everything
    assert sum_changes(files.parent, 0, tree_id=subvolume.get_id(files)) == everything
    child = files.parent / "child"
    subvolume.snapshot(files, child)
    base_id, since = subvolume.get_id(files), subvolume.get_info(child).otransid
    assert sum_changes(child, since, base_id=base_id) == Changes(0, 0, 0, 0)
    (child / "new").write_bytes(os.urandom(5000))
    (child / "file 7").chmod(0o600)
    os.setxattr(child / "file 8", "user.a", b"b")
    (child / "file 9").unlink()
    filesystem.sync(child)
    changes = Changes(8192, 3, 2, 8192 + 4096)
    assert sum_changes(child, since, base_id=base_id) == changes
    # Without a base, the root and the file whose attribute changed count as modified, too.
    assert sum_changes(child, since) == Changes(8192, 4, 4, 8192 + 2 * 4096)
    subvolume.create(child / "nested")
    (child / "nested" / "file").write_bytes(b"12345")
    os.link(child / "new", child / "new link")
    filesystem.sync(child)
    others = [(1 << 40, 0), (subvolume.get_id(child / "nested"), 0), (subvolume.get_id(child), since)]
    total = sum_changes(child, since, base_id=base_id, others=others)
    assert total.disk_bytes == 8192 + 5  # the extent of the first tree counts once


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_sums_in_turns(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A sum returns to Python after some time, so that signals are handled, and continues where it was.
    """
    for number in range(3000):
        (files / f"more {number}").write_bytes(b"x" * 100)
    filesystem.sync(files)
    whole = sum_changes(files, 0)
    calls = 0
    call = kernel.current.sum_ioctl

    def counted(*arguments: Any) -> bool:
        nonlocal calls
        calls += 1
        return call(*arguments)

    monkeypatch.setattr(kernel.current, "sum_ioctl", counted)
    monkeypatch.setattr(kernel, "SUM_NANOSECONDS", 1 << 62)
    assert sum_changes(files, 0) == whole
    assert calls == 1
    monkeypatch.setattr(kernel, "SUM_NANOSECONDS", 0)
    assert sum_changes(files, 0) == whole
    assert calls > 5

    def interrupted(*arguments: Any) -> bool:
        signal.raise_signal(signal.SIGINT)
        return call(*arguments)

    monkeypatch.setattr(kernel.current, "sum_ioctl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sum_changes(files, 0)


def test_refused_sums(files: Path, tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A missing subvolume, a missing base, another filesystem and a missing privilege raise different errors.
    """
    (files / "file 1").chmod(0o600)
    filesystem.sync(files)
    for options in ({"tree_id": 1 << 40}, {"base_id": 1 << 40}):
        with pytest.raises(FileNotFoundError):
            sum_changes(files, subvolume.get_info(files).otransid, **options)
    with pytest.raises(NotBtrfsError):
        sum_changes(tmp_path, 0)
    with pytest.raises(PermissionError) as caught:
        unprivileged(lambda: sum_changes(files, 0))
    assert caught.value.__notes__ == ["BTRFS_IOC_TREE_SEARCH_V2", "needs CAP_SYS_ADMIN"]
    assert caught.value.filename == files


FAULTY_KERNEL = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include "btrfs_uapi.h"

int ioctl(int fd, unsigned long request, ...)
{
    static int calls;
    va_list arguments;
    va_start(arguments, request);
    struct pybtrfs_ioctl_search_args_v2 *search = va_arg(arguments, void *);
    va_end(arguments);
    int (*next)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    if (request != PYBTRFS_IOC_TREE_SEARCH_V2)
        return next(fd, request, search);
    int error = atoi(getenv("FAULT")), faulty = ++calls % atoi(getenv("EVERY")) == 0;
    if (faulty && error) {
        errno = error;
        return -1;
    }
    int result = next(fd, request, search);
    if (faulty)
        search->key.nr_items += 1 << 20;
    return result;
}
"""

SUM = """
import sys
from pybtrfs import subvolume, tree_search

_, target, base, transid = sys.argv
try:
    print(tuple(tree_search.sum_changes(target, int(transid), base_id=int(base))))
except OSError as error:
    print(error.errno)
"""


def test_sums_of_a_faulty_kernel(files: Path, tmp_path: Path) -> None:
    """
    An interrupted search is repeated, and every other fault is an error, in the subvolume and in the base.
    """
    (tmp_path / "faulty.c").write_text(FAULTY_KERNEL)
    include = Path(tree_search.__file__).parent
    library = tmp_path / "faulty.so"
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{include}", "-o", library, tmp_path / "faulty.c"], check=True)
    child = files.parent / "child"
    subvolume.snapshot(files, child)
    for path in child.iterdir():
        path.chmod(0o600)
    filesystem.sync(child)
    base_id, since = subvolume.get_id(files), subvolume.get_info(child).otransid

    def summed(fault: int, every: int) -> str:
        preloaded = f"{os.environ.get('LD_PRELOAD', '')} {library}"  # after the sanitizers' libraries
        environment = os.environ | {"LD_PRELOAD": preloaded, "FAULT": str(fault), "EVERY": str(every)}
        argv = [sys.executable, "-c", SUM, str(child), str(base_id), str(since)]
        return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    assert summed(errno.EINTR, 2) == str(tuple(sum_changes(child, since, base_id=base_id)))
    for every in (1, 2, 3):
        assert summed(errno.ENOMEM, every) == str(errno.ENOMEM)
        assert summed(errno.EIO, every) == str(errno.EIO)
        assert summed(0, every) == str(errno.EIO)  # fewer items than counted


@pytest.mark.parametrize("form", [str, os.fsencode, Path, subvolume.Subvolume])
def test_forms(files: Path, form: Callable[[Path], Any]) -> None:
    """
    Any form of any file is a target. Tree 0 is the subvolume that contains the target.
    """
    target = form(files)
    assert list(search(target)) == list(search(files / "large", tree_id=subvolume.get_id(files)))
    if isinstance(target, subvolume.Subvolume):
        target.close()


def test_errors(files: Path, tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unknown tree, another filesystem and a missing privilege raise different errors.
    """
    with pytest.raises(FileNotFoundError):
        list(search(files, tree_id=1 << 40))
    with pytest.raises(NotBtrfsError):
        list(search(tmp_path))
    with pytest.raises(PermissionError) as caught:
        unprivileged(lambda: list(search(files)))
    assert caught.value.__notes__ == ["BTRFS_IOC_TREE_SEARCH_V2", "needs CAP_SYS_ADMIN"]
    assert caught.value.filename == files


def test_a_search_left_early_closes_its_file(files: Path) -> None:
    """
    Closing the iterator closes the file that a search opened.
    """
    before = len(os.listdir("/proc/self/fd"))
    iterator = search(files)
    assert isinstance(next(iterator), Item)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    iterator.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "last",
    [Key(5, 1, 7), Key(5, 1, MAX), Key(5, 255, MAX), MAX_KEY],
)
def test_pages_go_on_behind_the_last_key(files: Path, monkeypatch: pytest.MonkeyPatch, last: Key) -> None:
    """
    The next call begins at the key after the last item, with carry. No call follows the largest key.
    """
    starts: list[tuple[int, int, int]] = []

    def answer(fd: int, key: ioctl.SearchKey, buffer_size: int) -> tuple[int, bytes]:
        starts.append((key.min_objectid, key.min_type, key.min_offset))
        if len(starts) > 1:
            return 0, b""
        header = (1, last.objectid, last.offset, last.type, 0)
        return 1, b"".join(value.to_bytes(size, "little") for value, size in zip(header, (8, 8, 8, 4, 4), strict=True))

    monkeypatch.setattr(ioctl, "tree_search_v2", answer)
    assert list(search(files)) == [Item(*last, 1, b"")]
    number = (last.objectid << 72) + (last.type << 64) + last.offset + 1
    following = [] if last == MAX_KEY else [(number >> 72, number >> 64 & 255, number & MAX)]
    assert starts == [MIN_KEY, *following]


@pytest.mark.parametrize("size", [31, 32 + 9])
def test_less_than_the_kernel_says(files: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """
    An answer that ends within an item's header or data is an I/O error.
    """
    header = struct.pack("=QQQII", 1, 256, 0, items.INODE_ITEM_KEY, 10)
    monkeypatch.setattr(ioctl, "tree_search_v2", lambda *_: (1, (header + bytes(10))[:size]))
    with pytest.raises(OSError) as caught:
        next(search(files))
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == files


# Subvolumes


@pytest.mark.parametrize("buffer_size", [1, 500, 700, 1024, 2048, 65536])
def test_subvolumes(btrfs: Path, buffer_size: int) -> None:
    """
    Each subvolume is found once, in buffers of any size, with the fields of BTRFS_IOC_GET_SUBVOL_INFO. A deleted
    subvolume has no name and no directory.
    """
    names = [f"{number}" * (number % 9 + 1) for number in range(20)]
    names[7] = "n" * 255
    fds = []
    for name in names:
        subvolume.create(btrfs / name)
        fds.append(os.open(btrfs / name, os.O_RDONLY))
    subvolume.set_read_only(btrfs / names[3])
    ioctl.set_received_subvol(fds[4], bytes(range(16)), 7, 1_500_000_000_000_000_001)
    filesystem.sync(btrfs)
    infos = [ioctl.get_subvol_info(fd) for fd in fds]
    for name in names[-2:]:
        subvolume.delete(btrfs / name)  # open, and so not cleaned
    found = list(search_subvolumes(btrfs, ioctl.SubvolInfo, min_id=infos[0].treeid, buffer_size=buffer_size))
    assert found[:-2] == infos[:-2]
    assert repr(found[4]) == repr(infos[4])
    for gone, info in zip(found[-2:], infos[-2:], strict=True):
        assert (gone.treeid, gone.parent_id, gone.dirid, gone.name) == (info.treeid, 0, 0, b"")
        assert gone.uuid == info.uuid
    for fd in fds:
        os.close(fd)


ROOTS = st.lists(
    st.tuples(
        st.one_of(st.just(239), st.just(439), st.integers(0, 500)).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
        st.booleans(),
        st.none() | st.tuples(st.integers(0, MAX), st.integers(0, MAX), st.binary(min_size=1, max_size=255)),
    ),
    max_size=6,
)


def filled(buffer: bytes, count: int) -> Callable[..., int]:
    """
    Return a kernel's ioctl that finds *count* items and copies *buffer* to the result.
    """

    def answer(fd: int, name: str, arguments: Any) -> int:
        arguments.key.nr_items = count
        ffi.memmove(arguments.buf, buffer, len(buffer))
        return 0

    return answer


@given(ROOTS)
def test_what_is_read_of_subvolumes(roots: list[tuple[bytes, bool, tuple[int, int, bytes] | None]]) -> None:
    """
    C reads roots and their references as the decoders of items do, from new, old and broken items.
    """
    buffer, count, expected = b"", 0, []
    for number, (root, is_new, place) in enumerate(roots, 256):
        if is_new and len(root) >= 247:
            root = root[:239] + root[160:168] + root[247:]  # the same generation twice
        buffer += struct.pack("=QQQII", 1, number, 0, items.ROOT_ITEM_KEY, len(root)) + root
        parent, dirid, name = place or (0, 0, b"")
        if place is not None:
            ref = struct.pack("<QQH", dirid, 0, len(name)) + name
            buffer += struct.pack("=QQQII", 1, number, parent, items.ROOT_BACKREF_KEY, len(ref)) + ref
        count += 1 + (place is not None)
        decoded = items.root_item(root.ljust(239, b"\0") if len(root) < 239 else root)
        expected.append((number, name, parent, dirid, decoded))
    if count > 1 and roots[-1][2] is None:
        del expected[-1]  # its place may be in the next buffer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel.current, "ioctl", filled(buffer, count))
        found, last = ioctl.tree_search_v2_subvolumes(-1, ioctl.SearchKey(*range(10)), 8192)
    for info, (number, name, parent, dirid, root) in zip(map(ioctl.SubvolInfo, found), expected, strict=True):
        assert (info.treeid, info.name, info.parent_id, info.dirid) == (number, name, parent, dirid)
        assert (info.generation, info.flags, info.uuid) == (root.generation, root.flags, root.uuid)
        assert (info.parent_uuid, info.received_uuid) == (root.parent_uuid, root.received_uuid)
        assert [getattr(info, f"{letter}transid") for letter in "cosr"] == list(root[12:16])
        assert [getattr(info, f"{letter}time") % (1 << 64) for letter in "cosr"] == [t % (1 << 64) for t in root[16:]]
    assert last == (None if not count else (expected[-1][0], *last[1:]))


@pytest.mark.parametrize(
    ("length", "cut", "count"), [(439, 1, 2), (439, 32 + 439, 2), (1 << 31, 0, 2), (0, 0, 1 << 31)]
)
def test_subvolumes_that_are_not_in_the_buffer(
    monkeypatch: pytest.MonkeyPatch, length: int, cut: int, count: int
) -> None:
    """
    Fewer items than the kernel counted, or items larger than the buffer, are EIO.
    """
    buffer = 2 * (struct.pack("=QQQII", 1, 256, 0, items.ROOT_ITEM_KEY, length) + bytes(min(length, 439)))
    size = len(buffer) - cut
    monkeypatch.setattr(kernel.current, "ioctl", filled(buffer[:size], count))
    with pytest.raises(OSError) as caught:
        ioctl.tree_search_v2_subvolumes(-1, ioctl.SearchKey(*range(10)), size)
    assert caught.value.errno == errno.EIO


def test_is_permitted(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Root may search trees, and an ordinary user may not.
    """
    assert tree_search.is_permitted(btrfs)
    assert not unprivileged(lambda: tree_search.is_permitted(btrfs))
