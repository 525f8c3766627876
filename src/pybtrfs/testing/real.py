"""
The requirements of a real btrfs for tests.
"""

import errno
import os
from pathlib import Path

from pybtrfs import syscall

_CAP_SYS_ADMIN = 21


def why_no_btrfs() -> str:
    """
    Return the reason why this process cannot mount a btrfs, as `pybtrfs.image.temporary` does, or ``""`` if it can.
    """
    if os.geteuid():
        return "needs root"
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if not int(status["CapEff"], 16) >> _CAP_SYS_ADMIN & 1:
        return "needs CAP_SYS_ADMIN, which root lacks here (a container?)"
    try:
        syscall.mount("/nonexistent", "/", "btrfs")  # loads the kernel module, if it exists
    except OSError as error:
        if error.errno == errno.ENODEV:
            return "needs a kernel with btrfs"
        if error.errno == errno.EPERM:
            return "needs CAP_SYS_ADMIN outside of every user namespace"
    return ""
