"""
Serve a store on directories at a socket until the end of standard input: ``python -m ... SOCKET [SNAPSHOTS]``.

The log goes to standard error.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from snapshotter import Snapshotter
from snapshotter.daemon import log
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.serving import Serving

ROOT = Path(__file__).parents[3]


class Served(NamedTuple):
    """
    A process that serves.
    """

    address: str
    process: subprocess.Popen[str]
    log: Path

    def memory(self, *, reset: bool = False) -> int:
        """
        Return the largest size of the process in memory so far, or since the last *reset*, in bytes.
        """
        if reset:
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@contextlib.contextmanager
def served(snapshots: int = 0) -> Iterator[Served]:
    """
    Serve a store with *snapshots* in a process.
    """
    with tempfile.TemporaryDirectory() as directory:  # not pytest's, which is too long for sockets
        address, errors = f"{directory}/socket", Path(directory, "log")
        command = [sys.executable, "-m", "tests.snapshotter.transport.served", address, str(snapshots)]
        pipe = subprocess.PIPE
        with (
            errors.open("w") as stderr,
            subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=stderr) as process,
        ):
            assert process.stdout
            assert process.stdout.readline() == "serving\n", errors.read_text()
            yield Served(address, process, errors)
            process.communicate("")
        assert process.returncode == 0, errors.read_text()


def main(address: str, snapshots: int) -> None:
    with (
        log.writing(sys.stderr.fileno()),
        tempfile.TemporaryDirectory() as directory,
        Snapshotter.create(f"{directory}/root", volumes=DirectoryVolumes, client="c") as store,
    ):
        for number in range(snapshots):
            store.prepare(f"k{number}", labels={"label": "v" * 500})
        server = Serving(address)
        server.open(store)
        os.write(1, b"serving\n")
        sys.stdin.read()
        server.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
