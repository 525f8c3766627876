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
from pybtrfs.path import open_beneath, owned
from snapshotter.archive.format import CHUNK_SIZE, TYPES, format_time, xattr_header
from snapshotter.errors import FailedPreconditionError

# O_NOATIME, so that an export does not change access times.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME

_CURE = "export a fork of the snapshot (`snapshotter fork`)"


class _File(NamedTuple):
    """
    A file of the tree: its path from the root, an ``O_PATH`` descriptor, and its status.
    """

    path: str
    fd: int
    status: os.stat_result

    @property
    def link(self) -> str:
        """
        A path that leads to the file itself, even to a symbolic link.
        """
        return f"/proc/self/fd/{self.fd}"


def estimate_size(fd: int) -> int:
    """
    Return about how many bytes `pack` writes for the directory *fd*. Reads the status of every file.
    """
    total, linked = 0, set()
    with contextlib.suppress(FileNotFoundError):  # the files of an active snapshot come and go
        for file in _walk(fd):
            status = file.status
            total += 2 * tarfile.BLOCKSIZE
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in linked:
                total += min(status.st_size, status.st_blocks * 512)
                if status.st_nlink > 1:
                    linked.add((status.st_dev, status.st_ino))
    return total


def pack(fd: int, stream: IO[bytes]) -> None:
    """
    Write the directory *fd* and everything below it to *stream*, ordered by path. Sockets are left out.

    Raises:
        FailedPreconditionError: A file was deleted or truncated during the call.
        OSError: As the kernel says.
    """
    try:
        _pack(fd, stream)
    except FileNotFoundError as error:
        raise FailedPreconditionError(f"a file was deleted during the export: {_CURE}") from error


def _pack(fd: int, stream: IO[bytes]) -> None:
    first: dict[tuple[int, int], str] = {}
    with tarfile.TarFile(
        fileobj=cast("IO[bytes]", _Counting(stream)),
        mode="w",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
        copybufsize=CHUNK_SIZE,
    ) as tar:
        for file in _walk(fd):
            status = file.status
            if stat.S_ISSOCK(status.st_mode):
                continue
            member = _tarinfo(file)
            inode = status.st_dev, status.st_ino
            if inode in first:
                member.type, member.linkname = tarfile.LNKTYPE, first[inode]
                tar.addfile(member)
                continue
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                first[inode] = file.path
            if stat.S_ISREG(status.st_mode):
                with open(os.open(file.link, os.O_RDONLY | os.O_NOATIME), "rb", buffering=0) as content:
                    _add_content(tar, member, content)
            else:
                tar.addfile(member)
            tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every member; typeshed lacks the attribute


def _walk(root_fd: int) -> Iterator[_File]:
    """
    Yield the root and everything below it, each directory before its entries.

    Each descriptor is open until the next file is asked for.
    """
    pending = ["."]
    while pending:
        path = pending.pop()
        with owned(open_beneath(root_fd, path, syscall.O_PATH | os.O_NOFOLLOW)) as fd:
            file = _File(path, fd, os.fstat(fd))
            yield file
            if stat.S_ISDIR(file.status.st_mode):
                with owned(open_beneath(fd, "", _DIRECTORY)) as dir_fd:
                    names = sorted(os.listdir(dir_fd), reverse=True)
                pending.extend(name if path == "." else f"{path}/{name}" for name in names)


def _tarinfo(file: _File) -> tarfile.TarInfo:
    status = file.status
    member = tarfile.TarInfo(file.path)
    member.type = TYPES[stat.S_IFMT(status.st_mode)]
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid = status.st_uid, status.st_gid
    member.mtime, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    headers = {"mtime": format_time(status.st_mtime_ns)} if nanoseconds else {}
    if member.issym():
        member.linkname = os.readlink("", dir_fd=file.fd)
    if member.ischr() or member.isblk():
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    for name in os.listxattr(file.link):
        headers[xattr_header(name)] = os.getxattr(file.link, name).decode("utf-8", "surrogateescape")
    member.pax_headers = headers
    return member


def _add_content(tar: tarfile.TarFile, member: tarfile.TarInfo, file: io.FileIO) -> None:
    path, length = member.name, os.fstat(file.fileno()).st_size
    segments = list(_segments(file.fileno(), length))
    if segments in ([], [(0, length)]):
        member.size = length
        source: Any = file
    else:
        numbers = [len(segments), *(number for segment in segments for number in segment)]
        text = "".join(f"{number}\n" for number in numbers).encode()
        text += bytes(-len(text) % tarfile.BLOCKSIZE)
        member.pax_headers = {
            **member.pax_headers,
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": path,
            "GNU.sparse.realsize": str(length),
        }
        # In ASCII: a name that needs a "path" header would win over "GNU.sparse.name" in some readers.
        member.name = f"GNUSparseFile.0/{zlib.crc32(os.fsencode(path)):08x}"
        member.size = len(text) + sum(count for _, count in segments)
        source = _SparseContent(text, file, segments)
    try:
        tar.addfile(member, source)
    except OSError as error:
        if error.errno is None:  # raised by tarfile after a short read
            raise FailedPreconditionError(f"file {path!r} was truncated during the export: {_CURE}") from error
        raise


def _segments(fd: int, length: int) -> Iterator[tuple[int, int]]:
    """
    Yield the offset and length of each run of data in a file.

    If the file ends in a hole, the last segment is an empty one at the end, as in GNU tar.
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


class _SparseContent:
    """
    The content of a member in GNU's sparse format: a map of the segments, then their data.
    """

    def __init__(self, text: bytes, file: io.FileIO, segments: list[tuple[int, int]]) -> None:
        self._pending = self._read(text, file, segments)
        self._rest = b""

    @staticmethod
    def _read(text: bytes, file: io.FileIO, segments: list[tuple[int, int]]) -> Iterator[bytes]:
        yield text
        for start, count in segments:
            while count and (data := os.pread(file.fileno(), min(count, CHUNK_SIZE), start)):
                yield data
                start, count = start + len(data), count - len(data)

    def read(self, count: int) -> bytes:
        while len(self._rest) < count and (data := next(self._pending, b"")):
            self._rest += data
        data, self._rest = self._rest[:count], self._rest[count:]
        return data


class _Counting:
    """
    A stream that knows its position, even if it is a pipe.
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
