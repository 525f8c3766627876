"""
The client of fuse_disk.py: start the disk, mount a btrfs on it, mark its log, refuse requests.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pybtrfs import image

from .mounts import mounted
from .power import Log, copy_sparse

PATIENCE = 5  # seconds


class Disk:
    """
    A disk that starts as the image at *path*. It logs every request, and can refuse it.

    At the end of the ``with`` the disk is removed, even if it is in use.
    """

    def __init__(self, path: str) -> None:
        self.directory = tempfile.mkdtemp(prefix="faults-", dir="/dev/shm")
        size = os.stat(path).st_size
        with open(path, "rb") as source, open(f"{self.directory}/disk", "wb") as target:
            copy_sparse(source.fileno(), target.fileno())
        self.target = f"{self.directory}/mount"
        os.mkdir(self.target)
        server = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fuse_disk.py")), self.directory, str(size)]
        # A session of its own, because the mounts hang if Ctrl-C stops the server.
        self.server = subprocess.Popen(
            server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.server.stdout is not None
        if self.server.stdout.readline() != "ready\n":
            raise RuntimeError(f"the FUSE server ended with status {self.server.wait()}")
        self._mark = os.open(f"{self.directory}/fuse/mark", os.O_WRONLY | os.O_CLOEXEC)
        self._control = os.open(f"{self.directory}/fuse/control", os.O_WRONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._mark)
        os.close(self._control)
        try:
            self.server.communicate(timeout=PATIENCE)  # the server cleans up at the end of its stdin
        except subprocess.TimeoutExpired:
            # A file on the disk is still open, perhaps in this process. It gets EIO from now on.
            self.server.kill()
            self.server.communicate()
            shutil.rmtree(self.directory)

    @contextlib.contextmanager
    def mounted(self, options: str = "") -> Iterator[str]:
        """
        Mount the btrfs of the disk, and yield the mount point.
        """
        with image.attach(f"{self.directory}/fuse/disk") as device, mounted(device.path, self.target, options):
            yield self.target

    def mark(self, text: str) -> None:
        """
        Append a marker to the log, behind everything that the disk has done.
        """
        os.write(self._mark, text.encode())

    def refuse(self, *rules: str) -> None:
        """
        Refuse the requests that *rules* name, as in Faults.set of fuse_disk.py. Without rules the disk is healthy.
        """
        os.write(self._control, "\n".join(rules).encode() or b"\n")

    def log(self) -> Log:
        """
        Return the log until now, which stays valid after the disk is removed.
        """
        return Log(Path(self.directory, "log").read_bytes())
