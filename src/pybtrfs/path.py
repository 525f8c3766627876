"""
The files that pybtrfs takes: a path, an open file, or a name in an open directory.
"""

import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn, Protocol, Self, TypeVar

from pybtrfs import syscall
from pybtrfs.errors import explained
from pybtrfs.ioctl import VOL_NAME_MAX

# Hot path: os.fsencode() and os.fsdecode() encode the same, but through two Python functions each.
ENCODING, ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

# O_NONBLOCK, because opening a FIFO or a device could block.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

_PIECE = 15  # names of at most 255 bytes: fewer bytes than PATH_MAX

_Result = TypeVar("_Result")

_is_name = re.compile(rb"(?!\.\.?\Z)[^/\0]{1,%d}" % VOL_NAME_MAX).fullmatch


class HasFileno(Protocol):
    """
    An open file, such as the result of open().
    """

    def fileno(self) -> int: ...


Target = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int | HasFileno
"""An existing file: a path, a file descriptor, or an object with a file descriptor."""

Destination = str | bytes | os.PathLike[str] | os.PathLike[bytes] | tuple[int | HasFileno, str | bytes]
"""A name to create or remove: a path, or an open directory and a name in it."""


class opened:  # noqa: N801 - used like a function
    """
    A context manager that yields a file descriptor of *target*.

    An open file yields its own descriptor. A path is opened, and closed at the end of the ``with``. An OSError inside
    the ``with`` gets *target* as its filename.

    Args:
        flags: ``O_*`` flags to open a path with; ``O_PATH`` needs no permission for the file itself.
    """

    __slots__ = ("_fd", "_flags", "_owned", "_target")

    def __init__(self, target: Target, flags: int = _READ) -> None:
        self._target = target
        self._flags = flags

    def __enter__(self) -> int:
        self._fd, self._owned = _open(self._target, self._flags)
        return self._fd

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if isinstance(error, OSError):
                _explain(error, self._fd, self._target)
        finally:
            if self._owned:
                os.close(self._fd)


def using(target: Target, call: Callable[..., _Result], *arguments: object) -> _Result:
    """
    Call *call* with a file descriptor of *target* and *arguments*, as in a ``with`` of `opened`.

    This is a function, because a call takes less time than a ``with``.
    """
    fd, owned = _open(target, _READ)
    try:
        return call(fd, *arguments)
    except OSError as error:
        _explain(error, fd, target)
        raise
    finally:
        if owned:
            os.close(fd)


def _open(target: Target, flags: int) -> tuple[int, bool]:
    """
    Return a file descriptor of *target*, and whether it is to be closed.
    """
    # Hot path: test for a number first, because isinstance() with os.PathLike takes as long as an ioctl.
    if isinstance(target, int) and target >= 0:
        return target, False
    if isinstance(target, (str, bytes, os.PathLike)):
        return os.open(target, flags | os.O_CLOEXEC), True
    return descriptor(target), False


class owned:  # noqa: N801 - used like a function
    """
    A context manager that yields the file descriptor *fd*, and closes it at the end.

    An OSError inside the ``with`` that names no file gets *filename*.
    """

    __slots__ = ("_fd", "_filename")

    def __init__(self, fd: int, filename: object = None) -> None:
        self._fd = fd
        self._filename = filename

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        os.close(self._fd)
        if self._filename is not None and isinstance(error, OSError) and error.filename is None:
            error.filename = self._filename


class Owner:
    """
    The owner of the file descriptor ``_fd``: it is closed once, at the end of the ``with`` at the latest.

    A forgotten owner closes it with a ResourceWarning. An owner cannot be copied, because the copy would close it, too.
    """

    _fd: int = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __del__(self) -> None:
        if self._fd >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self._close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {self!r}, because it owns its file descriptor")

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def open_directory(dir_fd: int, name: str | bytes) -> int:
    """
    Open the directory *name* in the directory *dir_fd* and return its file descriptor, close-on-exec.

    Raises:
        NotADirectoryError: *name* is not a directory, or is a symbolic link.
    """
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


def open_beneath(
    dir_fd: int, path: str | bytes, flags: int = os.O_RDONLY | os.O_DIRECTORY, *, cross_mounts: bool = False
) -> int:
    """
    Open *path* below the directory *dir_fd* and return its file descriptor, close-on-exec.

    No component of *path* may lead out of *dir_fd*, because other users may have created the names below it.

    Issues openat2(2) (Linux 5.6).

    Args:
        path: A relative path; empty for *dir_fd* itself.
        flags: ``O_*`` flags.
        cross_mounts: Follow *path* into other mounts.

    Raises:
        OSError: ELOOP: a component is a symbolic link. EXDEV: *path* leads out of *dir_fd* or, without *cross_mounts*,
            into another mount.
    """
    resolve = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_MAGICLINKS
    return syscall.openat2(dir_fd, path or ".", flags, resolve if cross_mounts else resolve | syscall.RESOLVE_NO_XDEV)


def open_in_pieces(fd: int, path: str | bytes) -> int:
    """
    Open the directory *path* below *fd*, as `open_beneath` does, also if the path exceeds PATH_MAX.
    """
    names = os.fsencode(path).rstrip(b"/").split(b"/")
    opened_fd = open_beneath(fd, b"/".join(names[:_PIECE]))
    for start in range(_PIECE, len(names), _PIECE):
        with owned(opened_fd):
            opened_fd = open_beneath(opened_fd, b"/".join(names[start : start + _PIECE]))
    return opened_fd


def at(destination: Destination, call: Callable[..., _Result], *arguments: object) -> _Result:
    """
    Call *call* with the directory of *destination* as a file descriptor, the name in it and *arguments*.

    An OSError gets the path, or the name, as its filename. This is a function, because a call takes less time than a
    ``with``.

    Raises:
        ValueError: The name is empty, ``.`` or ``..``, longer than 255 bytes, or contains a slash or a NUL byte.
    """
    if owned := not isinstance(destination, tuple):
        filename: object = destination
        head, name = os.path.split(os.fsencode(destination).rstrip(b"/"))
    else:
        directory, filename = destination
        name = filename.encode(ENCODING, ERRORS) if isinstance(filename, str) else os.fsencode(filename)
    if not _is_name(name):
        raise ValueError(
            f"{filename!r} does not end in a valid name: 1 to {VOL_NAME_MAX} bytes without slash or NUL byte, "
            "and not '.' or '..'"
        )
    fd = _open_head(head, filename) if owned else descriptor(directory)
    try:
        return call(fd, name, *arguments)
    except OSError as error:
        _explain(error, fd, filename)
        raise
    finally:
        if owned:
            os.close(fd)


def _open_head(head: bytes, filename: object) -> int:
    try:
        return os.open(head or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        error.filename = filename
        raise


def _explain(error: OSError, fd: int, filename: object) -> None:
    explanation = explained(error, fd, filename)
    if explanation is not error:
        raise explanation from error


def descriptor(target: int | HasFileno) -> int:
    """
    Return the file descriptor of an open file.
    """
    if isinstance(target, int):
        fd = target
    elif hasattr(target, "fileno"):
        fd = target.fileno()
    else:
        raise TypeError(f"{target!r} is neither a path nor an open file")
    if fd < 0:
        raise ValueError(f"{fd!r} is not a file descriptor")
    return fd
