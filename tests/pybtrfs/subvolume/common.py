"""
What the tests of subvolumes share.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import ioctl, subvolume, syscall

NOBODY = 65534
FORMS = ["str", "bytes", "PathLike", "fd", "file"]


@contextmanager
def form(path: Path, kind: str) -> Iterator[Any]:
    """
    *path* as a target of the kind.
    """
    if kind in ("fd", "file"):
        with subvolume.Subvolume(path) as opened:
            yield opened.fileno() if kind == "fd" else opened
    else:
        yield {"str": str, "bytes": os.fsencode, "PathLike": Path}[kind](path)


@contextmanager
def open_directory(path: Path | str | bytes) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def below(path: Path) -> list[str]:
    return [entry.path for entry in subvolume.iterate(path, top=subvolume.get_id(path))]


def children(path: Path) -> list[str]:
    return [subvolume.get_child_path(path, child) for child in subvolume.children(path)]


def make(base: Path, *names: str) -> None:
    """
    Create subvolumes below *base*, and the directories in between.
    """
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        subvolume.create(base / name)


def without(monkeypatch: pytest.MonkeyPatch, *names: str, refusal: int = errno.ENOTTY) -> None:
    """
    Let the kernel not have the ioctls, or refuse them with another errno.
    """
    call = ioctl._ioctl

    def lacking(fd: int, name: str, *argument: Any) -> int:
        return syscall.check(-refusal, name) if name in names else call(fd, name, *argument)

    monkeypatch.setattr(ioctl, "_ioctl", lacking)


def calls_of(thread: threading.Thread) -> str:
    """
    The system call that a thread of this process is in, as numbers.
    """
    try:
        return Path(f"/proc/self/task/{thread.native_id}/syscall").read_text()
    except OSError:
        return ""  # it has ended
