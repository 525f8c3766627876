"""
The fuzz targets: a function for each decoder that takes any bytes, and raises if the decoder misbehaves.
"""

import asyncio
import contextlib
import errno
import inspect
import io
import os
import socket
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

from pybtrfs import ioctl, items, syscall, tree_search
from pybtrfs._ffi import ffi, lib
from pybtrfs.send.stream import Reader, StreamError, encode, encode_header
from snapshotter.api import snapshots_pb2
from snapshotter.contract import filters
from snapshotter.daemon.rpc import Method, RefusedError, Server, _Connection
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError
from snapshotter.model import Info, Kind
from snapshotter.store import records
from snapshotter.store.records import DamagedError
from tests.snapshotter.transport.sessions import ENDED, OPENED, REFUSED, Session

CORPUS = Path(__file__).with_name("corpus")

_HEADER = struct.Struct("=QQQII")  # the header of a search result: transid, objectid, offset, type, size


def corpus(name: str) -> Iterator[bytes]:
    """
    Yield the inputs in the corpus of a target, which has one in hex on each line.
    """
    with (CORPUS / f"{name}.txt").open() as lines:
        yield from map(bytes.fromhex, lines)


# Items of trees


def _fixed(decoder: Callable[[bytes], object], data: bytes) -> None:
    """
    Check that *data* is decoded or a ValueError, and that appended fields of newer kernels change nothing.
    """
    with contextlib.suppress(ValueError):
        assert decoder(data) == decoder(data + b"more")


def _sequence(decoder: Callable[[bytes], tuple[Any, ...]], encode: Callable[[Any], bytes], data: bytes) -> None:
    """
    Check that *data* is a ValueError, or decoded to the last byte.
    """
    with contextlib.suppress(ValueError):
        assert b"".join(map(encode, decoder(data))) == data


def _dir_entry(entry: items.DirItem) -> bytes:
    head = struct.pack("<QBQQHHB", *entry.location, entry.transid, len(entry.data), len(entry.name), entry.type)
    return head + entry.name + entry.data


def root_item(data: bytes) -> None:
    """
    Check that *data* is decoded or a ValueError, and without the newer fields if it is short.
    """
    with contextlib.suppress(ValueError):
        root = items.root_item(data)
        if len(data) < 439:
            assert root[9:] == (bytes(16),) * 3 + (0,) * 8
        else:
            assert root == items.root_item(data + b"more")


def extent_data(data: bytes) -> None:
    """
    Check that *data* is a ValueError or decoded, and that an inline extent has all bytes after its header.
    """
    with contextlib.suppress(ValueError):
        extent = items.extent_data(data)
        if isinstance(extent, items.InlineExtent):
            assert data[21:] == extent.data
        else:
            assert extent == items.extent_data(data + b"more")


# Results of searches


def _search_result(item: items.Item) -> bytes:
    return _HEADER.pack(item.transid, item.objectid, item.offset, item.type, len(item.data)) + item.data


def search_results(data: bytes) -> None:
    """
    Check that the items are those of the buffer, or an OSError if the buffer has fewer.
    """
    count, buffer = int.from_bytes(data[:1]), data[1:]
    with contextlib.suppress(OSError):
        found = list(tree_search.split(count, buffer))
        assert len(found) == count
        assert buffer.startswith(b"".join(map(_search_result, found)))


def keep_changed(data: bytes) -> None:
    """
    Check that the compiled module keeps the same items as Python, and touches nothing beyond the buffer.
    """
    count, transid, buffer = int.from_bytes(data[:1]), int.from_bytes(data[1:9]), data[9:]
    memory = ffi.new("char[]", len(buffer))
    ffi.buffer(memory)[:] = buffer
    last = ffi.new("struct pybtrfs_ioctl_search_header *")
    sizes = ffi.new("uint32_t[2]")
    kept = lib.pybtrfs_keep_changed(memory, len(buffer), count, transid, last, sizes)
    try:
        found = list(tree_search.split(count, buffer))
    except OSError as error:
        assert kept == -error.errno
    else:
        changed = b"".join(_search_result(item) for item in found if _is_changed(item, transid))
        assert ffi.buffer(memory, sizes[0])[:] == changed
        assert sizes[1] == sum(len(_search_result(item)) for item in found)
        if found:
            assert (last.objectid, last.type, last.offset) == found[-1][:3]


