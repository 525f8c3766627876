"""
systemd's protocols for services: notification, watchdog and socket activation.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

_FIRST_FD = 3
_SEND_SECONDS = 1.0  # so that a hanging systemd does not stop the service


class Systemd:
    """
    The service manager that started this process. Without one, all methods do nothing.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def notify(self, *lines: str) -> None:
        """
        Send *lines*, such as ``READY=1`` or ``STATUS=...``. Errors are ignored, because the manager may be gone.
        """
        address = self._environ.get("NOTIFY_SOCKET")
        if not address:
            return
        if address.startswith("@"):
            address = "\0" + address[1:]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_SECONDS)
            sender.sendto("\n".join(lines).encode(), address)

    @property
    def watchdog_seconds(self) -> float:
        """
        The longest interval between two ``WATCHDOG=1``; 0 without a watchdog.
        """
        for_us = self._number("WATCHDOG_PID") in (0, os.getpid())
        return self._number("WATCHDOG_USEC") / 1e6 if for_us else 0.0

    def sockets(self) -> list[socket.socket]:
        """
        Return the sockets that systemd opened for this service. The caller owns them.
        """
        # Children inherit the variables, but not the sockets.
        if self._number("LISTEN_PID") != os.getpid():
            return []
        handed = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + self._number("LISTEN_FDS"))]
        for listener in handed:
            listener.set_inheritable(False)
        return handed

    def _number(self, name: str) -> int:
        text = self._environ.get(name, "")
        return int(text) if text.isdecimal() else 0
