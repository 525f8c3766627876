"""
Mounts that are always unmounted.
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
    Mount the btrfs on *device* at *target*; at the end unmount it, and wait until the kernel releases *device*.

    Raises:
        OSError: The kernel refuses the mount, or the mount is busy at the end, and is then detached lazily.
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
    # A mount namespace created during the ``with`` has a copy of the mount. While the copy exists, a new mount of the
    # device shows the same filesystem, even if the device has changed.
    end = time.monotonic() + PATIENCE
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)