def _is_changed(item: items.Item, transid: int) -> bool:
    if item.type not in (items.INODE_ITEM_KEY, items.EXTENT_DATA_KEY) or len(item.data) < 16:
        return False
    return bool(struct.unpack_from("<QQ", item.data)[item.type == items.INODE_ITEM_KEY] > transid)


def sum_items(data: bytes) -> None:
    """
    Check that the compiled module adds up the same items as Python, and reads nothing beyond the two buffers.
    """
    count, base_count, transid = int.from_bytes(data[:1]), int.from_bytes(data[1:2]), int.from_bytes(data[2:10])
    cut = 12 + int.from_bytes(data[10:12])
    buffer, base = data[12:cut], data[cut:]
    changes = ffi.new("struct pybtrfs_changes *")
    changes.tree.transid, changes.tree.base_id, changes.base_complete = transid, 1, 1
    memories = []
    for left, content, number in ((changes.items, buffer, count), (changes.base_items, base, base_count)):
        memory = ffi.new("char[]", len(content))
        ffi.buffer(memory)[:] = content
        memories.append(memory)
        left.next, left.end, left.count = memory, memory + len(content), number
    try:
        result = lib.pybtrfs_sum_items(-1, changes)
        sums = changes.disk_bytes, changes.changed_inodes, changes.modified_inodes, changes.modified_bytes
    finally:
        lib.pybtrfs_free_changes(changes)
    try:
        expected = _sums(tree_search.split(count, buffer), _Base(tree_search.split(base_count, base)), transid)
    except OSError as error:
        assert result == -(error.errno or 0)
    else:
        assert (result, sums) == (0, expected)


class _Base:
    """
    The inode items of a search, which are looked up in ascending order.
    """

    def __init__(self, found: Iterator[items.Item]) -> None:
        self._found = found
        self._next: items.Item | None = None

    def find(self, number: int) -> bytes | None:
        while (item := self._next or next(self._found, None)) and item.objectid <= number:
            self._next = None
            if item.objectid == number and item.type == items.INODE_ITEM_KEY:
                return _long_enough(item.data, 160)
        self._next = item
        return None


