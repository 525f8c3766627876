"""
Docker Engine's configuration for a daemon: the settings in ``daemon.json``, and a check of the running engine.

The engine stores images and containers in containerd, which finds the daemon by `snapshotter.setup.containerd`.
"""

import http.client
import json
import socket
from typing import Any

from snapshotter.errors import InvalidArgumentError

DAEMON_JSON = "/etc/docker/daemon.json"
SOCKET = "/var/run/docker.sock"

_SECONDS = 10.0  # to wait for an answer of the engine
_DRIVER_TYPE = ["driver-type", "io.containerd.snapshotter.v1"]


def merged(path: str, name: str) -> str:
    """
    Return the text of the ``daemon.json`` at *path* with the settings for the snapshotter *name*.

    All other settings stay as they are. A missing file is like an empty one.

    Raises:
        InvalidArgumentError: The file cannot be read, is not JSON, or has something else in place of an object.
    """
    text = _read(path)
    values = _parsed(path, text)
    if not _lacking(values, name):
        return text
    features = {**values.get("features", {}), "containerd-snapshotter": True}
    return json.dumps({**values, "features": features, "storage-driver": name}, indent=2, ensure_ascii=False) + "\n"


def missing(path: str, name: str) -> list[str]:
    """
    Return a line for each setting for the snapshotter *name* that the ``daemon.json`` at *path* lacks.

    Raises:
        InvalidArgumentError: As `merged`.
    """
    return [f"{path}: {lack}" for lack in _lacking(_parsed(path, _read(path)), name)]


def engine_problems(address: str, name: str) -> list[str]:
    """
    Return a line if the engine at the socket *address* does not answer, or does not use the snapshotter *name*.
    """
    try:
        info = _ask(address, "/info")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return [f"{address}: the engine does not answer: {error}; start docker"]
    driver = info.get("Driver")
    if driver != name:
        return [f"{address}: the engine stores images with {driver!r}, not {name!r}; restart docker"]
    if _DRIVER_TYPE not in info.get("DriverStatus", ()):
        return [f"{address}: the engine does not store images in containerd; restart docker"]
    return []


def _lacking(values: dict[str, Any], name: str) -> list[str]:
    lines = []
    if values.get("features", {}).get("containerd-snapshotter") is not True:
        lines.append("features.containerd-snapshotter: has to be true")
    if (driver := values.get("storage-driver")) != name:
        lines.append(f"storage-driver: is {driver!r}, has to be {name!r}")
    return lines


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read Docker's configuration {path!r}: {error}") from error


def _parsed(path: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise InvalidArgumentError(f"{path}: {error}: mend the file first") from error
    for what, value in (("the file", values), ("features", values.get("features", {}) if values else {})):
        if not isinstance(value, dict):
            raise InvalidArgumentError(f"{path}: {what} is {value!r:.64}, not an object: mend the file first")
    return values


class _Connection(http.client.HTTPConnection):
    """
    A connection to the unix socket *address*.
    """

    def __init__(self, address: str) -> None:
        super().__init__("docker", timeout=_SECONDS)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)


def _ask(address: str, path: str) -> dict[str, Any]:
    connection = _Connection(address)
    try:
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ValueError(f"{answer!r:.64} is not an object")
    return answer
