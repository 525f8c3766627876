"""
Write a directory tree as a tar stream.
"""

import contextlib
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

from pybtrfs import syscall
from snapshotter.archive.format import _BLOCK, _CHUNK, _TYPES, _XATTR, _open_beneath, _opened
from snapshotter.contract import Snapshotter
from snapshotter.errors import (
    FailedPreconditionError,
    quoted,
    translating,
)

_FORK_IT = "export a fork of the snapshot"


class _Found(NamedTuple):
    """
    A file: its path from the root, an ``O_PATH`` descriptor of it, and its status.
    """

    path: str
    fd: int
    status: os.stat_result

    @property
    def link(self) -> str:
        """
        A path that leads to the file itself, a symlink too.
        """
        return f"/proc/self/fd/{self.fd}"


def size_of(store: Snapshotter, key: str) -> int:
    """
    About how many bytes `save` writes; it costs a look at each file.

    Raises:
        As `save`.
    """
    total, linked = 0, set()
    with (
        translating(f"export snapshot {quoted(key)}"),
        _opened(os.open(store.subvolume(key), os.O_RDONLY | os.O_DIRECTORY)) as fd,
        contextlib.suppress(FileNotFoundError),  # an active one's files come and go
    ):
        for found in _walk(fd):
            status = found.status
            total += 2 * _BLOCK
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in linked:
                total += min(status.st_size, status.st_blocks * 512)
                if status.st_nlink > 1:
                    linked.add((status.st_dev, status.st_ino))
    return total


def pack(fd: int, stream: IO[bytes]) -> None:
    """
    Write the directory *fd* and all in it to *stream*, by path.

    Raises:
        FailedPreconditionError: Files went or became shorter meanwhile.
        OSError: As the kernel says.
    """
    try:
        _pack(fd, stream)
    except FileNotFoundError as error:
        raise FailedPreconditionError(f"files went while they were read: {_FORK_IT}") from error


def _pack(fd: int, stream: IO[bytes]) -> None:
    first: dict[tuple[int, int], str] = {}
    with tarfile.TarFile(
        fileobj=cast(IO[bytes], _Counting(stream)),
        mode="w",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
        copybufsize=_CHUNK,
    ) as tar:
        for found in _walk(fd):
            status = found.status
            if stat.S_ISSOCK(status.st_mode):
                continue
            member = _tarinfo(found)
            inode = status.st_dev, status.st_ino
            if inode in first:
                member.type, member.linkname = tarfile.LNKTYPE, first[inode]
                tar.addfile(member)
                continue
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                first[inode] = found.path
            if stat.S_ISREG(status.st_mode):
                with open(os.open(found.link, os.O_RDONLY | os.O_NOATIME), "rb", buffering=0) as file:
                    _add_content(tar, member, file)
            else:
                tar.addfile(member)
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all; typeshed lacks it


def _walk(root_fd: int) -> Iterator[_Found]:
    """
    The root and everything below it, a directory before what is in it, each descriptor open until the next.
    """
    pending = ["."]
    while pending:
        path = pending.pop()
        with _opened(_open_beneath(root_fd, path, syscall.O_PATH | os.O_NOFOLLOW)) as fd:
            found = _Found(path, fd, os.fstat(fd))
            yield found
            if stat.S_ISDIR(found.status.st_mode):
                with _opened(_open_beneath(fd, ".")) as dir_fd:
                    names = sorted(os.listdir(dir_fd), reverse=True)
                pending.extend(name if path == "." else f"{path}/{name}" for name in names)


def _tarinfo(found: _Found) -> tarfile.TarInfo:
    status = found.status
    member = tarfile.TarInfo(found.path)
    member.type = _TYPES[stat.S_IFMT(status.st_mode)]
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid = status.st_uid, status.st_gid
    member.mtime, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    headers = {"mtime": _decimal(status.st_mtime_ns)} if nanoseconds else {}
    if member.issym():
        member.linkname = os.readlink("", dir_fd=found.fd)
    if member.ischr() or member.isblk():
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    for name in os.listxattr(found.link):
        # As GNU tar writes them: a keyword ends where the first "=" is.
        keyword = _XATTR + name.replace("%", "%25").replace("=", "%3D")
        headers[keyword] = os.getxattr(found.link, name).decode("utf-8", "surrogateescape")
    member.pax_headers = headers
    return member


def _add_content(tar: tarfile.TarFile, member: tarfile.TarInfo, file: io.FileIO) -> None:
    length = os.fstat(file.fileno()).st_size
    segments = list(_segments(file.fileno(), length))
    if segments in ([], [(0, length)]):
        member.size = length
        source: Any = file
    else:
        numbers = [len(segments), *(number for segment in segments for number in segment)]
        text = "".join(f"{number}\n" for number in numbers).encode()
        text += bytes(-len(text) % _BLOCK)
        member.pax_headers = {
            **member.pax_headers,
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": member.name,
            "GNU.sparse.realsize": str(length),
        }
        # ASCII, for readers that let a "path" win over "GNU.sparse.name".
        member.name = f"GNUSparseFile.0/{zlib.crc32(os.fsencode(member.name)):08x}"
        member.size = len(text) + sum(count for _, count in segments)
        source = _Pieces(text, file, segments)
    try:
        tar.addfile(member, source)
    except OSError as error:
        if error.errno is None:  # tarfile's own, of a short read
            raise FailedPreconditionError(f"{member.name!r} became shorter while it was read: {_FORK_IT}") from error
        raise


def _segments(fd: int, length: int) -> Iterator[tuple[int, int]]:
    """
    Where in a file there is data: offsets and lengths. A hole at the end is an empty one there, as GNU tar has it.
    """
    end = 0
    while end < length:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole until the end
            yield length, 0
            break
        end = min(os.lseek(fd, start, os.SEEK_HOLE), length)
        yield start, end - start
    os.lseek(fd, 0, os.SEEK_SET)


class _Pieces:
    """
    A map of segments and then their data, to be read as one file.
    """

    def __init__(self, text: bytes, file: io.FileIO, segments: list[tuple[int, int]]) -> None:
        self._pending = self._read(text, file, segments)
        self._rest = b""

    @staticmethod
    def _read(text: bytes, file: io.FileIO, segments: list[tuple[int, int]]) -> Iterator[bytes]:
        yield text
        for start, count in segments:
            while count and (data := os.pread(file.fileno(), min(count, _CHUNK), start)):
                yield data
                start, count = start + len(data), count - len(data)

    def read(self, count: int) -> bytes:
        while len(self._rest) < count and (data := next(self._pending, b"")):
            self._rest += data
        data, self._rest = self._rest[:count], self._rest[count:]
        return data


class _Counting:
    """
    A stream that knows where it is, though it may be a pipe.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position


def _decimal(nanoseconds: int) -> str:
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{'-' * (nanoseconds < 0)}{seconds}.{rest:09}"
