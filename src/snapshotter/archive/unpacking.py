"""
Read a tar stream into a directory tree.
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
from typing import IO, Any, Self, cast

from pybtrfs import syscall
from snapshotter.archive.format import _CHUNK, _DEVICES, _XATTR, _open_beneath, _opened
from snapshotter.errors import (
    InvalidArgumentError,
    quoted,
)

_STREAM_SIZE = 1 << 16  # in bytes; tarfile moves all of it for each header
_MAX_HEADER_SIZE = 16 << 20  # of the names and attributes of one member, in bytes; each attribute has 64 KiB at most

_MAGIC_SIZE = 6

_INHERITED = "system.posix_acl_"  # a new file has them of its directory
_HEADERS = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME}

_BEHIND = {errno.ELOOP, errno.ENOTDIR, errno.EXDEV}
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError)


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
                _apply_metadata(made_fd, directories[path])
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
            _apply_metadata(fd, member)


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


def _apply_metadata(fd: int, member: tarfile.TarInfo) -> None:
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


def _nanoseconds(decimal: str) -> int:
    seconds, _, rest = decimal.lstrip("-").partition(".")
    value = int(seconds or 0) * 1_000_000_000 + int(rest[:9].ljust(9, "0"))
    return -value if decimal.startswith("-") else value
