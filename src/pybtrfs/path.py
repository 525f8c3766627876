"""
What functions of pybtrfs take for a file: a path, an open file, or a name in an open directory.
"""

import os
from typing import Protocol

from pybtrfs.errors import explained
from pybtrfs.ioctl import VOL_NAME_MAX


class HasFileno(Protocol):
    """
    An open file, such as what open() returns.
    """

    def fileno(self) -> int: ...


Target = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int | HasFileno
"""Something that exists: a path, a file descriptor, or an object with one."""

Destination = str | bytes | os.PathLike[str] | os.PathLike[bytes] | tuple[int | HasFileno, str | bytes]
"""A name to make or remove: a path, or an open directory and a name in it."""


class _Held:
    """
    A file descriptor for the length of a ``with``, in which errors of the kernel get the name that the caller used.
    """

    _fd: int
    _filename: object
    _owned = False

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if isinstance(error, OSError):
                explanation = explained(error, self._fd, self._filename)
                if explanation is not error:
                    raise explanation from error
        finally:
            if self._owned:
                os.close(self._fd)


class opened(_Held):  # noqa: N801 - used like a function
    """
    Give a file descriptor of *target*: its own, or one that is closed at the end.

    An error of the kernel inside is raised with *target* as its filename.
    """

    def __init__(self, target: Target) -> None:
        self._filename: Target = target

    def __enter__(self) -> int:
        target = self._filename
        # A number first: asking whether it is a path takes as long as an ioctl.
        if isinstance(target, int) or not isinstance(target, (str, bytes, os.PathLike)):
            self._fd = descriptor(target)
        else:
            # Non-blocking, for a path may lead to a FIFO or a device.
            self._fd = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            self._owned = True
        return self._fd


class placed(_Held):  # noqa: N801 - used like a function
    """
    Give a file descriptor of the directory that has or gets *destination*, and the name in it.

    An error of the kernel inside is raised with the path, or the name, as its filename.

    Raises:
        ValueError: The name is empty, ``.`` or ``..``, longer than 255 bytes, or contains a slash or a null byte.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def __enter__(self) -> tuple[int, bytes]:
        if isinstance(self._destination, tuple):
            directory, self._filename = self._destination
            name = _checked(self._filename, os.fsencode(self._filename))
            self._fd = descriptor(directory)
        else:
            self._filename = self._destination
            head, tail = os.path.split(os.fsencode(self._destination).rstrip(b"/"))
            name = _checked(self._filename, tail)
            self._fd = os.open(head or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._owned = True
        return self._fd, name


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


def _checked(given: object, name: bytes) -> bytes:
    if name in (b"", b".", b".."):
        raise ValueError(f"{given!r} has no name of its own")
    if len(name) > VOL_NAME_MAX:
        raise ValueError(f"the name in {given!r} is longer than {VOL_NAME_MAX} bytes")
    if b"/" in name or b"\0" in name:
        raise ValueError(f"{given!r} contains a slash or a null byte in its name")
    return name
