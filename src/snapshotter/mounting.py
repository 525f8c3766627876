"""
Making the mounts that a snapshotter answers; the snapshotter itself never does.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator

from pybtrfs import syscall
from snapshotter.snapshot import Mount

_FLAGS = {"ro": syscall.MS_RDONLY, "rw": 0, "bind": syscall.MS_BIND, "rbind": syscall.MS_BIND | syscall.MS_REC}


def mount(mounts: Iterable[Mount], target: str | os.PathLike[str]) -> None:
    """
    Make *mounts* at the directory *target*, one on the other; all of them or none. Needs CAP_SYS_ADMIN.
    """
    with contextlib.ExitStack() as undo:
        for item in mounts:
            point = os.path.join(target, item.target) if item.target else os.fspath(target)
            flags = 0
            data = []
            for option in item.options:
                if option in _FLAGS:
                    flags |= _FLAGS[option]
                else:
                    data.append(option)
            syscall.mount(item.source, point, item.type, flags, ",".join(data))
            undo.callback(syscall.umount2, point)
            if flags & syscall.MS_BIND and flags & syscall.MS_RDONLY:
                # The kernel ignores "ro" when it makes a bind mount.
                syscall.mount("", point, "", syscall.MS_REMOUNT | syscall.MS_BIND | syscall.MS_RDONLY)
        undo.pop_all()


@contextlib.contextmanager
def mounted(mounts: Iterable[Mount], target: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """
    Make *mounts* at *target*, or at a directory of its own, for the time of a ``with``; gives its path.
    """
    mounts = tuple(mounts)
    with contextlib.ExitStack() as stack:
        if target is None:
            target = tempfile.mkdtemp(prefix="snapshot-")
            stack.callback(os.rmdir, target)
        mount(mounts, target)
        for item in mounts:
            stack.callback(syscall.umount2, os.path.join(target, item.target) if item.target else os.fspath(target))
        yield os.fspath(target)
