"""
What functions of pybtrfs take for a file: a path, an open file, or a name in an open directory.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def opened(target: Target) -> Iterator[int]:
    """
    Yield a file descriptor of *target*: its own, or one that is closed at the end.

    An error of the kernel inside is raised with *target* as its filename.
    """
    if not isinstance(target, str | bytes | os.PathLike):
        fd = descriptor(target)
        with _explaining(fd, target):
            yield fd
        return
    # Non-blocking, for a path may lead to a FIFO or a device.
    fd = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        with _explaining(fd, target):
            yield fd
    finally:
        os.close(fd)


@contextmanager
def placed(destination: Destination) -> Iterator[tuple[int, bytes]]:
    """
    Yield a file descriptor of the directory that has or gets *destination*, and the name in it.

    An error of the kernel inside is raised with the path, or the name, as its filename.

    Raises:
        ValueError: The name is empty, longer than 255 bytes, or contains a slash or a null byte.
    """
    if isinstance(destination, tuple):
        directory, name = destination
        fd = descriptor(directory)
        encoded = _checked(name, os.fsencode(name))
        with _explaining(fd, name):
            yield fd, encoded
    else:
        path = os.fsencode(destination)
        head, tail = os.path.split(path.rstrip(b"/"))
        encoded = _checked(destination, tail)
        fd = os.open(head or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _explaining(fd, destination):
                yield fd, encoded
        finally:
            os.close(fd)


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
    if not name:
        raise ValueError(f"{given!r} has no name")
    if len(name) > VOL_NAME_MAX:
        raise ValueError(f"the name in {given!r} is longer than {VOL_NAME_MAX} bytes")
    if b"/" in name or b"\0" in name:
        raise ValueError(f"{given!r} contains a slash or a null byte in its name")
    return name


@contextmanager
def _explaining(fd: int, filename: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explanation = explained(error, fd, filename)
        if explanation is error:
            raise
        raise explanation from error
