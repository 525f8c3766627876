"""
The daemon's socket: its path, its mode, and the sockets that systemd hands over.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.client import Client
from tests.snapshotter.daemon.running import PATIENCE, Daemon, mode, tree

pytestmark = pytest.mark.btrfs


# Like systemd: the socket becomes descriptor 3, and LISTEN_PID is the process itself.
ACTIVATED = """
import os, sys
count = int(sys.argv[1])
os.environ |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
for target, fd in enumerate(map(int, sys.argv[2 : 2 + count]), 3):
    os.dup2(fd, target)
os.execv(sys.executable, [sys.executable, "-m", "snapshotter", *sys.argv[2 + count :]])
"""


class TestSocket:
    @pytest.mark.parametrize("umask", [0, 0o022, 0o777])
    def test_modes(self, daemon: Daemon, umask: int) -> None:
        """
        Only root has access to the socket and to a created directory, whatever the umask.
        """
        daemon.ready(umask=umask)
        assert (mode(daemon.address), mode(daemon.address.parent), mode(daemon.root)) == (0o600, 0o700, 0o700)
        assert daemon.stop() == 0
        assert not daemon.address.parent.exists()

    def test_default_acl(self, daemon: Daemon, btrfs: Path) -> None:
        """
        Only root has access to the socket, even if the directory's default ACL grants access to everybody.
        """
        everybody = struct.pack("<I" + 3 * "HHI", 2, 0x01, 7, 2**32 - 1, 0x04, 7, 2**32 - 1, 0x20, 7, 2**32 - 1)
        os.setxattr(btrfs, "system.posix_acl_default", everybody)
        daemon.ready("--address", str(btrfs / "s.sock"))
        assert mode(btrfs / "s.sock") == 0o600

    def test_directory(self, daemon: Daemon) -> None:
        """
        An existing directory stays unchanged; its missing parent is not created.
        """
        daemon.address.parent.mkdir(mode=0o751)
        before = mode(daemon.address.parent)
        assert daemon.ready().stop() == 0
        assert (mode(daemon.address.parent), os.listdir(daemon.address.parent)) == (before, [])
        code, line = daemon.refused("--address", f"{daemon.work}/no/such/s.sock")
        assert (code, line) == (4, f"'{daemon.work}/no' does not exist: make it first")
        code, line = daemon.refused("--address", "/proc/s.sock")
        assert (code, line.endswith(": '/proc/s.sock'")) == (1, True)

    def test_stale(self, daemon: Daemon) -> None:
        """
        The socket left by a killed daemon is replaced.
        """
        daemon.ready().stop(signal.SIGKILL)
        assert daemon.address.is_socket()
        daemon.ready()
        with daemon.client() as client:
            assert client.serving()

    def test_live(self, daemon: Daemon, make_daemon: Callable[..., Daemon], btrfs: Path) -> None:
        """
        A socket at which another process serves is left alone.
        """
        daemon.ready()
        second = make_daemon(btrfs / "other")
        code, line = second.refused("--address", str(daemon.address))
        assert daemon.process
        assert code == 3
        assert line == f"process {daemon.process.pid} serves at '{daemon.address}': stop it, or choose another address"
        assert not second.root.exists()
        with daemon.client() as client:
            assert client.serving()

    @pytest.mark.parametrize("kind", ["file", "symlink", "directory"])
    def test_in_the_way(self, daemon: Daemon, kind: str) -> None:
        """
        A file that is not a socket is not replaced, nor the target of a symlink.
        """
        daemon.address.parent.mkdir()
        (daemon.work / "target").write_text("content")
        if kind == "file":
            daemon.address.write_text("content")
        elif kind == "symlink":
            daemon.address.symlink_to(daemon.work / "target")
        else:
            daemon.address.mkdir()
        before = tree(daemon.work / "run")
        code, line = daemon.refused()
        assert (code, line) == (1, f"'{daemon.address}' exists and is not a socket: choose another address")
        assert tree(daemon.work / "run") == before
        assert (daemon.work / "target").read_text() == "content"

    def test_replaced(self, daemon: Daemon) -> None:
        """
        A file that replaced the daemon's socket is not removed at the end.
        """
        daemon.ready()
        daemon.address.unlink()
        daemon.address.touch()
        assert daemon.stop() == 0
        assert daemon.address.is_file()

    def test_not_abstract(self, daemon: Daemon) -> None:
        """
        An abstract socket, which has no permissions, is refused as a wrong configuration, and the daemon opens none.
        """
        code, line = daemon.refused("--address", "@abstract")
        assert (code, line.partition(",")[0]) == (2, "--address: address is '@abstract'")
        daemon.ready()
        assert f"{daemon.work}" in Path("/proc/net/unix").read_text()
        assert f"@{daemon.work}" not in Path("/proc/net/unix").read_text()


class TestActivation:
    def test_served(self, daemon: Daemon) -> None:
        """
        A socket of systemd is served, also to clients that connected before the daemon started, and is left in place at
        the end.
        """
        path = daemon.work / "handed.sock"
        with socket.socket(socket.AF_UNIX) as handed, ThreadPoolExecutor() as pool:
            handed.bind(str(path))
            handed.listen()
            with Client(path, timeout=PATIENCE) as client:
                answer = pool.submit(lambda: list(client.walk()))
                daemon.ready(prefix=(sys.executable, "-c", ACTIVATED, "1", str(handed.fileno())))
                assert answer.result() == []
            assert not daemon.address.exists()
            assert json.loads((daemon.root / "lock").read_text())["socket"] == str(path)
            assert daemon.stop() == 0
            assert path.is_socket()
            with Client(path, timeout=PATIENCE) as client:
                answer = pool.submit(lambda: list(client.walk()))  # waits in the socket's queue
                daemon.ready(prefix=(sys.executable, "-c", ACTIVATED, "1", str(handed.fileno())))
                assert answer.result() == []

    @pytest.mark.parametrize("kind", ["two", "datagram", "abstract", "internet", "silent"])
    def test_refused(self, daemon: Daemon, kind: str) -> None:
        """
        An unsuitable socket is refused, and so are two sockets.
        """
        with contextlib.ExitStack() as stack:
            family = socket.AF_INET if kind == "internet" else socket.AF_UNIX
            form = socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
            handed = [stack.enter_context(socket.socket(family, form)) for _ in range(2 if kind == "two" else 1)]
            for number, each in enumerate(handed):
                if kind == "internet":
                    each.bind(("127.0.0.1", 0))
                else:
                    each.bind(("\0" if kind == "abstract" else "") + f"{daemon.work}/{number}")
                if kind not in ("datagram", "silent"):
                    each.listen()
            fds = [str(each.fileno()) for each in handed]
            code, line = daemon.refused(prefix=(sys.executable, "-c", ACTIVATED, str(len(fds)), *fds))
            assert code == 1
            assert line.startswith("systemd handed over ")
