"""
Control of headless Chromium through its debugging pipe: open a page, evaluate JavaScript, take a screenshot.
"""

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TALLEST = 8000  # pixels of a window, because the page of a large store is a hundred times as tall


class Page:
    """
    The open page.

    Attributes:
        complaints: The log of the browser, such as violations of the page's content security policy.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self.complaints: list[str] = []
        self._requests = requests
        self._answers = answers
        self._read = b""
        self._number = 0
        self._loaded = False
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Log.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """
        Call a method of the DevTools protocol.
        """
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, file: Path, *, width: int, dark: bool = False) -> None:
        """
        Show all of *file* in a window of *width* pixels.
        """
        self._resize(width, 800)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.complaints = []
        self.call("Page.navigate", url=file.absolute().as_uri())
        while not self._loaded:
            self._next()
        self._resize(width, min(self.ask("document.documentElement.scrollHeight"), TALLEST))

    def _resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def ask(self, expression: str) -> Any:
        """
        Return the value of a JavaScript *expression*.
        """
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def photograph(self) -> bytes:
        """
        Return a screenshot of the window as a PNG.
        """
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def _next(self) -> Any:
        while b"\0" not in self._read:
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended")
            self._read += data
        message, _, self._read = self._read.partition(b"\0")
        event = json.loads(message)
        self._loaded |= event.get("method") == "Page.loadEventFired"
        if event.get("method") == "Log.entryAdded":
            self.complaints.append(event["params"]["entry"]["text"])
        return event


@contextmanager
def opened() -> Iterator[Page]:
    """
    Start Chromium with an empty page, and stop it at the end.
    """
    with tempfile.TemporaryDirectory() as profile:
        to_browser, requests = os.pipe()
        answers, from_browser = os.pipe()
        # Chromium expects its ends at 3 and 4. bash moves them, because dash cannot redirect descriptors above 9.
        moved = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash"]
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        browser = subprocess.Popen(moved + command, pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(requests, answers)
        finally:
            os.close(requests)
            os.close(answers)
            browser.wait()
