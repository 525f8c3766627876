"""
Traces of containerd: the daemon's log has the ids that containerd sends with its calls, and selects by them.
"""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from snapshotter.setup.containerd import installed

from . import images
from .processes import SNAPSHOTTER, Containerd, Daemon

pytestmark = pytest.mark.btrfs


class _Collector(BaseHTTPRequestHandler):
    """
    A collector of traces that takes everything.
    """

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def containerd_options() -> Iterator[dict[str, Any]]:
    """
    Return the options of a containerd that sends traces to a collector on this machine.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield {"collector": f"http://127.0.0.1:{server.server_port}"}
        server.shutdown()
        thread.join()


def test_traces(emptied: Containerd, daemon: Daemon, release: Path, directory: Path) -> None:
    """
    The events of an import have the ids of its trace from containerd 2.3 on, which select them.
    """
    image = images.small("example.org/small:1")
    emptied.ctr("images", "import", image.write(directory / "image.tar"))

    def events(*arguments: str) -> list[dict[str, Any]]:
        command = [SNAPSHOTTER, "events", "--json", "--log", daemon.log, *arguments]
        return [json.loads(line) for line in subprocess.check_output(command).splitlines()]

    made = [event for event in events() if event["event"] in ("prepared", "committed")]
    assert len(made) == 2 * len(image.layers)
    if installed(str(release / "containerd")) >= (2, 3, 0):
        [trace] = {event["trace"] for event in made}
        assert [event for event in events("--trace", trace) if event in made] == made
        for event in made:
            assert event in events("--trace", event["span"])
    else:
        assert not any("trace" in event for event in events())
