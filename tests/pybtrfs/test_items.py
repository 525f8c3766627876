"""
Decoders: bytes in, values or a ValueError out.
"""

import struct
import uuid as uuid_module
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybtrfs import items
from pybtrfs.items import Item, Key

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U16 = st.integers(0, (1 << 16) - 1)
U8 = st.integers(0, 255)
NAME = st.binary(max_size=300)
TIME = st.tuples(st.integers(-(1 << 63), (1 << 63) - 1), U32)
UUID = st.binary(min_size=16, max_size=16)
LONGER = st.binary(max_size=40)

DECODERS = {
    items.INODE_ITEM_KEY: items.inode_item,
    items.INODE_REF_KEY: items.inode_ref,
    items.INODE_EXTREF_KEY: items.inode_extref,
    items.XATTR_ITEM_KEY: items.dir_item,
    items.DIR_ITEM_KEY: items.dir_item,
    items.DIR_INDEX_KEY: items.dir_item,
    items.EXTENT_DATA_KEY: items.extent_data,
    items.ROOT_ITEM_KEY: items.root_item,
    items.ROOT_BACKREF_KEY: items.root_ref,
    items.ROOT_REF_KEY: items.root_ref,
    items.QGROUP_STATUS_KEY: items.qgroup_status,
    items.QGROUP_INFO_KEY: items.qgroup_info,
    items.QGROUP_LIMIT_KEY: items.qgroup_limit,
    items.UUID_KEY_SUBVOL: items.uuid_item,
    items.UUID_KEY_RECEIVED_SUBVOL: items.uuid_item,
}


def nanoseconds(time: tuple[int, int]) -> int:
    return time[0] * 10**9 + time[1]


@given(U8, st.binary(max_size=600))
def test_any_bytes_are_decoded_or_refused(type_: int, data: bytes) -> None:
    """
    Data of any type is decoded or a ValueError. Data without a decoder is returned as it is.
    """
    try:
        value = items.decode(Item(1, type_, 2, 3, data))
    except ValueError:
        assert type_ in DECODERS
    else:
        if type_ in DECODERS:
            assert value == DECODERS[type_](data)
        else:
            assert value is data


@pytest.mark.parametrize("decoder", set(DECODERS.values()))
def test_nothing_is_too_little(decoder: Callable[[bytes], object]) -> None:
    """
    Empty data is an error for every decoder.
    """
    with pytest.raises(ValueError, match=r"item is (empty|too short)"):
        decoder(b"")


@given(
    st.tuples(*[U64] * 5),
    st.tuples(*[U32] * 4),
    st.tuples(*[U64] * 3),
    st.tuples(*[TIME] * 4),
    LONGER,
)
def test_inode_item(
    head: tuple[int, ...], ids: tuple[int, ...], tail: tuple[int, ...], times: tuple[tuple[int, int], ...], rest: bytes
) -> None:
    """
    An inode has the fields that the kernel wrote. Bytes that a newer kernel appends are ignored.
    """
    data = struct.pack("<5Q4I3Q32x", *head, *ids, *tail) + b"".join(struct.pack("<qI", *time) for time in times)
    generation, transid, size, nbytes, _ = head
    assert items.inode_item(data + rest) == (
        generation,
        transid,
        size,
        nbytes,
        *ids,
        *tail,
        *(nanoseconds(time) for time in times),
    )
    with pytest.raises(ValueError, match="too short"):
        items.inode_item(data[:-1])


