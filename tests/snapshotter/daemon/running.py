"""
The daemon in a process of its own, for tests.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter.client import Client

PATIENCE = 60.0  # seconds, for a busy machine; each wait is short otherwise
RUN = "import sys; from snapshotter import cli; sys.exit(cli.main(sys.argv[1:]))"


class Daemon:
    """
    A daemon in a process of its own.
    """

    def __init__(self, work: Path, root: Path) -> None:
        self.work = work
        self.root = root
        self.address = work / "run" / "s.sock"
        self.log = work / "log"
        self.process: subprocess.Popen[str] | None = None
        self._stack = contextlib.ExitStack()
        self.manager = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.manager.bind(str(work / "notify"))
        self.manager.settimeout(PATIENCE)

    def start(
        self, *flags: str, patch: str = "", prefix: tuple[str, ...] = (), umask: int = -1, **environ: str
    ) -> "Daemon":
        """
        Start the process, with the code *patch* before the command, or with *prefix* in place of Python.
        """
        defaults = {"NOTIFY_SOCKET": str(self.work / "notify"), "GATES": str(self.work)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*(prefix or (sys.executable, "-c", patch + RUN)), "serve", *self._where(flags), *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                umask=umask,
                pass_fds=[int(part) for part in prefix if part.isdecimal()][1:],
                env=os.environ | defaults | environ,
            )
        self._stack.callback(self._kill, self.process)
        return self

    def _where(self, flags: tuple[str, ...]) -> list[str]:
        given = {"--root": str(self.root), "--address": str(self.address)}
        return [part for name, value in given.items() if name not in flags for part in (name, value)]

    def notified(self, line: str) -> None:
        """
        Wait until the daemon has sent *line* to its manager.
        """
        while line not in self.manager.recv(1000).decode().splitlines():
            pass

    def ready(self, *flags: str, **options: Any) -> "Daemon":
        self.start(*flags, **options)
        try:
            self.notified("READY=1")
        except TimeoutError:
            pytest.fail(f"not ready: {self.log.read_text()}")
        return self

    def gate(self, name: str) -> Callable[[], None]:
        """
        Close a gate, and return the function that opens it.
        """
        path = self.work / name
        os.mkfifo(path)
        return lambda: path.open("w").close()

    def printed(self, line: str) -> None:
        """
        Wait until the process has printed *line*.
        """
        assert self.process
        assert self.process.stdout
        assert self.process.stdout.readline() == line + "\n"

    def logged(self, event: str, times: int = 1) -> None:
        """
        Wait until the log has *event*.
        """
        while self.log.read_text().count(f" {event} ") < times:
            assert self.process
            assert self.process.poll() is None, self.log.read_text()
            threading.Event().wait(0.01)

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def ended(self) -> int:
        assert self.process
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still runs: {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.ended()

    def refused(self, *flags: str, **options: Any) -> tuple[int, str]:
        """
        Start a daemon that has to refuse; return its exit code and its only message.
        """
        before = self.log.read_text() if self.log.exists() else ""
        code = self.start(*flags, **options).ended()
        said = self.log.read_text().removeprefix(before).splitlines()
        lines = [line for line in said if line.startswith("snapshotter: ")]
        assert len(lines) == 1, said
        assert "Traceback" not in "".join(said)
        return code, lines[0].removeprefix("snapshotter: ")

    def client(self, **options: Any) -> Client:
        return Client(self.address, timeout=PATIENCE, **options)

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

    def close(self) -> None:
        self._stack.close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """
    Return mode and mtime of everything below a directory. The mtime of a subvolume's placeholder (inode 2) is left out.
    """
    found = ((each, each.lstat()) for each in (path, *path.rglob("*")))
    return {str(each): (status.st_mode, status.st_mtime_ns if status.st_ino != 2 else 0) for each, status in found}


def names(client: Client) -> set[str]:
    return {info.name for info in client.walk()}


def ping(daemon: Daemon) -> tuple[int, str, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "snapshotter", "ping", "--address", daemon.address], capture_output=True, text=True
    )
    return ran.returncode, ran.stdout, ran.stderr
