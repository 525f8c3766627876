"""
Mounts that never stay, whatever happens.
"""

import contextlib
from collections.abc import Iterator

from pybtrfs import syscall


@contextlib.contextmanager
def mounted(device: str, target: str, options: str = "") -> Iterator[str]:
    """
    The btrfs on *device*, mounted at *target*.

    Raises:
        OSError: The kernel refuses the mount; or somebody still holds it at the end: then it is detached lazily.
    """
    syscall.mount(device, target, "btrfs", 0, options)
    try:
        yield target
    finally:
        try:
            syscall.umount2(target)
        except OSError:
            syscall.umount2(target, syscall.MNT_DETACH)
            raise
