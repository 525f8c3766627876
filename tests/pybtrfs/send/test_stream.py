"""
The parser and the encoder of send streams.
"""

import io
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybtrfs import subvolume
from pybtrfs._ffi import lib
from pybtrfs.send import stream
from pybtrfs.send.stream import Command, End, Mkfile, Reader, StreamError, Subvol, Utimes, Write
from tests.programs import needed

U64 = st.integers(0, (1 << 64) - 1)
TIMES = st.integers(-(1 << 63), (1 << 63) - 1)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("atime", "mtime", "ctime", "otime"), TIMES),
    **dict.fromkeys(
        ("fallocate_mode", "compression", "encryption", "verity_block_size"), st.integers(0, (1 << 32) - 1)
    ),
    "verity_algorithm": st.integers(0, 255),
}
KINDS: dict[Any, st.SearchStrategy[Any]] = {bytes: st.binary(max_size=100), UUID: st.uuids(), int: U64}


def build(kind: type[Command]) -> st.SearchStrategy[Command]:
    """
    Draw a command of *kind*.
    """
    fields = {}
    for name, annotation in get_type_hints(kind).items():
        value = VALUES.get(name, KINDS.get(annotation, U64))
        fields[name] = st.none() | value if kind._field_defaults.get(name, 0) is None else value
    return st.builds(kind, **fields)


LAST = {1: stream.UpdateExtent, 2: stream.EncodedWrite, 3: stream.EnableVerity}


def commands(version: int) -> st.SearchStrategy[list[Command]]:
    """
    Draw the commands of a stream of *version*.
    """
    kinds = stream.COMMANDS[: stream.COMMANDS.index(LAST[version]) + 1]
    return st.lists(st.one_of([build(kind) for kind in kinds if kind is not End]), max_size=8)


def encoded(version: int, *commands: Command) -> bytes:
    """
    Return a stream of *commands*, without `End` unless it is among them.
    """
    return stream.encode_header(version) + b"".join(stream.encode(command, version) for command in commands)


def raw(number: int, payload: bytes) -> bytes:
    """
    Return a command with the right checksum.
    """
    head = struct.pack("<IHI", len(payload), number, 0)
    checksum = lib.pybtrfs_crc32c(0, head + payload, len(head + payload))
    return struct.pack("<IHI", len(payload), number, checksum) + payload


class Dribbling(io.RawIOBase):
    """
    A file that returns at most three bytes at a time.
    """

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 3))


@pytest.mark.parametrize("version", stream.VERSIONS)
def test_round_trip(version: int) -> None:
    """
    The parser returns the commands that were encoded, however few bytes a read returns.
    """

    @given(commands(version))
    def check(expected: list[Command]) -> None:
        data = encoded(version, *expected, End())
        reader = Reader(Dribbling(data))  # type: ignore[arg-type]  # has the only method in use
        assert reader.version == version
        assert list(reader) == [*expected, End()]

    check()


def test_streams_in_sequence() -> None:
    """
    A reader reads nothing after its stream, so that the next reader reads the next stream of the same file.
    """
    source = io.BytesIO(encoded(1, Mkfile(b"one"), End()) + encoded(2, Mkfile(b"two"), End()))
    assert [*Reader(source)] == [Mkfile(b"one"), End()]
    assert [*Reader(source)] == [Mkfile(b"two"), End()]
    assert source.read() == b""


def test_descriptor(tmp_path: Path) -> None:
    """
    A descriptor is read from its position, and stays open.
    """
    (tmp_path / "stream").write_bytes(encoded(1, Mkfile(b"one"), End()) + b"rest")
    fd = os.open(tmp_path / "stream", os.O_RDONLY)
    try:
        assert [*Reader(fd)] == [Mkfile(b"one"), End()]
        assert os.read(fd, 10) == b"rest"
    finally:
        os.close(fd)


