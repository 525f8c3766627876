"""
What a snapshot holds as a tar, and a snapshot from one: with owners, modes, times to the nanosecond, extended
attributes, hard links, holes, devices, FIFOs, and names of any bytes.

The format is PAX. Extended attributes are ``SCHILY.xattr`` and files with holes GNU's sparse format 1.0: GNU tar and
bsdtar read and write both. Paths of more than 4,095 bytes are refused.
"""

import contextlib
import errno
import io
import lzma
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self, cast

from pybtrfs import syscall
from snapshotter.contract import Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    Error,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    quoted,
    translating,
)
from snapshotter.mounting import mounted

if TYPE_CHECKING:
    from snapshotter.client import Client

_CHUNK = 1 << 20  # in bytes
_STREAM_SIZE = 1 << 16  # in bytes; tarfile moves all of it for each header
_MAX_HEADER_SIZE = 16 << 20  # of the names and attributes of one member, in bytes; each attribute has 64 KiB at most
_BLOCK = tarfile.BLOCKSIZE
_MAGIC_SIZE = 6
_XATTR = "SCHILY.xattr."
_INHERITED = "system.posix_acl_"  # a new file has them of its directory
_HEADERS = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME}
_HEADERS |= {tarfile.GNUTYPE_LONGLINK}
_DEVICES = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}
_TYPES = {kind: type_ for type_, kind in _DEVICES.items()} | {stat.S_IFDIR: tarfile.DIRTYPE}
_TYPES |= {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
_FORK_IT = "export a fork of the snapshot"
_BEHIND = {errno.ELOOP, errno.ENOTDIR, errno.EXDEV}
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError)


def save(store: Snapshotter, key: str, stream: IO[bytes]) -> None:
    """
    Write the content of the snapshot *key*, of any kind, to *stream* as a tar; sockets are left out.

    That of an active one is not of one moment: `Snapshotter.fork` makes one that is.

    Raises:
        NotFoundError: No snapshot has the key.
        DataLossError: Its subvolume is gone, also in the middle.
        FailedPreconditionError: Files went or became shorter meanwhile, something is mounted in it, or a path is too
            long.
    """
    path = store.subvolume(key)
    with translating(f"export snapshot {quoted(key)}"), _opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        try:
            pack(fd, stream)
        finally:
            # Nothing can be found in one that was destroyed meanwhile, which looks like an end.
            if os.stat(path).st_dev != os.fstat(fd).st_dev:
                raise DataLossError(f"snapshot {quoted(key)} was removed meanwhile")


def load(
    store: "Snapshotter | Client",
    key: str,
    stream: IO[bytes],
    parent: str = "",
    labels: Mapping[str, str] | None = None,
) -> None:
    """
    Make the committed snapshot *key* of the tar that *stream* has, on top of *parent* or of nothing; whole or not at
    all. Compressed ones are read, too. Needs CAP_SYS_ADMIN.

    What *parent* has in the place of a member goes; there is no member that only deletes.

    Raises:
        AlreadyExistsError: *key* is taken.
        InvalidArgumentError: It is no tar, it is damaged or cut off, or a member would be outside or behind a link;
            and as `Snapshotter.prepare`.
        NotFoundError: *parent* does not exist.
        ResourceExhaustedError: The disk is full.
    """
    with contextlib.suppress(NotFoundError):
        store.stat(key)
        raise AlreadyExistsError(f"snapshot {quoted(key)} already exists")
    temporary = f"{key}.import-{os.urandom(6).hex()}"
    mounts = store.prepare(temporary, parent)
    try:
        with (
            translating(f"import snapshot {quoted(key)}"),
            mounted(mounts) as path,
            _opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as fd,
        ):
            unpack(stream, fd)
        store.commit(key, temporary, labels)
    except BaseException:
        with contextlib.suppress(Error):
            store.remove(temporary)
            store.cleanup()
        raise


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


# Reading an active one is no change of it.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME


def _open_beneath(fd: int, path: str, flags: int = _DIRECTORY) -> int:
    # Whoever made the names in there may have made links of them.
    resolve = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_XDEV
    return syscall.openat2(fd, path or ".", flags | os.O_CLOEXEC, resolve)


# -- writing


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
            member = _described(found)
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


def _described(found: _Found) -> tarfile.TarInfo:
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


# -- reading


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            # A tar that was cut off between two members would be taken for a whole one.
            raise tarfile.ReadError("it is cut off")
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and not 0 <= member.size <= _MAX_HEADER_SIZE:
            raise tarfile.ReadError(f"a header has {member.size} bytes")
        return member


