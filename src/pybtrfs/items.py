"""
The items of btrfs trees: the numbers in their keys, and decoders of their data.

Each decoder takes the data of an item and returns values, or raises `ValueError` if the data is too short. Times are in
nanoseconds since 1970. A ``*_LAYOUT`` is the fixed part of an item, to encode one.
"""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, NamedTuple, TypeVar

ROOT_TREE_OBJECTID = 1
EXTENT_TREE_OBJECTID = 2
CHUNK_TREE_OBJECTID = 3
DEV_TREE_OBJECTID = 4
FS_TREE_OBJECTID = 5
ROOT_TREE_DIR_OBJECTID = 6
CSUM_TREE_OBJECTID = 7
QUOTA_TREE_OBJECTID = 8
UUID_TREE_OBJECTID = 9
FREE_SPACE_TREE_OBJECTID = 10

FIRST_FREE_OBJECTID = 256
LAST_FREE_OBJECTID = (1 << 64) - 256
ORPHAN_OBJECTID = (1 << 64) - 5

INODE_ITEM_KEY = 1
INODE_REF_KEY = 12
INODE_EXTREF_KEY = 13
XATTR_ITEM_KEY = 24
ORPHAN_ITEM_KEY = 48
DIR_ITEM_KEY = 84
DIR_INDEX_KEY = 96
EXTENT_DATA_KEY = 108
EXTENT_CSUM_KEY = 128
ROOT_ITEM_KEY = 132
ROOT_BACKREF_KEY = 144
ROOT_REF_KEY = 156
EXTENT_ITEM_KEY = 168
METADATA_ITEM_KEY = 169
TREE_BLOCK_REF_KEY = 176
EXTENT_DATA_REF_KEY = 178
SHARED_BLOCK_REF_KEY = 182
SHARED_DATA_REF_KEY = 184
BLOCK_GROUP_ITEM_KEY = 192
FREE_SPACE_EXTENT_KEY = 199
DEV_EXTENT_KEY = 204
DEV_ITEM_KEY = 216
CHUNK_ITEM_KEY = 228
QGROUP_STATUS_KEY = 240
QGROUP_INFO_KEY = 242
QGROUP_LIMIT_KEY = 244
QGROUP_RELATION_KEY = 246
UUID_KEY_SUBVOL = 251
UUID_KEY_RECEIVED_SUBVOL = 252

ROOT_SUBVOL_RDONLY = 1 << 0

FT_REG_FILE = 1
FT_DIR = 2
FT_SYMLINK = 7
FT_XATTR = 8

FILE_EXTENT_INLINE = 0
FILE_EXTENT_REG = 1
FILE_EXTENT_PREALLOC = 2


class Key(NamedTuple):
    """
    The key of an item. The items of a tree are sorted by key.
    """

    objectid: int
    type: int
    offset: int


class Item(NamedTuple):
    """
    An item of a tree: its key, the transid of its leaf, and its data.
    """

    objectid: int
    type: int
    offset: int
    transid: int
    data: bytes


class InodeItem(NamedTuple):
    """
    INODE_ITEM: an inode.
    """

    generation: int
    transid: int
    size: int
    nbytes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    rdev: int
    flags: int
    sequence: int
    atime: int
    ctime: int
    mtime: int
    otime: int


class InodeRef(NamedTuple):
    """
    INODE_REF: a name of an inode. The offset of the key is the inode number of the directory.

    Attributes:
        dir_index: The offset of the DIR_INDEX item with the same name.
    """

    dir_index: int
    name: bytes


class InodeExtref(NamedTuple):
    """
    INODE_EXTREF: a name of an inode whose names do not fit into one INODE_REF.
    """

    parent_objectid: int
    dir_index: int
    name: bytes


class DirItem(NamedTuple):
    """
    DIR_ITEM and DIR_INDEX: an entry of a directory. XATTR_ITEM: an extended attribute, whose value is *data*.
    """

    location: Key
    transid: int
    type: int
    name: bytes
    data: bytes


class InlineExtent(NamedTuple):
    """
    EXTENT_DATA of a small file: the file's data, compressed if *compression* is not 0.
    """

    generation: int
    ram_bytes: int
    compression: int
    encryption: int
    other_encoding: int
    data: bytes


class FileExtent(NamedTuple):
    """
    EXTENT_DATA: *num_bytes* of the file, stored at *offset* in the extent at *disk_bytenr*.

    Attributes:
        disk_bytenr: A logical address in bytes; 0 for a hole.
    """

    generation: int
    ram_bytes: int
    compression: int
    encryption: int
    other_encoding: int
    type: int
    disk_bytenr: int
    disk_num_bytes: int
    offset: int
    num_bytes: int


class RootItem(NamedTuple):
    """
    ROOT_ITEM: a tree, and the attributes of a subvolume if the tree is one.

    The fields from *uuid* on are newer than the others. They are zero if a kernel without them wrote the item last.
    """

    generation: int
    root_dirid: int
    bytenr: int
    byte_limit: int
    bytes_used: int
    last_snapshot: int
    flags: int
    refs: int
    level: int
    uuid: bytes
    parent_uuid: bytes
    received_uuid: bytes
    ctransid: int
    otransid: int
    stransid: int
    rtransid: int
    ctime: int
    otime: int
    stime: int
    rtime: int


