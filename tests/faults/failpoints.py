"""
Stops before and after each call by which a store changes the disk, by SIGKILL or by an error.
"""

import contextlib
import errno
import functools
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from pybtrfs import ioctl, kernel, syscall

CALLS: list[tuple[Any, str]] = [
    *((kernel.current, name) for name in ("ioctl", "vol_ioctl")),
    *((syscall, name) for name in ("make_directory", "syncfs")),
    *((os, name) for name in ("chmod", "fchmod", "fsync", "mkdir", "pwrite", "rename")),
    *((os, name) for name in ("removexattr", "rmdir", "setxattr", "unlink")),
]
# Calls that need space, and keep failing on a full disk. Reading and destroying need none.
FILLING = {
    *("BTRFS_IOC_SUBVOL_CREATE_V2", "BTRFS_IOC_SNAP_CREATE_V2", "BTRFS_IOC_SUBVOL_SETFLAGS", "BTRFS_IOC_SYNC"),
    *("chmod", "fchmod", "fsync", "make_directory", "mkdir", "pwrite", "removexattr", "rename", "setxattr"),
    "syncfs",
}


@dataclass
class Points:
    """
    The points passed so far, two for each call.

    Attributes:
        at: The number of the point at which *act* is called.
        sticky: Whether *act* is also called at every later point that needs space.
        filling: Whether only points that need space count.
        hit: The name of the point at which *act* was first called.
    """

    at: int
    act: Callable[[], None]
    sticky: bool = False
    filling: bool = False
    passed: int = 0
    hit: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def reached(self, point: str) -> None:
        needs_space = point.split()[1] in FILLING
        if self.filling and not needs_space:
            return
        with self._lock:
            self.passed += 1
            later = self.sticky and self.passed > self.at and needs_space
            now = self.passed == self.at or later
            if now and not self.hit:
                self.hit = f"point {self.at}, {point}"
        if now:
            self.act()

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            called = str(args[1]) if name.endswith("ioctl") else name
            self.reached(f"before {called}")
            result = call(*args, **kwargs)
            try:
                self.reached(f"after {called}")
            except OSError:
                if name == "make_directory":
                    os.close(result)
                raise
            return result

        return wrapped


def snap_create_v2_in(
    source_dirfd: int, source: bytes, dirfd: int, directory: bytes, mode: int, xattr: bytes, value: bytes, name: bytes
) -> None:
    """
    Make the calls that ``ioctl.snap_create_v2_in`` makes in C, in Python.
    """
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=source_dirfd)
    try:
        fd = syscall.make_directory(dirfd, directory, mode, os.fsdecode(xattr), value)
        try:
            ioctl.snap_create_v2(source_fd, fd, name)
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(directory, dir_fd=dirfd)
            raise
        finally:
            os.close(fd)
    finally:
        os.close(source_fd)


@contextlib.contextmanager
def stopped(points: Points) -> Iterator[Points]:
    """
    Act at *points* in all threads while the ``with`` lasts.
    """
    with contextlib.ExitStack() as stack:
        for owner, name in CALLS:
            stack.enter_context(mock.patch.object(owner, name, points.around(name, getattr(owner, name))))
        stack.enter_context(mock.patch.object(ioctl, "snap_create_v2_in", snap_create_v2_in))
        yield points


def kill() -> None:
    """
    End this process as kill -9 does.
    """
    os.kill(os.getpid(), signal.SIGKILL)


def fail(name: str) -> Callable[[], None]:
    """
    Return a function that raises the OSError of the errno *name*.
    """
    number = getattr(errno, name)

    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def in_child(at: int, call: Callable[[Callable[[], object]], None]) -> tuple[bool, bool]:
    """
    Make *call* in a child process, and kill it at point *at*.

    Return whether the child reached the point, and whether *call* had acknowledged before.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with stopped(Points(at, kill)):
                call(lambda: os.write(writer, b"."))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        acknowledged = bool(pipe.read())
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True, acknowledged
    assert os.WEXITSTATUS(status) == 0
    return False, acknowledged