def unpack(stream: IO[bytes], fd: int) -> None:
    """
    Make what the tar of *stream* has in the directory *fd*, and nowhere else.

    Raises:
        InvalidArgumentError: It is no tar, it is damaged or cut off, or a member would be outside or behind a link.
        OSError: As the kernel says.
    """
    directories: dict[str, tarfile.TarInfo] = {}
    try:
        stream = _decompressed(stream)
        with tarfile.open(
            fileobj=stream,
            mode="r|",
            bufsize=_STREAM_SIZE,
            tarinfo=_Member,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all; typeshed lacks it
                parts = _parts(member.name)
                directories.pop("/".join(parts), None)
                if member.isdir():
                    directories["/".join(parts)] = member
                _make(tar, member, parts, fd)
        while stream.read(_CHUNK):
            pass  # or who writes to the pipe would fail, and a checksum at the end go unread
        # What is made in a directory changes its time, and would inherit its attributes.
        for path in sorted(directories, reverse=True):
            with _opened(_open_beneath(fd, path)) as made_fd:
                _describe(made_fd, directories[path])
    except _DAMAGED as error:
        raise InvalidArgumentError(f"it is no tar, or a damaged one: {error}") from error
    except OSError as error:
        if error.errno is None:  # a decompressor's
            raise InvalidArgumentError(f"it is no tar, or a damaged one: {error}") from error
        raise


class _Joined(io.RawIOBase):
    """
    The beginning of a stream, and the rest of it.
    """

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first = first
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._first[: len(buffer)] or self._rest.read(len(buffer))
        self._first = self._first[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _decompressed(stream: IO[bytes]) -> IO[bytes]:
    # tarfile decompresses, too, and verifies no checksum of a stream.
    first = stream.read(_MAGIC_SIZE)
    whole = io.BufferedReader(_Joined(first, stream), _CHUNK)
    if first.startswith(b"\x1f\x8b"):
        import gzip

        return cast(IO[bytes], gzip.GzipFile(fileobj=whole))
    if first.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(whole)
    if first.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(whole)
    return whole


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArgumentError(f"member {quoted(name)} would be outside")
    return parts


def _make(tar: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str], root_fd: int) -> None:
    if not parts:
        if not member.isdir():
            raise InvalidArgumentError(f"member {quoted(member.name)} is the root, and no directory")
        return
    *above, name = parts
    with _opened(_directory(root_fd, above, member)) as dir_fd:
        if member.isdir():
            _make_directory(name, dir_fd)
            return
        if member.islnk():
            *source_above, source = _parts(member.linkname) or [""]
            with _opened(_directory(root_fd, source_above, member)) as source_fd:
                temporary = f".{os.urandom(6).hex()}"  # what it replaces may be the source
                try:
                    os.link(source, temporary, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
                except (FileNotFoundError, PermissionError) as error:
                    raise InvalidArgumentError(
                        f"member {quoted(member.name)} is a link to {quoted(member.linkname)}, and there is no file"
                    ) from error
            _clear(name, dir_fd)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            return
        _clear(name, dir_fd)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=dir_fd)
        elif member.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(name, flags, 0o600, dir_fd=dir_fd), "wb", buffering=0) as file:
                _write_content(tar, member, file)
        elif member.type in _DEVICES:
            device = os.makedev(member.devmajor, member.devminor)
            os.mknod(name, _DEVICES[member.type] | 0o600, device, dir_fd=dir_fd)
        else:
            raise InvalidArgumentError(f"member {quoted(member.name)} is of the unknown type {member.type!r}")
        with _opened(os.open(name, syscall.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)) as fd:
            _describe(fd, member)


def _directory(root_fd: int, parts: list[str], member: tarfile.TarInfo) -> int:
    """
    A descriptor of the directory at *parts*, which is made where it is missing.
    """
    path = "/".join(parts)
    try:
        with contextlib.suppress(FileNotFoundError):
            return _open_beneath(root_fd, path)
        for count, name in enumerate(parts):
            with _opened(_open_beneath(root_fd, "/".join(parts[:count]))) as fd, contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=fd)
        return _open_beneath(root_fd, path)
    except OSError as error:
        if error.errno in _BEHIND:
            raise InvalidArgumentError(f"member {quoted(member.name)} would be behind a link, or in a file") from error
        raise


def _make_directory(name: str, dir_fd: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=dir_fd)
            os.mkdir(name, 0o700, dir_fd=dir_fd)


def _clear(name: str, dir_fd: int) -> None:
    """
    Take away what is in the place of a member.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=dir_fd)


def _write_content(tar: tarfile.TarFile, member: tarfile.TarInfo, file: io.FileIO) -> None:
    source = cast(Any, tar.extractfile(member)).raw  # which can seek in a pipe: forward, over holes
    segments: list[tuple[int, int]] = member.sparse or [(0, member.size)]  # type: ignore[assignment]  # an int, it says
    for start, count in segments:
        source.seek(start)
        file.seek(start)
        while count > 0:
            if not (data := source.read(min(count, _CHUNK))):
                raise tarfile.ReadError("it is cut off")
            file.write(data)
            count -= len(data)
    if member.sparse:
        file.truncate(member.size)


def _describe(fd: int, member: tarfile.TarInfo) -> None:
    """
    Give the file *fd* owner, attributes, mode and times, in the order in which none undoes another.
    """
    path = f"/proc/self/fd/{fd}"
    os.chown(path, member.uid, member.gid)
    wanted = {
        keyword.removeprefix(_XATTR).replace("%3D", "=").replace("%25", "%"): value
        for keyword, value in member.pax_headers.items()
        if keyword.startswith(_XATTR)
    }
    for name in os.listxattr(path):
        if name.startswith(_INHERITED) and name not in wanted:
            os.removexattr(path, name)
    for name, value in wanted.items():
        os.setxattr(path, name, value.encode("utf-8", "surrogateescape"))
    if not member.issym():
        os.chmod(path, member.mode & 0o7777)
    exact = member.pax_headers.get("mtime")
    moment = _nanoseconds(exact) if exact else int(member.mtime) * 1_000_000_000
    os.utime(path, ns=(moment, moment))


def _decimal(nanoseconds: int) -> str:
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{'-' * (nanoseconds < 0)}{seconds}.{rest:09}"


def _nanoseconds(decimal: str) -> int:
    seconds, _, rest = decimal.lstrip("-").partition(".")
    value = int(seconds or 0) * 1_000_000_000 + int(rest[:9].ljust(9, "0"))
    return -value if decimal.startswith("-") else value
