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
from pybtrfs.path import open_beneath, owned
from snapshotter.archive import limits
from snapshotter.archive.format import CHUNK_SIZE, DEVICES, attributes, parse_time
from snapshotter.errors import InvalidArgumentError, quoted

_BUFFER_SIZE = 1 << 16  # of tarfile, which moves the whole buffer for each header; in bytes
_MAX_HEADER_SIZE = 16 << 20  # of the names and extended attributes of one member, in bytes
_MAGIC_SIZE = 6

_INHERITED = "system.posix_acl_"  # a new file inherits these attributes from its directory
_HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
_BLOCKED = {errno.ELOOP, errno.ENOTDIR, errno.EXDEV}
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError)


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            # Without this, tarfile takes a tar that ends between two members for a complete one.
            raise tarfile.ReadError("unexpected end of data")
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and not 0 <= member.size <= _MAX_HEADER_SIZE:
            raise tarfile.ReadError(f"a header of {member.size} bytes exceeds {_MAX_HEADER_SIZE}")
        return member


def unpack(stream: IO[bytes], fd: int) -> None:
    """
    Make the members of the tar in *stream* below the directory *fd*, and nowhere else.

    Raises:
        InvalidArgumentError: The stream is not a tar, is damaged or ends early, or a member leads out of the root or
            through a symbolic link.
        FailedPreconditionError: A member exceeds a limit of btrfs.
        OSError: As the kernel says.
    """
    directories: dict[str, tarfile.TarInfo] = {}
    try:
        stream = _decompressed(stream)
        with tarfile.open(
            fileobj=stream,
            mode="r|",
            bufsize=_BUFFER_SIZE,
            tarinfo=_Member,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every member; typeshed lacks the attribute
                parts = _parts(member.name)
                directories.pop("/".join(parts), None)
                if member.isdir():
                    directories["/".join(parts)] = member
                try:
                    _make(tar, member, parts, fd)
                except OSError as error:
                    if exceeded := limits.exceeded(error, member, fd):
                        raise exceeded from error
                    raise
        # Read on after the tar's end, so that the writer of a pipe does not fail and a final checksum is verified.
        while stream.read(CHUNK_SIZE):
            pass
        # Last, because new entries change the times of their directory and inherit its access control lists.
        for path in sorted(directories, reverse=True):
            member = directories[path]
            try:
                with owned(open_beneath(fd, path)) as directory_fd:
                    _apply_metadata(directory_fd, member)
            except OSError as error:
                if exceeded := limits.exceeded(error, member, fd):
                    raise exceeded from error
                raise
    except _DAMAGED as error:
        raise _not_a_tar(error) from error
    except OSError as error:
        if error.errno is None:  # raised by a decompressor
            raise _not_a_tar(error) from error
        raise


def _not_a_tar(error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(f"the stream is not a tar, or is damaged: {error}")


class _Joined(io.RawIOBase):
    """
    A stream of which the first bytes have been read already.
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
    # Not left to tarfile, because its decompression of streams verifies no checksum.
    first = stream.read(_MAGIC_SIZE)
    whole = io.BufferedReader(_Joined(first, stream), CHUNK_SIZE)
    if first.startswith(b"\x1f\x8b"):
        import gzip

        return cast("IO[bytes]", gzip.GzipFile(fileobj=whole))
    if first.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(whole)
    if first.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(whole)
    return whole


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArgumentError(f"member {quoted(name)} leads out of the root")
    return parts


def _make(tar: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str], root_fd: int) -> None:
    if not parts:
        if not member.isdir():
            raise InvalidArgumentError(f"member {quoted(member.name)} is the root but not a directory")
        return
    *above, name = parts
    with owned(_open_parent(root_fd, above, member)) as dir_fd:
        if member.isdir():
            _make_directory(name, dir_fd)
            return
        if member.islnk():
            _make_link(member, name, dir_fd, root_fd)
            return
        _delete(name, dir_fd)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=dir_fd)
        elif member.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(name, flags, 0o600, dir_fd=dir_fd), "wb", buffering=0) as file:
                _write_content(tar, member, file)
        elif member.type in DEVICES:
            device = os.makedev(member.devmajor, member.devminor)
            os.mknod(name, DEVICES[member.type] | 0o600, device, dir_fd=dir_fd)
        else:
            raise InvalidArgumentError(f"member {quoted(member.name)} has the unknown type {member.type!r}")
        with owned(os.open(name, syscall.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)) as fd:
            _apply_metadata(fd, member)


def _open_parent(root_fd: int, parts: list[str], member: tarfile.TarInfo) -> int:
    """
    Open the directory at *parts*, making missing directories, and return its file descriptor.
    """
    path = "/".join(parts)
    try:
        with contextlib.suppress(FileNotFoundError):
            return open_beneath(root_fd, path)
        for count, name in enumerate(parts):
            with owned(open_beneath(root_fd, "/".join(parts[:count]))) as fd, contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=fd)
        return open_beneath(root_fd, path)
    except OSError as error:
        if error.errno in _BLOCKED:
            raise InvalidArgumentError(
                f"member {quoted(member.name)} leads through a symbolic link or a file"
            ) from error
        raise


def _make_directory(name: str, dir_fd: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=dir_fd)
            os.mkdir(name, 0o700, dir_fd=dir_fd)


def _make_link(member: tarfile.TarInfo, name: str, dir_fd: int, root_fd: int) -> None:
    *above, source = _parts(member.linkname) or [""]
    with owned(_open_parent(root_fd, above, member)) as source_fd:
        temporary = f".{os.urandom(6).hex()}"  # the file to replace may be the source
        try:
            os.link(source, temporary, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise InvalidArgumentError(
                f"member {quoted(member.name)} is a hard link to {quoted(member.linkname)}, which is not a file"
            ) from error
    _delete(name, dir_fd)
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def _delete(name: str, dir_fd: int) -> None:
    """
    Delete the file or directory *name*, if it exists, to make room for a member.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=dir_fd)


def _write_content(tar: tarfile.TarFile, member: tarfile.TarInfo, file: io.FileIO) -> None:
    source = cast("Any", tar.extractfile(member)).raw  # can seek forward over holes, even in a pipe
    segments: list[tuple[int, int]] = member.sparse or [(0, member.size)]  # type: ignore[assignment]  # typeshed: an int
    for start, count in segments:
        source.seek(start)
        file.seek(start)
        while count > 0:
            if not (data := source.read(min(count, CHUNK_SIZE))):
                raise tarfile.ReadError("unexpected end of data")
            file.write(data)
            count -= len(data)
    if member.sparse:
        file.truncate(member.size)


def _apply_metadata(fd: int, member: tarfile.TarInfo) -> None:
    """
    Set owner, extended attributes, mode and times of the file *fd*, in an order in which no step undoes another.
    """
    path = f"/proc/self/fd/{fd}"
    os.chown(path, member.uid, member.gid)
    wanted = attributes(member)
    for name in os.listxattr(path):
        if name.startswith(_INHERITED) and name not in wanted:
            os.removexattr(path, name)
    for name, value in wanted.items():
        os.setxattr(path, name, value)
    if not member.issym():
        os.chmod(path, member.mode & 0o7777)
    exact = member.pax_headers.get("mtime")
    mtime = parse_time(exact) if exact else int(member.mtime) * 1_000_000_000
    os.utime(path, ns=(mtime, mtime))
