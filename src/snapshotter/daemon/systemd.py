"""
What systemd tells a service through its environment, and what a service tells systemd.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

_FIRST_FD = 3
# systemd that does not read shall not stop the service.
_SEND_SECONDS = 1.0


class Systemd:
    """
    The service manager that started this process, or nobody: then nothing happens.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def notify(self, *lines: str) -> None:
        """
        Tell of this service, as in ``READY=1`` or ``STATUS=...``; a manager that is gone is no error.
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
        How often ``WATCHDOG=1`` is expected at least; 0 when it is not.
        """
        for_us = self._number("WATCHDOG_PID") in (0, os.getpid())
        return self._number("WATCHDOG_USEC") / 1e6 if for_us else 0.0

    def sockets(self) -> list[socket.socket]:
        """
        The sockets that were opened for this service; they are the caller's.
        """
        # The variables pass on to children, for which the sockets are not meant.
        if self._number("LISTEN_PID") != os.getpid():
            return []
        found = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + self._number("LISTEN_FDS"))]
        for one in found:
            one.set_inheritable(False)
        return found

    def _number(self, name: str) -> int:
        text = self._environ.get(name, "")
        return int(text) if text.isdecimal() else 0