@given(st.lists(st.tuples(U64, NAME), min_size=1), st.data())
def test_inode_ref(refs: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """
    All names of an inode in a directory are decoded. If the last name is cut short, the item is refused.
    """
    packed = b"".join(struct.pack("<QH", index, len(name)) + name for index, name in refs)
    assert items.inode_ref(packed) == tuple(refs)
    last = 10 + len(refs[-1][1])
    cut = data.draw(st.integers(1, last - 1))
    with pytest.raises(ValueError, match="too short"):
        items.inode_ref(packed[:-cut])


@given(st.lists(st.tuples(U64, U64, NAME), min_size=1))
def test_inode_extref(refs: list[tuple[int, int, bytes]]) -> None:
    """
    All names of an inode with many names are decoded. If the last name is cut short, the item is refused.
    """
    packed = b"".join(struct.pack("<QQH", parent, index, len(name)) + name for parent, index, name in refs)
    assert items.inode_extref(packed) == tuple(refs)


@given(st.lists(st.tuples(st.tuples(U64, U8, U64), U64, U8, NAME, st.binary(max_size=40)), min_size=1))
def test_dir_item(entries: list[tuple[tuple[int, int, int], int, int, bytes, bytes]]) -> None:
    """
    Entries with the same hash share an item. Each has its name and, if it is an extended attribute, its value.
    """
    packed = b"".join(
        struct.pack("<QBQQHHB", *location, transid, len(value), len(name), kind) + name + value
        for location, transid, kind, name, value in entries
    )
    assert items.dir_item(packed) == tuple(entries)
    with pytest.raises(ValueError, match="too short"):
        items.dir_item(packed + b"\0")


@given(U64, U64, U8, U8, U16, st.binary(max_size=100))
def test_inline_extent(
    generation: int, ram_bytes: int, compression: int, encryption: int, other: int, content: bytes
) -> None:
    """
    A small file's data follows the head of its extent.
    """
    data = struct.pack("<QQBBHB", generation, ram_bytes, compression, encryption, other, 0) + content
    assert items.extent_data(data) == items.InlineExtent(generation, ram_bytes, compression, encryption, other, content)


@given(U64, U64, U8, st.sampled_from([items.FILE_EXTENT_REG, items.FILE_EXTENT_PREALLOC]), st.tuples(*[U64] * 4))
def test_file_extent(generation: int, ram_bytes: int, compression: int, type_: int, where: tuple[int, ...]) -> None:
    """
    Any other file extent has its address on disk.
    """
    data = struct.pack("<QQBBHB4Q", generation, ram_bytes, compression, 0, 0, type_, *where)
    assert items.extent_data(data) == (generation, ram_bytes, compression, 0, 0, type_, *where)
    with pytest.raises(ValueError, match="too short"):
        items.extent_data(data[:-1])


def test_unknown_file_extent() -> None:
    """
    An unknown type of file extent is refused.
    """
    with pytest.raises(ValueError, match="9 is not a file extent type"):
        items.extent_data(struct.pack("<QQBBHB4Q", 1, 1, 0, 0, 0, 9, 1, 1, 1, 1))


ROOT_V1 = st.tuples(st.tuples(*[U64] * 7), U32, U8)
ROOT_V2 = st.tuples(st.tuples(*[UUID] * 3), st.tuples(*[U64] * 4), st.tuples(*[TIME] * 4))


def pack_root(old: tuple[tuple[int, ...], int, int]) -> bytes:
    numbers, refs, level = old
    return struct.pack("<160x7QI17xxB", *numbers, refs, level)


@given(ROOT_V1, ROOT_V2, st.integers(0, 1), LONGER)
def test_root_item(
    old: tuple[tuple[int, ...], int, int],
    new: tuple[tuple[bytes, ...], tuple[int, ...], tuple[tuple[int, int], ...]],
    stale: int,
    rest: bytes,
) -> None:
    """
    The newer fields of a root count only if the same kernel wrote them with the older fields.
    """
    numbers, refs, level = old
    uuids, transids, times = new
    generation_v2 = (numbers[0] + stale) & (1 << 64) - 1
    data = pack_root(old) + struct.pack("<Q16s16s16s4Q", generation_v2, *uuids, *transids)
    data += b"".join(struct.pack("<qI", *time) for time in times) + bytes(64)
    known = (bytes(16),) * 3 + (0,) * 8 if stale else (*uuids, *transids, *(nanoseconds(time) for time in times))
    assert items.root_item(data + rest) == (*numbers, refs, level, *known)


@given(ROOT_V1, st.integers(0, 199))
def test_root_item_of_an_old_kernel(old: tuple[tuple[int, ...], int, int], more: int) -> None:
    """
    A root of 239 bytes, as before Linux 3.6, has no UUID and no times.
    """
    data = pack_root(old)
    numbers, refs, level = old
    assert items.root_item(data + bytes(more)) == (*numbers, refs, level, *(bytes(16),) * 3, *(0,) * 8)
    with pytest.raises(ValueError, match="too short: 239 bytes needed, 238 found"):
        items.root_item(data[:-1])


@given(ROOT_V1, st.tuples(U64, U8, U64), U8, LONGER)
def test_drop_progress(old: tuple[tuple[int, ...], int, int], key: Key, level: int, rest: bytes) -> None:
    """
    The root of a deleted subvolume has the key up to which the kernel has freed its tree.
    """
    data = pack_root(old)
    data = data[:220] + struct.pack("<QBQB", *key, level) + data[238:] + rest
    assert items.drop_progress(data) == (key, level)
    assert items.drop_progress(pack_root(old)) == ((0, 0, 0), 0)
    with pytest.raises(ValueError, match="too short: 238 bytes needed"):
        items.drop_progress(data[:237])


@given(st.lists(U64, min_size=1))
def test_uuid_item(ids: list[int]) -> None:
    """
    All subvolumes with a UUID are decoded. If the last id is cut short, the item is refused.
    """
    data = struct.pack(f"<{len(ids)}Q", *ids)
    assert items.uuid_item(data) == tuple(ids)
    with pytest.raises(ValueError, match="too short"):
        items.uuid_item(data[:-1])


@given(U64, U64, NAME, LONGER)
def test_root_ref(dirid: int, sequence: int, name: bytes, rest: bytes) -> None:
    """
    A reference to a root has the directory and the name of the subvolume.
    """
    data = struct.pack("<QQH", dirid, sequence, len(name)) + name
    assert items.root_ref(data + rest) == (dirid, sequence, name)
    with pytest.raises(ValueError, match="too short"):
        items.root_ref(data[:-1])


@given(st.tuples(*[U64] * 5))
def test_qgroup_items(values: tuple[int, ...]) -> None:
    """
    Items of quota groups are plain numbers.
    """
    data = struct.pack("<5Q", *values)
    assert items.qgroup_info(data) == items.qgroup_limit(data) == values
    assert items.qgroup_status(data) == values[:4]


def test_keys_are_ordered_as_in_a_tree() -> None:
    """
    Keys compare by objectid, then type, then offset.
    """
    assert Key(1, 255, 9) < Key(2, 0, 0) < Key(2, 1, 0) < Key(2, 1, 1)


@given(UUID)
def test_uuid_text(uuid: bytes) -> None:
    """
    The text form is that of the module uuid.
    """
    assert items.uuid_text(uuid) == str(uuid_module.UUID(bytes=uuid))
