import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.daemon.systemd import Systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """
    Return a manager's socket, and its address for the environment.
    """
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name if request.param == "abstract" else name)
        yield receiver, "@" + name if request.param == "abstract" else name


class TestNotify:
    def test_lines(self, manager: tuple[socket.socket, str]) -> None:
        """
        The manager gets all lines in one message.
        """
        receiver, address = manager
        Systemd({"NOTIFY_SOCKET": address}).notify("READY=1", "STATUS=serving é")
        assert receiver.recv(1000) == "READY=1\nSTATUS=serving é".encode()

    @pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nonexistent/socket"}])
    def test_nobody(self, environ: dict[str, str]) -> None:
        """
        A missing manager is no error.
        """
        Systemd(environ).notify("READY=1")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_watchdog(environ: dict[str, str], seconds: float) -> None:
    """
    The interval is the environment's, unless the environment is meant for another process.
    """
    assert Systemd(environ).watchdog_seconds == seconds


class TestSockets:
    def test_handed_over(self, tmp_path: Path) -> None:
        """
        The descriptors from 3 on are returned as sockets, close-on-exec; a child gets none.
        """
        child = os.fork()
        if child == 0:
            try:
                for fd in (3, 4):
                    with socket.socket(socket.AF_UNIX) as listener:
                        listener.bind(str(tmp_path / str(fd)))
                        os.dup2(listener.fileno(), fd)
                environ = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}
                found = Systemd(environ).sockets()
                assert [one.getsockname() for one in found] == [str(tmp_path / "3"), str(tmp_path / "4")]
                assert not any(one.get_inheritable() for one in found)
                assert [one.fileno() for one in found] == [3, 4]
                grandchild = os.fork()
                if grandchild == 0:
                    os._exit(len(Systemd(environ).sockets()))
                os._exit(os.waitpid(grandchild, 0)[1])
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}])
    def test_none(self, environ: dict[str, str]) -> None:
        """
        Without both variables, or with those of another process, there are no sockets.
        """
        assert Systemd(environ).sockets() == []
