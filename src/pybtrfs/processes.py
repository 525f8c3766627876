"""
Processes, as ``/proc`` shows them. A process can end at any time, and others' files can be hidden.
"""

import contextlib
import errno
import os

OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def in_user_namespace() -> bool:
    """
    Return whether this process is in a user namespace without all ids of the host, which cannot mount btrfs.
    """
    try:
        # In bytes, because the first use of an encoding imports a module, which an unprivileged process may not read.
        with open("/proc/self/uid_map", "rb") as file:
            return file.read().split() != [b"0", b"0", b"4294967295"]
    except FileNotFoundError:  # a kernel without user namespaces
        return False


def pids() -> list[str]:
    """
    Return the ids of all visible processes, in ascending order.
    """
    return sorted(filter(str.isdigit, os.listdir("/proc")), key=int)


def listed(path: str) -> list[str]:
    """
    Return the names in the directory *path* of a process, or nothing if the process ended or is not readable.

    Raises:
        OSError: EMFILE, ENFILE or ENOMEM: the caller lacks resources, so the result is unknown.
    """
    try:
        return os.listdir(path)
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            raise
        return []


def command(pid: str | int, size: int) -> str:
    """
    Return the first *size* bytes of the command line of a process, separated by spaces, or "" if it is unknown.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return os.fsdecode(file.read(size).rstrip(b"\0").replace(b"\0", b" "))
    return ""