class DropProgress(NamedTuple):
    """
    ROOT_ITEM of a deleted subvolume: on *level* of the tree, everything before *key* is freed.

    Key and level are zero until the cleaner begins.
    """

    key: Key
    level: int


class RootRef(NamedTuple):
    """
    ROOT_REF and ROOT_BACKREF: the directory that contains a subvolume, and the subvolume's name in it.
    """

    dirid: int
    sequence: int
    name: bytes


class QgroupStatus(NamedTuple):
    """
    QGROUP_STATUS: the state of quotas.

    Attributes:
        flags: 1 enabled, 2 rescan running, 4 inconsistent, 8 simple quotas.
    """

    version: int
    generation: int
    flags: int
    rescan: int


class QgroupInfo(NamedTuple):
    """
    QGROUP_INFO: the referenced and exclusive bytes of a qgroup.
    """

    generation: int
    rfer: int
    rfer_cmpr: int
    excl: int
    excl_cmpr: int


class QgroupLimits(NamedTuple):
    """
    QGROUP_LIMIT: the limits of a qgroup in bytes. A bit of *flags* marks each limit that is set.
    """

    flags: int
    max_rfer: int
    max_excl: int
    rsv_rfer: int
    rsv_excl: int


Value = (
    InodeItem
    | tuple[InodeRef, ...]
    | tuple[InodeExtref, ...]
    | tuple[DirItem, ...]
    | InlineExtent
    | FileExtent
    | RootItem
    | RootRef
    | QgroupStatus
    | QgroupInfo
    | QgroupLimits
    | tuple[int, ...]
    | bytes
)
"""A decoded item."""

_Entry = TypeVar("_Entry")

INODE_ITEM_LAYOUT = Struct("<5Q4IQQQ32x qIqIqIqI")
INODE_REF_LAYOUT = Struct("<QH")
INODE_EXTREF_LAYOUT = Struct("<QQH")
DIR_ITEM_LAYOUT = Struct("<QBQQHHB")
FILE_EXTENT_LAYOUT = Struct("<QQBBHB")
FILE_EXTENT_ON_DISK_LAYOUT = Struct("<4Q")
ROOT_ITEM_LAYOUT = Struct("<160x7QI17xxB Q16s16s16s4QqIqIqIqI64x")
ROOT_ITEM_V1_LAYOUT = Struct("<160x7QI17xxB")
DROP_PROGRESS_LAYOUT = Struct("<220xQBQB")
ROOT_REF_LAYOUT = Struct("<QQH")
UUID_ITEM_LAYOUT = Struct("<Q")
QGROUP_STATUS_LAYOUT = Struct("<4Q")
QGROUP_INFO_LAYOUT = Struct("<5Q")

_make = tuple.__new__  # a NamedTuple's own __new__ and _make check more, and take longer

_NEVER = (bytes(16), bytes(16), bytes(16), 0, 0, 0, 0, 0, 0, 0, 0)


def inode_item(data: bytes) -> InodeItem:
    generation, transid, size, nbytes, _, nlink, uid, gid, mode, rdev, flags, sequence, *times = _unpack(
        INODE_ITEM_LAYOUT, data
    )
    return InodeItem(generation, transid, size, nbytes, nlink, uid, gid, mode, rdev, flags, sequence, *_times(times))


def inode_ref(data: bytes) -> tuple[InodeRef, ...]:
    return _sequence(data, _inode_ref)


def inode_extref(data: bytes) -> tuple[InodeExtref, ...]:
    return _sequence(data, _inode_extref)


def dir_item(data: bytes) -> tuple[DirItem, ...]:
    return _sequence(data, _dir_item)


def extent_data(data: bytes) -> InlineExtent | FileExtent:
    *head, type_ = _unpack(FILE_EXTENT_LAYOUT, data)
    if type_ == FILE_EXTENT_INLINE:
        return InlineExtent._make((*head, data[FILE_EXTENT_LAYOUT.size :]))
    if type_ not in (FILE_EXTENT_REG, FILE_EXTENT_PREALLOC):
        raise ValueError(f"{type_} is not a file extent type")
    return FileExtent._make((*head, type_, *_unpack(FILE_EXTENT_ON_DISK_LAYOUT, data, FILE_EXTENT_LAYOUT.size)))


def root_item(data: bytes) -> RootItem:
    if len(data) < ROOT_ITEM_LAYOUT.size:
        return RootItem._make((*_unpack(ROOT_ITEM_V1_LAYOUT, data), *_NEVER))
    values = ROOT_ITEM_LAYOUT.unpack_from(data)
    generation, generation_v2 = values[0], values[9]
    if generation != generation_v2:
        # A kernel without the new fields wrote the item last and left stale values in them.
        return RootItem._make((*values[:9], *_NEVER))
    return _make(RootItem, values[:9] + values[10:17] + _times(values[17:]))


