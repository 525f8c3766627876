"""
Helpers for the tests of subvolumes.
"""

import ctypes
import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import image, kernel, subvolume, syscall
from pybtrfs._ffi import check
from tests.conftest import NOBODY, become_nobody, in_child

OTHERS = 100_000
CLONE_NEWUSER, PR_SET_DUMPABLE = 0x10000000, 4
FORMS = ["str", "bytes", "PathLike", "fd", "file"]


@contextmanager
def form(path: Path, kind: str) -> Iterator[Any]:
    """
    Yield *path* as a target of the kind.
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


def nest(path: Path, depth: int) -> None:
    """
    Create the subvolume *path* with subvolumes in each other below it, *depth* in all.
    """
    subvolume.create(path)
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth - 1):
        subvolume.create((fd, "n"))
        below = os.open("n", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def without(monkeypatch: pytest.MonkeyPatch, *names: str, refusal: int = errno.ENOTTY) -> None:
    """
    Make the kernel refuse the ioctls, with the errno of a kernel that lacks them or with *refusal*.
    """

    def lacking(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(fd: int, name: str, *argument: Any) -> Any:
            return check(-refusal, name) if name in names else call(fd, name, *argument)

        return refuse

    for function in ("ioctl", "vol_ioctl", "value_ioctl", "info_ioctl"):
        monkeypatch.setattr(kernel.current, function, lacking(getattr(kernel.current, function)))


def contained(function: Callable[..., Any], *args: Any) -> Any:
    """
    Call a function as root of a user namespace that maps root to nobody.
    """

    def call() -> Any:
        become_nobody()
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # without this, /proc/self belongs to root
        assert libc.unshare(CLONE_NEWUSER) == 0
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {NOBODY} 1")
        Path("/proc/self/gid_map").write_text(f"0 {NOBODY} 1")
        assert os.geteuid() == 0
        return function(*args)

    return in_child(call)


def contained_with_users(function: Callable[..., Any], *args: Any) -> Any:
    """
    Call a function as root of a user namespace that maps root to nobody, and other users to ids from `OTHERS` on, as
    rootless containers do.
    """

    def call() -> Any:
        directory, (reader, writer) = Path(f"/proc/{os.getpid()}"), os.pipe()
        if os.fork() == 0:  # only a privileged process outside of the namespace can map several users
            os.read(reader, 1)
            for name in ("uid_map", "gid_map"):
                (directory / name).write_text(f"0 {NOBODY} 1\n1 {OTHERS} 1000")
            os._exit(0)
        assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
        os.write(writer, b"x")
        os.wait()
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        return function(*args)

    return in_child(call)


def as_user(function: Callable[..., Any], *args: Any) -> Any:
    """
    Call a function as an ordinary user, nobody.
    """

    def call() -> Any:
        become_nobody()
        return function(*args)

    return in_child(call)


UNPRIVILEGED = {"user": as_user, "root of a namespace": contained}


@contextmanager
def mounted(options: str) -> Iterator[Path]:
    """
    Mount a new btrfs with no other options, where everybody may create files.
    """
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # for ordinary users
        path = Path(directory, "image")
        image.create(path, 256 << 20, sparse=True)
        top = Path(directory, "top")
        top.mkdir()
        with image.attach(path) as device:
            syscall.mount(device.path, top, "btrfs", data=options)
            try:
                top.chmod(0o777)
                yield top
            finally:
                syscall.umount2(top)


@contextmanager
def needing(feature: str, *, refusal: int) -> Iterator[None]:
    """
    Skip the test if the kernel lacks the feature.
    """
    try:
        yield
    except OSError as error:
        if error.errno != refusal:
            raise
        pytest.skip(f"the kernel has no {feature}")


def calls_of(thread: threading.Thread) -> str:
    """
    Return the current system call of a thread, as /proc shows it, or an empty text if the thread has ended.
    """
    try:
        return Path(f"/proc/self/task/{thread.native_id}/syscall").read_text()
    except OSError:
        return ""
