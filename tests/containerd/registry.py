"""
A registry to pull from: the read requests of OCI's distribution specification, by plain HTTP on this machine.
"""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .images import Image


class Registry:
    """
    The images of a registry, which `served` starts.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []

    def add(self, image: Image) -> str:
        """
        Serve *image* under the last part of its name, and return the reference to pull.
        """
        repository, _, tag = image.name.rpartition("/")[2].partition(":")
        self._blobs.update(image.blobs)
        for reference in (tag, image.manifest["digest"]):
            self._manifests[f"/v2/{repository}/manifests/{reference}"] = image.manifest
        return f"{self.host}/{repository}:{tag}"

    def answer(self, path: str) -> tuple[str, str, bytes] | None:
        """
        Return the media type, the digest and the bytes at *path*.
        """
        self.requests.append(path)
        if path == "/v2/":
            return "application/json", "", b"{}"
        if manifest := self._manifests.get(path):
            return manifest["mediaType"], manifest["digest"], self._blobs[manifest["digest"]]
        name = path.rpartition("/")[2]
        return ("application/octet-stream", name, self._blobs[name]) if name in self._blobs else None


@contextlib.contextmanager
def served() -> Iterator[Registry]:
    """
    Serve a registry while the ``with`` lasts.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
                self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            media_type, digest, body = registry.answer(self.path.partition("?")[0]) or ("", "", b"")
            self.send_response(200 if media_type else 404)
            self.send_header("Content-Type", media_type or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            return body

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # closing waits for the threads

    with Server(("127.0.0.1", 0), Handler) as server:
        registry = Registry(f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