def drop_progress(data: bytes) -> DropProgress:
    objectid, type_, offset, level = _unpack(DROP_PROGRESS_LAYOUT, data)
    return DropProgress(Key(objectid, type_, offset), level)


def root_ref(data: bytes) -> RootRef:
    dirid, sequence, name_len = _unpack(ROOT_REF_LAYOUT, data)
    return RootRef(dirid, sequence, _cut(data, ROOT_REF_LAYOUT.size, name_len))


def qgroup_status(data: bytes) -> QgroupStatus:
    return QgroupStatus(*_unpack(QGROUP_STATUS_LAYOUT, data))


def qgroup_info(data: bytes) -> QgroupInfo:
    return QgroupInfo(*_unpack(QGROUP_INFO_LAYOUT, data))


def qgroup_limit(data: bytes) -> QgroupLimits:
    return QgroupLimits(*_unpack(QGROUP_INFO_LAYOUT, data))


def uuid_text(uuid: bytes) -> str:
    """
    Return the text form of *uuid*, as the module `uuid` does, which is slow to import.
    """
    text = uuid.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def uuid_item(data: bytes) -> tuple[int, ...]:
    """
    Return the ids of the subvolumes with the UUID in the key of a UUID_KEY_SUBVOL or UUID_KEY_RECEIVED_SUBVOL.
    """
    return _sequence(data, _uuid_item)


_DECODERS: dict[int, Callable[[bytes], Value]] = {
    INODE_ITEM_KEY: inode_item,
    INODE_REF_KEY: inode_ref,
    INODE_EXTREF_KEY: inode_extref,
    XATTR_ITEM_KEY: dir_item,
    DIR_ITEM_KEY: dir_item,
    DIR_INDEX_KEY: dir_item,
    EXTENT_DATA_KEY: extent_data,
    ROOT_ITEM_KEY: root_item,
    ROOT_BACKREF_KEY: root_ref,
    ROOT_REF_KEY: root_ref,
    QGROUP_STATUS_KEY: qgroup_status,
    QGROUP_INFO_KEY: qgroup_info,
    QGROUP_LIMIT_KEY: qgroup_limit,
    UUID_KEY_SUBVOL: uuid_item,
    UUID_KEY_RECEIVED_SUBVOL: uuid_item,
}


def decode(item: Item) -> Value:
    """
    Decode the data of *item* by its type. Return the bytes as they are if the type has no decoder.

    Raises:
        ValueError: The data is too short for its type or invalid.
    """
    decoder = _DECODERS.get(item.type)
    return decoder(item.data) if decoder else item.data


def _unpack(layout: Struct, data: bytes, offset: int = 0) -> tuple[Any, ...]:
    if len(data) < offset + layout.size:
        raise ValueError(f"item is too short: {offset + layout.size} bytes needed, {len(data)} found")
    return layout.unpack_from(data, offset)


def _cut(data: bytes, offset: int, length: int) -> bytes:
    if len(data) < offset + length:
        raise ValueError(f"item is too short: {offset + length} bytes needed, {len(data)} found")
    return data[offset : offset + length]


def _sequence(data: bytes, decoder: Callable[[bytes, int], tuple[_Entry, int]]) -> tuple[_Entry, ...]:
    if not data:
        raise ValueError("item is empty")
    entries = []
    offset = 0
    while offset < len(data):
        entry, offset = decoder(data, offset)
        entries.append(entry)
    return tuple(entries)


def _inode_ref(data: bytes, offset: int) -> tuple[InodeRef, int]:
    index, name_len = _unpack(INODE_REF_LAYOUT, data, offset)
    offset += INODE_REF_LAYOUT.size
    return InodeRef(index, _cut(data, offset, name_len)), offset + name_len


def _inode_extref(data: bytes, offset: int) -> tuple[InodeExtref, int]:
    parent, index, name_len = _unpack(INODE_EXTREF_LAYOUT, data, offset)
    offset += INODE_EXTREF_LAYOUT.size
    return InodeExtref(parent, index, _cut(data, offset, name_len)), offset + name_len


def _dir_item(data: bytes, offset: int) -> tuple[DirItem, int]:
    objectid, type_, key_offset, transid, data_len, name_len, kind = _unpack(DIR_ITEM_LAYOUT, data, offset)
    offset += DIR_ITEM_LAYOUT.size
    name = _cut(data, offset, name_len)
    offset += name_len
    value = _cut(data, offset, data_len)
    return DirItem(Key(objectid, type_, key_offset), transid, kind, name, value), offset + data_len


def _uuid_item(data: bytes, offset: int) -> tuple[int, int]:
    (subvolid,) = _unpack(UUID_ITEM_LAYOUT, data, offset)
    return subvolid, offset + UUID_ITEM_LAYOUT.size


def _times(values: Sequence[int]) -> tuple[int, int, int, int]:
    a, a_nsec, b, b_nsec, c, c_nsec, d, d_nsec = values
    second = 1_000_000_000
    return a * second + a_nsec, b * second + b_nsec, c * second + c_nsec, d * second + d_nsec
