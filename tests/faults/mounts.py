"""
Mounts that never stay, whatever happens.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from pybtrfs import syscall

PATIENCE = 60  # seconds


@contextlib.contextmanager
def mounted(device: str, target: str, options: str = "") -> Iterator[str]:
    """
    The btrfs on *device*, mounted at *target*, and let go of by the kernel afterwards.

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
        _wait_until_free(device)


def _wait_until_free(device: str) -> None:
    # A mount namespace that somebody made meanwhile has a copy of the mount. While that lives, another mount of the
    # device shows the same filesystem, whatever was written to the device since.
    end = time.monotonic() + PATIENCE
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)
