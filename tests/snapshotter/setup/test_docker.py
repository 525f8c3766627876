"""
Docker Engine's configuration: merged into the present one, and checked against a running engine.
"""

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgumentError
from snapshotter.setup import docker

NAME = "btrfs-snapshotter"
GOOD = {"Driver": NAME, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each), max_leaves=5)


def write(path: Path, values: object) -> str:
    path.write_text(json.dumps(values))
    return str(path)


def test_new(tmp_path: Path) -> None:
    """
    Without a file, or with an empty one, the settings are the whole file.
    """
    path = tmp_path / "daemon.json"
    expected = {"features": {"containerd-snapshotter": True}, "storage-driver": NAME}
    assert json.loads(docker.merged(str(path), NAME)) == expected
    path.write_text("\n")
    assert json.loads(docker.merged(str(path), NAME)) == expected


@given(values=st.dictionaries(st.text(), JSON), features=st.dictionaries(st.text(), st.booleans()))
def test_merge(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], features: dict[str, bool]) -> None:
    """
    All other settings stay, in their order, and a second merge changes nothing.
    """
    path = tmp_path_factory.mktemp("docker") / "daemon.json"
    values = {**values, "features": features}
    text = docker.merged(write(path, values), NAME)
    merged = json.loads(text)
    assert list(merged)[: len(values)] == list(values)
    assert merged.pop("storage-driver") == NAME
    values.pop("storage-driver", None)
    assert merged.pop("features") == {**features, "containerd-snapshotter": True}
    values.pop("features")
    assert merged == values
    path.write_text(text)
    assert docker.merged(str(path), NAME) == text
    assert docker.missing(str(path), NAME) == []


def test_complete_file_stays(tmp_path: Path) -> None:
    """
    A file with the settings stays as it is to the byte.
    """
    path = tmp_path / "daemon.json"
    path.write_text('{"storage-driver":"btrfs-snapshotter",\n"features":{"containerd-snapshotter":true}}')
    assert docker.merged(str(path), NAME) == path.read_text()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "mend the file first"),
        ("[]", "the file is \\[\\], not an object"),
        ('{"features": []}', "features is \\[\\], not an object"),
        (b"\xff", "cannot read Docker's configuration"),
    ],
)
def test_malformed(text: str | bytes, error: str, tmp_path: Path) -> None:
    """
    A file that does not parse is refused, with its path.
    """
    path = tmp_path / "daemon.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    for call in (docker.merged, docker.missing):
        with pytest.raises(InvalidArgumentError, match=error) as caught:
            call(str(path), NAME)
        assert str(path) in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    """
    Each missing setting is named.
    """
    path = write(tmp_path / "daemon.json", {"storage-driver": "overlay2", "features": {"containerd-snapshotter": 1}})
    assert docker.missing(path, NAME) == [
        f"{path}: features.containerd-snapshotter: has to be true",
        f"{path}: storage-driver: is 'overlay2', has to be '{NAME}'",
    ]


class _Server(socketserver.UnixStreamServer):
    answer: object


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        assert self.path == "/info"
        self.client_address = ("", 0)
        body = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[[object], list[str]]]:
    """
    Return a function that checks an engine which gives an answer.
    """
    address = str(tmp_path / "socket")
    with _Server(address, _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def check(answer: object) -> list[str]:
            server.answer = answer
            return docker.engine_problems(address, NAME)

        yield check
        server.shutdown()
        thread.join()


def test_engine(engine: Callable[[object], list[str]]) -> None:
    """
    An engine with another driver, or that does not use containerd, is named with the cure.
    """
    assert engine(GOOD) == []
    [line] = engine({"Driver": "overlay2"})
    assert "stores images with 'overlay2', not 'btrfs-snapshotter'; restart docker" in line
    [line] = engine({"Driver": NAME})
    assert "does not store images in containerd" in line
    [line] = engine([])
    assert "the engine does not answer: [] is not an object" in line


def test_no_engine(tmp_path: Path) -> None:
    """
    An engine that is not there is named with the cure.
    """
    [line] = docker.engine_problems(str(tmp_path / "socket"), NAME)
    assert "the engine does not answer" in line
    assert "start docker" in line
