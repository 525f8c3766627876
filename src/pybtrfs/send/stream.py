"""
Send streams: a parser and an encoder of versions 1 to 3.

A stream is a header and commands, each with its own checksum. Paths and names are bytes as the sender wrote them: the
parser checks the format, and the receiver checks paths. Times are in nanoseconds since 1970.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias
from uuid import UUID

from pybtrfs._ffi import lib

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"btrfs-stream\0"
VERSIONS = range(1, 4)
MAX_COMMAND_SIZE = 1 << 20
"""
The largest payload of a command in bytes that `Reader` accepts.
"""

_HEADER = Struct(f"<{len(MAGIC)}sI")
_COMMAND = Struct("<IHI")  # size of the payload, number, checksum
_ATTRIBUTE = Struct("<HH")  # number, size
_TIME = Struct("<qI")
_NANOSECONDS = 1_000_000_000


class StreamError(ValueError):
    """
    The bytes are not a send stream, or a damaged one.
    """


class Subvol(NamedTuple):
    """
    Create an empty subvolume. Every full stream begins with this command.
    """

    path: bytes
    uuid: UUID
    ctransid: int


class Snapshot(NamedTuple):
    """
    Create a snapshot of the subvolume *clone_uuid*. Every incremental stream begins with this command.
    """

    path: bytes
    uuid: UUID
    ctransid: int
    clone_uuid: UUID
    clone_ctransid: int


class Mkfile(NamedTuple):
    """
    Create an empty file.
    """

    path: bytes
    ino: int | None = None


class Mkdir(NamedTuple):
    """
    Create a directory.
    """

    path: bytes
    ino: int | None = None


class Mknod(NamedTuple):
    """
    Create the node of a device.
    """

    path: bytes
    mode: int
    rdev: int
    ino: int | None = None


class Mkfifo(NamedTuple):
    """
    Create a FIFO.
    """

    path: bytes
    mode: int | None = None
    rdev: int | None = None
    ino: int | None = None


class Mksock(NamedTuple):
    """
    Create a socket.
    """

    path: bytes
    mode: int | None = None
    rdev: int | None = None
    ino: int | None = None


class Symlink(NamedTuple):
    """
    Create a symbolic link to *path_link*.
    """

    path: bytes
    path_link: bytes
    ino: int | None = None


class Rename(NamedTuple):
    """
    Rename *path* to *path_to*.
    """

    path: bytes
    path_to: bytes


class Link(NamedTuple):
    """
    Create *path* as a hard link to *path_link*.
    """

    path: bytes
    path_link: bytes


class Unlink(NamedTuple):
    """
    Remove a file.
    """

    path: bytes


class Rmdir(NamedTuple):
    """
    Remove an empty directory.
    """

    path: bytes


class SetXattr(NamedTuple):
    """
    Set an extended attribute.
    """

    path: bytes
    xattr_name: bytes
    xattr_data: bytes


class RemoveXattr(NamedTuple):
    """
    Remove an extended attribute.
    """

    path: bytes
    xattr_name: bytes


class Write(NamedTuple):
    """
    Write *data* at *file_offset*.
    """

    path: bytes
    file_offset: int
    data: bytes


class Clone(NamedTuple):
    """
    Clone *clone_len* bytes of the file *clone_path* in the subvolume *clone_uuid*.
    """

    path: bytes
    file_offset: int
    clone_len: int
    clone_uuid: UUID
    clone_ctransid: int
    clone_path: bytes
    clone_offset: int


class Truncate(NamedTuple):
    """
    Set the size of a file.
    """

    path: bytes
    size: int


class Chmod(NamedTuple):
    """
    Set the mode of a file.
    """

    path: bytes
    mode: int


class Chown(NamedTuple):
    """
    Set the owner of a file.
    """

    path: bytes
    uid: int
    gid: int


class Utimes(NamedTuple):
    """
    Set the times of a file. Version 2 adds *otime*, the time of creation.
    """

    path: bytes
    atime: int
    mtime: int
    ctime: int
    otime: int | None = None


class End(NamedTuple):
    """
    End the stream.
    """


class UpdateExtent(NamedTuple):
    """
    Announce changed data, which a stream without data leaves out.
    """

    path: bytes
    file_offset: int
    size: int


class Fallocate(NamedTuple):
    """
    Call fallocate(2). Since version 2.
    """

    path: bytes
    fallocate_mode: int
    file_offset: int
    size: int


class Fileattr(NamedTuple):
    """
    Set the btrfs flags of an inode. Since version 2.
    """

    path: bytes
    fileattr: int


class EncodedWrite(NamedTuple):
    """
    Write *data*, which is compressed, at *file_offset*. Since version 2.
    """

    path: bytes
    file_offset: int
    unencoded_file_len: int
    unencoded_len: int
    unencoded_offset: int
    data: bytes
    compression: int = 0
    encryption: int = 0


class EnableVerity(NamedTuple):
    """
    Enable fs-verity on a file. Since version 3.
    """

    path: bytes
    verity_algorithm: int
    verity_block_size: int
    verity_salt_data: bytes
    verity_sig_data: bytes


Command: TypeAlias = (
    Subvol
    | Snapshot
    | Mkfile
    | Mkdir
    | Mknod
    | Mkfifo
    | Mksock
    | Symlink
    | Rename
    | Link
    | Unlink
    | Rmdir
    | SetXattr
    | RemoveXattr
    | Write
    | Clone
    | Truncate
    | Chmod
    | Chown
    | Utimes
    | End
    | UpdateExtent
    | Fallocate
    | Fileattr
    | EncodedWrite
    | EnableVerity
)
"""
A command of a stream. Its fields have the kernel's names of the attributes.
"""

# In the order of their numbers, from 1.
COMMANDS: tuple[type[Command], ...] = Command.__args__
_NUMBERS = {command: number for number, command in enumerate(COMMANDS, 1)}
_LAST = {1: _NUMBERS[UpdateExtent], 2: _NUMBERS[EncodedWrite], 3: _NUMBERS[EnableVerity]}

_U8, _U32, _U64 = Struct("<B"), Struct("<I"), Struct("<Q")
# In the order of their numbers, from 1. bytes have any size.
_ATTRIBUTES: dict[str, type[bytes | UUID] | Struct] = {
    "uuid": UUID,
    "ctransid": _U64,
    "ino": _U64,
    "size": _U64,
    "mode": _U64,
    "uid": _U64,
    "gid": _U64,
    "rdev": _U64,
    "ctime": _TIME,
    "mtime": _TIME,
    "atime": _TIME,
    "otime": _TIME,
    "xattr_name": bytes,
    "xattr_data": bytes,
    "path": bytes,
    "path_to": bytes,
    "path_link": bytes,
    "file_offset": _U64,
    "data": bytes,
    "clone_uuid": UUID,
    "clone_ctransid": _U64,
    "clone_path": bytes,
    "clone_offset": _U64,
    "clone_len": _U64,
    "fallocate_mode": _U32,
    "fileattr": _U64,
    "unencoded_file_len": _U64,
    "unencoded_len": _U64,
    "unencoded_offset": _U64,
    "compression": _U32,
    "encryption": _U32,
    "verity_algorithm": _U8,
    "verity_block_size": _U32,
    "verity_salt_data": bytes,
    "verity_sig_data": bytes,
}
_NAMES = tuple(_ATTRIBUTES)
_ATTRIBUTE_NUMBERS = {name: number for number, name in enumerate(_NAMES, 1)}


class Reader:
    """
    Read one stream from *source*: iterate over its commands, of which the last is `End`.

    At most one command is in memory, and no byte after the end of the stream is read. A source can thus hold several
    streams, and each takes a `Reader`.

    Args:
        source: A binary file, or a file descriptor, which is left open.

    Raises:
        StreamError: The source does not begin with the header of a stream, or the stream has an unknown version.
            During iteration: the stream is damaged, or ends before the command `End`.
    """

    def __init__(self, source: BinaryIO | int) -> None:
        # Without a buffer, so that the bytes after the stream stay unread.
        if isinstance(source, int):
            source = open(source, "rb", buffering=0, closefd=False)  # noqa: SIM115 - the caller owns the descriptor
        self._file = source
        self._offset = 0
        self._ended = False
        magic, version = _HEADER.unpack(self._read(_HEADER.size))
        if magic != MAGIC:
            raise StreamError(f"not a send stream: it begins with {magic!r}")
        if version not in VERSIONS:
            raise StreamError(f"send stream of version {version}: versions 1 to {VERSIONS[-1]} are known")
        self.version: int = version

    def __iter__(self) -> Iterator[Command]:
        return self

    def __next__(self) -> Command:
        if self._ended:
            raise StopIteration
        start = self._offset
        head = self._read(_COMMAND.size)
        size, number, checksum = _COMMAND.unpack(head)
        if not 1 <= number <= _LAST[self.version]:
            raise StreamError(f"unknown command {number} at byte {start} of a stream of version {self.version}")
        if size > MAX_COMMAND_SIZE:
            raise StreamError(f"command of {size} bytes at byte {start}: at most {MAX_COMMAND_SIZE} are accepted")
        payload = self._read(size)
        if checksum != _checksum(size, number, payload):
            raise StreamError(f"wrong checksum of the command at byte {start}")
        try:
            command = _decode(number, payload, self.version)
        except StreamError as error:
            raise StreamError(f"{error} in {COMMANDS[number - 1].__name__} at byte {start}") from None
        self._ended = isinstance(command, End)
        return command

    def _read(self, size: int) -> bytes:
        pieces = []
        left = size
        while left:
            piece = self._file.read(left)
            if not piece:
                raise StreamError(f"the stream is truncated at byte {self._offset}")
            pieces.append(piece)
            self._offset += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def encode_header(version: int) -> bytes:
    """
    Return the header of a stream of *version*.
    """
    return _HEADER.pack(MAGIC, version)


def encode(command: Command, version: int) -> bytes:
    """
    Return the bytes of *command* in a stream of *version*.

    Raises:
        ValueError: The version lacks the command, or a value does not fit into its attribute.
    """
    number = _NUMBERS[type(command)]
    if number > _LAST[version]:
        raise ValueError(f"a stream of version {version} has no {type(command).__name__}")
    pieces = []
    # The data of version 2 has no size, and therefore is the last attribute.
    for name, value in sorted(command._asdict().items(), key=lambda item: item[0] == "data"):
        if value is None:
            continue
        try:
            content = _encode_value(_ATTRIBUTES[name], value)
            if name == "data" and version > 1:
                pieces += [_ATTRIBUTE_NUMBERS[name].to_bytes(2, "little"), content]
            else:
                pieces += [_ATTRIBUTE.pack(_ATTRIBUTE_NUMBERS[name], len(content)), content]
        except struct_error as error:
            raise ValueError(f"{name} {value!r:.80} does not fit: {error}") from error
    payload = b"".join(pieces)
    return _COMMAND.pack(len(payload), number, _checksum(len(payload), number, payload)) + payload


def _checksum(size: int, number: int, payload: bytes) -> int:
    head = _COMMAND.pack(size, number, 0)
    return lib.pybtrfs_crc32c(lib.pybtrfs_crc32c(0, head, len(head)), payload, len(payload))


def _decode(number: int, payload: bytes, version: int) -> Command:
    values: dict[str, Any] = {}
    position = 0
    while position < len(payload):
        attribute = int.from_bytes(payload[position : position + 2], "little")
        if not 1 <= attribute <= len(_NAMES):
            raise StreamError(f"unknown attribute {attribute}")
        name = _NAMES[attribute - 1]
        if name == "data" and version > 1:
            position, size = position + 2, len(payload) - position - 2
        else:
            size = int.from_bytes(payload[position + 2 : position + 4], "little")
            position += 4
        if size < 0 or position + size > len(payload):
            raise StreamError(f"attribute {name} is longer than the command")
        if name in values:
            raise StreamError(f"second attribute {name}")
        values[name] = _decode_value(name, payload[position : position + size])
        position += size
    command = COMMANDS[number - 1]
    # The kernel adds attributes that a command does not need.
    fields = {name: values[name] for name in command._fields if name in values}
    missing = [name for name in command._fields if name not in fields and name not in command._field_defaults]
    if missing:
        raise StreamError(f"no attribute {missing[0]}")
    return command(**fields)


def _decode_value(name: str, content: bytes) -> bytes | int | UUID:
    kind = _ATTRIBUTES[name]
    if kind is bytes:
        return content
    expected = kind.size if isinstance(kind, Struct) else 16
    if len(content) != expected:
        raise StreamError(f"attribute {name} has {len(content)} bytes instead of {expected}")
    if not isinstance(kind, Struct):
        return UUID(bytes=content)
    if kind is not _TIME:
        return int(kind.unpack(content)[0])
    seconds, nanoseconds = kind.unpack(content)
    if nanoseconds >= _NANOSECONDS:
        raise StreamError(f"attribute {name} has {nanoseconds} nanoseconds")
    return int(seconds * _NANOSECONDS + nanoseconds)


def _encode_value(kind: type[bytes | UUID] | Struct, value: Any) -> bytes:
    if kind is bytes:
        return bytes(value)
    if not isinstance(kind, Struct):
        return bytes(value.bytes)
    return kind.pack(*divmod(value, _NANOSECONDS)) if kind is _TIME else kind.pack(value)