def _sums(found: Iterator[items.Item], base: _Base, transid: int) -> tuple[int, int, int, int]:
    size = changed = modified = blocks = 0
    extents = set()
    for item in found:
        if item.type == items.INODE_ITEM_KEY:
            now = items.inode_item(_long_enough(item.data, 160))
            if now.transid <= transid or not now.nlink:
                continue
            before = base.find(item.objectid) if now.generation <= transid else None
            changed += before is None or _differs(item.data, before, slice(124, 136))
            if before is None or _differs(item.data, before, slice(136, 148)):
                modified += 1
                blocks = _bounded(blocks + _bounded(-(-now.nbytes // 4096) * 4096))
        elif item.type == items.EXTENT_DATA_KEY:
            (generation,) = struct.unpack_from("<Q", _long_enough(item.data, 21))
            if generation <= transid:
                continue
            try:
                extent = items.extent_data(item.data)
            except ValueError as error:
                raise OSError(errno.EUCLEAN, "damaged") from error
            if isinstance(extent, items.InlineExtent):
                size = _bounded(size + len(extent.data))
            elif extent.disk_bytenr and extent.disk_bytenr not in extents:
                extents.add(extent.disk_bytenr)
                size = _bounded(size + extent.disk_num_bytes)
    return size, changed, modified, blocks


def _differs(now: bytes, before: bytes, time: slice) -> bool:
    after, old = items.inode_item(now), items.inode_item(before)
    if (after.mode, after.uid, after.gid, after.rdev) != (old.mode, old.uid, old.gid, old.rdev):
        return True
    same = (after.size, after.nlink, now[time]) == (old.size, old.nlink, before[time])
    return not (stat.S_ISDIR(after.mode) or same)


def _long_enough(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise OSError(errno.EUCLEAN, "damaged")
    return data


def _bounded(total: int) -> int:
    if total >= 1 << 64:
        raise OSError(errno.EOVERFLOW, "too large")
    return total


def read_subvolumes(data: bytes) -> None:
    """
    Check that the compiled module reads the subvolumes of the buffer, and writes within its output.
    """
    count, buffer = int.from_bytes(data[:1]), data[1:]
    items_found = ffi.new("char[]", len(buffer))
    ffi.buffer(items_found)[:] = buffer
    last = ffi.new("struct pybtrfs_ioctl_search_header *")
    subvolumes = ffi.new("struct pybtrfs_subvolume[]", min(count, len(buffer) // _HEADER.size))
    read = lib.pybtrfs_read_subvolumes(items_found, len(buffer), count, subvolumes, last)
    try:
        found = list(tree_search.split(count, buffer))
    except OSError as error:
        assert read == -error.errno
    else:
        roots = [item.objectid for item in found if item.type == items.ROOT_ITEM_KEY]
        if count > 1 and found[-1].type == items.ROOT_ITEM_KEY:
            roots.pop()  # its place may be in the next buffer
        assert [subvolumes[i].treeid for i in range(read)] == roots


def read_info(data: bytes) -> None:
    """
    Check that the compiled module reads the kernel's description of a subvolume as Python does.
    """
    info = ffi.new("struct pybtrfs_ioctl_get_subvol_info_args *")
    ffi.buffer(info)[: len(data)] = data[: ffi.sizeof(info[0])]
    subvolume = ffi.new("struct pybtrfs_subvolume *")
    lib.pybtrfs_read_info(info, subvolume)
    assert ffi.buffer(subvolume.name)[: subvolume.name_len] == ffi.string(info.name)[:255]
    assert (subvolume.treeid, subvolume.flags, bytes(subvolume.uuid)) == (info.treeid, info.flags, bytes(info.uuid))


# Arguments of the raw floor

_CALLS = [
    function
    for module in (ioctl, syscall)
    for name, function in sorted(vars(module).items())
    if isinstance(function, FunctionType) and function.__module__.startswith(module.__name__) and name[0] != "_"
]
_FDS: list[Any] = [-1, 1 << 20, 1 << 31, 1 << 63, -1 << 40, None, "1", 1.5, b"", ()]
_VALUES: list[Any] = [
    *(0, 1, 2, 255, 256, 1 << 20, 1 << 62, (1 << 64) - 256, (1 << 64) - 1, 1 << 64, -1, True),
    *(b"", b"name", b"\xff", b"a\0b", b"a/b", bytes(16), b"x" * 255, b"x" * 256, b"x" * 4040, b"x" * 70_000),
    *("", "nonexistent/name", "a\0b", "\udcff", "\ud800", "x" * 70_000, None, 1.5, (), [], object(), (1, 2), range(10)),
    *(((), None), ((1 << 48,), (None, 5)), ((-1,), None), ("x", None), ((), (1 << 64, None)), ([None], ())),
    ioctl.SearchKey(1, 0, 1 << 64, 0, -1, 0, 0, 0, 256, 1),
    ioctl.SearchKey(1, 0, (1 << 64) - 1, 0, (1 << 64) - 1, 0, (1 << 64) - 1, 0, 255, (1 << 32) - 1),
]


def call(data: bytes, fds: list[int], without: tuple[object, ...] = ()) -> None:
    """
    Call a function of the raw floor with arguments that *data* chooses, and with the files *fds*.
    """
    chosen = iter(data)
    functions = [function for function in _CALLS if function not in without]
    function = functions[next(chosen, 0) % len(functions)]
    arguments = []
    for name in inspect.signature(function).parameters:
        pool = fds * 3 + _FDS if name.endswith("fd") else _VALUES
        number = next(chosen, 0)
        arguments.append(pool[number % len(pool)] if number or name.endswith("fd") else bytes(chosen))
    with contextlib.suppress(OSError, ValueError, TypeError):
        count = len(inspect.getfullargspec(function).args)
        options = dict(zip(list(inspect.signature(function).parameters)[count:], arguments[count:], strict=True))
        result = function(*arguments[:count], **options)
        if function in (syscall.openat2, syscall.make_directory, syscall.open_by_handle_at):
            os.close(result)


def arguments(data: bytes) -> None:
    """
    Check that a function of the raw floor refuses any arguments with a ValueError, TypeError or OSError.
    """
    fds = [os.open("/proc", os.O_RDONLY), *os.pipe()]  # nobody can change these files
    try:
        call(data, fds)
    finally:
        for fd in fds:
            os.close(fd)


# Input of snapshotter


def record(data: bytes) -> None:
    """
    Check that a record is damaged, of a newer release, or encoded again to an equal record.

    *data* is tried as it is, and with a valid checksum.
    """
    for sealed in (data, b'{"crc":"%08x",' % zlib.crc32(data) + data):
        with contextlib.suppress(DamagedError, FailedPreconditionError):
            decoded = records.decode(sealed, 17)
            assert records.decode(records.encode(decoded), 17) == decoded
        with contextlib.suppress(DamagedError, FailedPreconditionError):
            records.named_pieces(sealed)


_INFO = Info(Kind.ACTIVE, "name", "parent", {"containerd.io/label": "value", "": ""})


def filter_(data: bytes) -> None:
    """
    Check that filters are an InvalidArgumentError, or match or not.
    """
    with contextlib.suppress(InvalidArgumentError):
        filters.parse(*data.decode(errors="surrogateescape").split("\n")).match(_INFO)


def http2(data: bytes) -> None:
    """
    Check that *data* from a client gives the same output, error and calls, however it is split.
    """
    cut = len(data) // 2
    output, error, calls = _session([data])
    output_of_parts, error_of_parts, calls_of_parts = _session([data[:cut], data[cut:]])
    assert (output, error) == (output_of_parts, error_of_parts)
    assert calls <= calls_of_parts  # a call that is cancelled in the same bytes makes no event


def _session(pieces: list[bytes]) -> tuple[bytes, str, set[int]]:
    session, calls, complete = Session(), set(), []
    for piece in pieces:
        for event in session.receive(piece):
            assert event.kind & OPENED or event.stream in calls
            calls.add(event.stream)
            if event.kind & (ENDED | REFUSED):
                complete.append(event.stream)
    for stream in complete:
        session.reply(stream, b"reply")
    return session.take(), session.error, calls


def _answer(request: snapshots_pb2.StatSnapshotRequest) -> snapshots_pb2.StatSnapshotResponse:
    return snapshots_pb2.StatSnapshotResponse(info=snapshots_pb2.Info(name=request.key))


def _refusal(method: str, error: Exception) -> RefusedError:
    assert isinstance(error, RefusedError), error
    return error


_SERVER = Server({"/s/M": Method("M", snapshots_pb2.StatSnapshotRequest, _answer)}, _refusal, None)


def rpc(data: bytes) -> None:
    """
    Check that calls are answered or refused, and that a client ends its own connection at most.
    """
    asyncio.run(_serve(data))


async def _serve(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = _Connection(_SERVER, ours, asyncio.get_running_loop())
        connection.receive(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data)
        connection.end()
        assert not connection.calls


# Send streams


def send_stream(data: bytes) -> None:
    """
    Check that *data* is parsed or a StreamError, and that an encoder and the parser return the same commands.

    The checksums are corrected first, because the fuzzer cannot guess them.
    """
    pieces = [data[:17]]
    at = 17
    while len(head := data[at : at + 6]) == 6:
        payload = data[at + 10 : at + 10 + int.from_bytes(head[:4], "little")]
        covered = head + bytes(4) + payload
        pieces += [head, lib.pybtrfs_crc32c(0, covered, len(covered)).to_bytes(4, "little"), payload]
        at += 10 + len(payload)
    with contextlib.suppress(StreamError):
        reader = Reader(io.BytesIO(b"".join(pieces)))
        found = list(reader)
        encoded = [encode(command, reader.version) for command in found]
        again = Reader(io.BytesIO(encode_header(reader.version) + b"".join(encoded)))
        assert list(again) == found


TARGETS: dict[str, Callable[[bytes], None]] = {
    **{
        decoder.__name__: partial(_fixed, decoder)
        for decoder in (
            items.inode_item,
            items.drop_progress,
            items.root_ref,
            items.qgroup_status,
            items.qgroup_info,
            items.qgroup_limit,
        )
    },
    "root_item": root_item,
    "inode_ref": partial(
        _sequence, items.inode_ref, lambda ref: struct.pack("<QH", ref.dir_index, len(ref.name)) + ref.name
    ),
    "inode_extref": partial(
        _sequence, items.inode_extref, lambda ref: struct.pack("<QQH", *ref[:2], len(ref.name)) + ref.name
    ),
    "dir_item": partial(_sequence, items.dir_item, _dir_entry),
    "uuid_item": partial(_sequence, items.uuid_item, lambda subvolid: struct.pack("<Q", subvolid)),
    "extent_data": extent_data,
    "search_results": search_results,
    "keep_changed": keep_changed,
    "sum_items": sum_items,
    "read_subvolumes": read_subvolumes,
    "read_info": read_info,
    "send_stream": send_stream,
    "arguments": arguments,
    "record": record,
    "filter": filter_,
    "http2": http2,
    "rpc": rpc,
}
