"""
Mounts in the mount namespace of another process or thread, or in one without either.
"""

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pybtrfs import syscall

_CLONE_NEWNS = 0x20000


@contextlib.contextmanager
def other_namespace(script: str, *arguments: Any) -> Iterator[int]:
    """
    Run *script* in a process with its own mount namespace, which ends with the ``with``, and yield its pid.
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f"{script}; echo ready; read end", "sh"]
    process = subprocess.Popen([*command, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.communicate(b"\n")
    assert process.returncode == 0


@contextlib.contextmanager
def held_namespace(script: str, *arguments: Any) -> Iterator[int]:
    """
    Run *script* in a mount namespace, end its process, and yield the descriptor that alone holds the namespace.
    """
    with other_namespace(script, *arguments) as pid:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def pinned_namespace(point: Path, script: str, *arguments: Any) -> Iterator[None]:
    """
    Run *script* in a mount namespace, end its process, and keep the namespace by a bind mount at the new file *point*.
    """
    point.touch()
    # The kernel binds no mount namespace with a lower id than that of the caller. Linux 6.18 counts the ids by CPU.
    cpus = os.sched_getaffinity(0)
    for cpu in cpus:
        os.sched_setaffinity(0, {cpu})
        try:
            with other_namespace(script, *arguments) as pid, contextlib.suppress(OSError):
                syscall.mount(f"/proc/{pid}/ns/mnt", point, "", syscall.MS_BIND)
                break
        finally:
            os.sched_setaffinity(0, cpus)
    else:
        raise AssertionError("the kernel binds no mount namespace")
    try:
        yield
    finally:
        syscall.umount2(point)


@contextlib.contextmanager
def thread_namespace(work: Callable[[], None]) -> Iterator[int]:
    """
    Run *work* in a thread of this process with its own mount namespace, and yield the id of the thread.
    """
    ready, end, failures = threading.Event(), threading.Event(), []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), "unshare")
            syscall.mount("none", "/", "", syscall.MS_REC | syscall.MS_PRIVATE)
            work()
        except BaseException as error:
            failures.append(error)
        ready.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait()
        assert failures == []
        assert thread.native_id
        yield thread.native_id
    finally:
        end.set()
        thread.join()
        while os.path.exists(f"/proc/self/task/{thread.native_id}"):
            time.sleep(0.001)  # join returns before the kernel has ended the thread


def source(path: Path) -> str:
    """
    Return the device of the filesystem at *path*.
    """
    found = [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()]
    mount = max((line for line in found if str(path).startswith(line[4])), key=lambda line: len(line[4]))
    return mount[mount.index("-") + 2]
