"""
The sender of streams.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from pybtrfs import filesystem, ioctl, subvolume, sysfs
from pybtrfs.errors import explained, not_subvolume
from pybtrfs.path import Target, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CHUNK = 1 << 16  # bytes, the size of a pipe
_COMPRESSED_VERSION = 2  # the first with compressed data


class Writable(Protocol):
    """
    A binary file that is open for writing.
    """

    def write(self, data: memoryview, /) -> int | None: ...


def get_stream_version() -> int:
    """
    Return the newest version of the stream that this kernel can send.

    Reads ``/sys/fs/btrfs/features/send_stream_version`` (Linux 6.0); an older kernel sends version 1.
    """
    return int(sysfs.read("/sys/fs/btrfs/features/send_stream_version") or 1)


def send(
    target: Target,
    output: int | Writable,
    *,
    parent: Target | None = None,
    clone_sources: Iterable[Target] = (),
    version: int | None = None,
    compressed_data: bool = False,
    no_file_data: bool = False,
    progress: Callable[[int], object] | None = None,
) -> int:
    """
    Write the read-only subvolume *target* to *output* as a stream, and return the size of the stream in bytes.

    If writing fails, *progress* raises or the caller is interrupted, the kernel stops at its next write, and *output*
    keeps an incomplete stream. No thread or descriptor is left.

    Issues ``BTRFS_IOC_SEND`` (Linux 3.6) in a thread, because only a closed pipe stops it early. Needs
    ``CAP_SYS_ADMIN``.

    Args:
        target: The root of a read-only subvolume.
        output: A file descriptor, or a binary file. Its ``write`` is called in the thread of the caller.
        parent: A read-only subvolume of the same filesystem that the receiver has; send only the changes to it. The
            stream may also clone from it.
        clone_sources: Read-only subvolumes of the same filesystem that the receiver has; the stream may clone from
            them.
        version: The version of the stream, at most `get_stream_version`. By default 1, or 2 with *compressed_data*.
        compressed_data: Send compressed data as it is on disk (version 2).
        no_file_data: Send the places of changed data without the data (Linux 3.10). No command receives such a stream.
        progress: Called with the number of bytes written so far, after each write.

    Raises:
        NotSubvolumeError: *target*, *parent* or a clone source is not the root of a subvolume.
        PermissionError: The caller has no ``CAP_SYS_ADMIN``, or one of the subvolumes is not read-only.
        FileNotFoundError: The subvolume *parent* or a clone source was deleted.
        OSError: EXDEV: *parent* or a clone source is on another filesystem. EAGAIN: a deduplication is changing one of
            the subvolumes.
        BlockingIOError: *output* does not block and is full.
        ValueError: This kernel cannot send *version*, or it has no *compressed_data*.
    """
    version, flags = _version(version, compressed_data), ioctl.SEND_FLAG_VERSION
    flags |= ioctl.SEND_FLAG_COMPRESSED if compressed_data else 0
    flags |= ioctl.SEND_FLAG_NO_FILE_DATA if no_file_data else 0
    if version == 1:
        flags &= ~ioctl.SEND_FLAG_VERSION  # Linux before 6.0 refuses it
    sources = [*([] if parent is None else [parent]), *clone_sources]
    with ExitStack() as stack:
        # The descriptors keep the ids from being reused by other subvolumes.
        fds = [stack.enter_context(opened(each)) for each in (target, *sources)]
        ids = [_id(fd, fds[0], each) for fd, each in zip(fds, (target, *sources), strict=True)]
        parent_root = 0 if parent is None else ids[1]
        try:
            return _send(fds[0], output, progress, (ids[1:], parent_root, flags, version if version > 1 else 0))
        except _SendError as refusal:
            error = refusal.error
        _add_cure(error, list(zip(fds, (target, *sources), strict=True)))
        raise explained(error, fds[0], target)


class _SendError(Exception):
    """
    The refusal of the kernel, apart from the errors of writing to the output.
    """

    def __init__(self, error: OSError) -> None:
        self.error = error


def _version(version: int | None, compressed_data: bool) -> int:  # noqa: FBT001 - private
    if version is None:
        version = _COMPRESSED_VERSION if compressed_data else 1
    newest = get_stream_version()
    if not 1 <= version <= newest:
        raise ValueError(f"this kernel cannot send version {version!r} of the stream: use 1 to {newest}")
    if compressed_data and version < _COMPRESSED_VERSION:
        raise ValueError(f"version {version!r} of the stream has no compressed data: use {_COMPRESSED_VERSION}")
    return version


def _id(fd: int, target_fd: int, target: Target) -> int:
    """
    Return the id of the subvolume *fd*, which must be on the filesystem of *target_fd*.
    """
    if not subvolume.is_subvolume(fd):
        raise not_subvolume(target)
    # An id of another filesystem would name an unrelated subvolume.
    if fd != target_fd and filesystem.get_info(fd).fsid != filesystem.get_info(target_fd).fsid:
        raise OSError(errno.EXDEV, "not on the filesystem of the subvolume to send", target)
    return subvolume.get_id(fd)


def _send(
    fd: int,
    output: int | Writable,
    progress: Callable[[int], object] | None,
    arguments: tuple[list[int], int, int, int],
) -> int:
    read_fd, write_fd = os.pipe()
    refusals: list[OSError] = []

    def run() -> None:
        # An application may have restored the default of SIGPIPE, which would end the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
        try:
            ioctl.send(fd, write_fd, *arguments)
        except OSError as error:
            refusals.append(error)
        finally:
            os.close(write_fd)

    thread = threading.Thread(target=run, name="btrfs send")
    try:
        try:
            thread.start()
        except RuntimeError:
            os.close(write_fd)
            raise
        sent = 0
        while data := os.read(read_fd, _CHUNK):
            _write(output, memoryview(data))
            sent += len(data)
            if progress:
                progress(sent)
    finally:
        os.close(read_fd)
        if thread.ident is not None:
            thread.join()
    if refusals:
        raise _SendError(refusals[0])
    return sent


def _write(output: int | Writable, data: memoryview) -> None:
    while data:
        if isinstance(output, int):
            written: int | None = os.write(output, data)
        else:
            written = output.write(data)
            if written is None and isinstance(output, io.RawIOBase):
                raise BlockingIOError(errno.EAGAIN, "the output does not block and is full")
        data = data[len(data) if written is None else written :]


def _add_cure(error: OSError, subvolumes: list[tuple[int, Target]]) -> None:
    """
    Add the state of the subvolume that made the kernel refuse, and its cure, to *error*.
    """
    for fd, target in subvolumes:
        if error.errno == errno.EPERM and not subvolume.get_read_only(fd):
            error.filename = target
            error.add_note(f"{target!r} is not read-only: send a read-only snapshot of it")
            return
        if error.errno == errno.ENOENT and _is_deleted(fd):
            error.filename = target
            error.add_note(f"the subvolume {target!r} was deleted: choose another, or send without it")
            return


def _is_deleted(fd: int) -> bool:
    try:
        subvolume.get_info(fd)
    except FileNotFoundError:
        return True
    return False