@given(st.binary())
def test_checksum(data: bytes) -> None:
    """
    The checksum is CRC32C, also when computed in parts.
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    half = lib.pybtrfs_crc32c(0xFFFFFFFF, data, len(data) // 2)
    assert lib.pybtrfs_crc32c(half, data[len(data) // 2 :], len(data) - len(data) // 2) == crc


PATH = b"\x0f\0\1\0a"
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated at byte 0"),
    "magic": (b"btrfs-strean\0\1\0\0\0", "not a send stream"),
    "version 0": (stream.encode_header(0), "version 0"),
    "version 4": (stream.encode_header(4), "version 4"),
    "no end": (encoded(1, Mkfile(b"a")), "truncated at byte 32"),
    "cut": (encoded(1, Mkfile(b"a"))[:-1], "truncated at byte 31"),
    "command 0": (encoded(1) + raw(0, b""), "unknown command 0"),
    "command of version 2": (encoded(1) + raw(23, b""), "unknown command 23"),
    "command of version 3": (encoded(2) + raw(26, b""), "unknown command 26"),
    "size": (encoded(1) + struct.pack("<IHI", (1 << 20) + 1, 3, 0), "at most 1048576"),
    "checksum": (encoded(1) + raw(3, PATH)[:-1] + b"b", "wrong checksum of the command at byte 17"),
    "attribute 0": (encoded(1) + raw(3, b"\0\0\0\0"), "unknown attribute 0 in Mkfile"),
    "attribute 36": (encoded(1) + raw(3, b"\x24\0\0\0"), "unknown attribute 36 in Mkfile"),
    "long attribute": (encoded(1) + raw(3, PATH[:-1]), "attribute path is longer"),
    "half an attribute": (encoded(1) + raw(3, PATH + b"\3"), "attribute ino is longer"),
    "second path": (encoded(1) + raw(3, PATH * 2), "second attribute path"),
    "no path": (encoded(1) + raw(3, b""), "no attribute path in Mkfile"),
    "short number": (encoded(1) + raw(3, PATH + b"\3\0\1\0a"), "attribute ino has 1 bytes instead of 8"),
    "short uuid": (encoded(1) + raw(1, b"\1\0\1\0a"), "attribute uuid has 1 bytes instead of 16"),
    "nanoseconds": (encoded(1) + raw(20, b"\x0b\0\x0c\0" + bytes(8) + b"\xff" * 4), "4294967295 nanoseconds"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_streams(name: str) -> None:
    """
    A damaged stream is refused with the value and its position.
    """
    data, message = BAD[name]
    with pytest.raises(StreamError, match=message):
        list(Reader(io.BytesIO(data)))


def test_attributes_that_a_command_does_not_need() -> None:
    """
    The parser ignores known attributes that the command does not need.
    """
    data = encoded(1) + raw(3, PATH + b"\4\0\x08\0" + bytes(8)) + raw(21, b"")
    assert next(Reader(io.BytesIO(data))) == Mkfile(b"a")


@pytest.mark.parametrize(
    ("command", "version"),
    [
        (stream.EnableVerity(b"a", 1, 4096, b"", b""), 2),
        (Write(b"a", 1 << 64, b""), 1),
        (Write(b"a", 0, bytes(1 << 16)), 1),
    ],
)
def test_unencodable(command: Command, version: int) -> None:
    """
    The encoder refuses commands of later versions, and values that do not fit.
    """
    with pytest.raises(ValueError, match=r"no EnableVerity|does not fit"):
        stream.encode(command, version)


@pytest.mark.btrfs
def test_stream_of_the_command(btrfs_mount: Callable[..., Path], tmp_path: Path) -> None:
    """
    A stream of the btrfs command is parsed to its commands.
    """
    needed("btrfs")
    mount = btrfs_mount()
    subvolume.create(mount / "subvolume")
    (mount / "subvolume" / "file").write_bytes(b"content")
    subvolume.snapshot(mount / "subvolume", mount / "snapshot", read_only=True)
    subprocess.run(["btrfs", "send", "-q", "-f", tmp_path / "stream", mount / "snapshot"], check=True)
    data = (tmp_path / "stream").read_bytes()
    found = list(Reader(io.BytesIO(data)))
    assert isinstance(found[0], Subvol)
    assert found[0].path == b"snapshot"
    assert Write(b"file", 0, b"content") in found
    mtime = (mount / "snapshot" / "file").stat().st_mtime_ns
    assert mtime in [command.mtime for command in found if isinstance(command, Utimes) and command.path == b"file"]
    assert isinstance(found[-1], End)
