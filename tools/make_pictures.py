"""
Make the pictures of docs/pictures/: output of the command, on a new store. Needs root and Chromium.

    python tools/make_pictures.py DIRECTORY
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from pybtrfs import filesystem, image, subvolume
from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from tools import browser

ROOT = "/var/lib/snapshots"  # stands in the pictures for the temporary path of the store
COLUMNS = 88

# Each layer with its parent and its size in units.
LAYERS = {
    "debian": ("", 28), "python": ("debian", 17), "shop": ("python", 6), "shop-2": ("python", 7),
    "node": ("debian", 21), "web": ("node", 4), "alpine": ("", 3), "redis": ("alpine", 5),
}  # fmt: skip
CONTAINERS = {"shop-a": ("shop", 2), "shop-b": ("shop-2", 5), "web-a": ("web", 1), "cache": ("redis", 8)}
UNIT = 300_000  # bytes

COMMANDS = ("tree", "df", "doctor")
PAGES = {"report-light": (1100, False), "report-dark": (1100, True), "report-phone": (390, False)}

# rich's frame of a terminal downloads its fonts, which a picture must not.
FRAME = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code", "ui-monospace")


def main(target: Path) -> None:
    """
    Write all pictures to *target*.
    """
    target.mkdir(exist_ok=True)
    with store() as root:
        for command in COMMANDS:
            (target / f"{command}.svg").write_text(drawn(command, printed(root, command)))
        for name, shown in pages(root):
            (target / f"{name}.png").write_bytes(shown.picture)
    (target / "demo.svg").write_text(drawn("demo", printed("", "demo")))


@contextmanager
def store() -> Iterator[str]:
    """
    Make a store with images and containers, one of which lost its subvolume, and yield its root.
    """
    with image.temporary(2 << 30) as mount:
        root = str(mount / "store")
        with Snapshotter.create(root) as store:
            for name, (parent, size) in LAYERS.items():
                with mounted(store.prepare("build", parent)) as path:
                    _write(Path(path, name), size)
                store.commit(name, "build")
            for key, (parent, size) in CONTAINERS.items():
                with mounted(store.prepare(key, parent)) as path:
                    _write(Path(path, key), size)
            store.view("look", "web")
            store.prepare("job", "alpine")
            store.cleanup()
        with Snapshotter(root, read_only=True) as store:
            subvolume.delete(store.subvolume("job"))
        while subvolume.count_deleted(root):  # df lists deleted subvolumes
            filesystem.sync(root)
        yield root


def _write(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.write(os.urandom(size * UNIT))
        os.fsync(file.fileno())


def printed(root: str, command: str) -> str:
    """
    Return the output of *command* on a terminal, with its colours.
    """
    terminal, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "SNAPSHOTTER_ROOT": root}
    run = [sys.executable, "-m", "snapshotter", command]
    with subprocess.Popen(run, stdout=child, stderr=child, env=environment):
        os.close(child)
        output = b""
        with suppress(OSError):  # EIO after the command has ended
            while data := os.read(terminal, 1 << 16):
                output += data
        os.close(terminal)
    return _renamed(output.decode().replace("\r\n", "\n"), root)


def _renamed(text: str, root: str) -> str:
    return text.replace(root, ROOT).replace(str(Path(root).parent.with_name("image")), f"{ROOT}.img") if root else text


def drawn(command: str, output: str) -> str:
    """
    Return a terminal with *output* as an SVG.
    """
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ snapshotter {command}", "bold"))
        console.print(Text.from_ansi(output.rstrip("\n")))
    return console.export_svg(title="", code_format=FRAME, unique_id=command)


class Shown(NamedTuple):
    """
    A report in a browser.

    Args:
        width: The width of the whole page, in pixels.
        sections: The height of each section, in pixels.
        complaints: The log of the browser.
    """

    picture: bytes
    width: int
    sections: dict[str, int]
    complaints: list[str]


def pages(root: str) -> Iterator[tuple[str, Shown]]:
    """
    Yield the report as a browser shows it on each device.
    """
    with tempfile.TemporaryDirectory() as directory, browser.opened() as page:
        file = Path(directory, "store.html")
        subprocess.run([sys.executable, "-m", "snapshotter", "report", "--root", root, "-o", file], check=True)
        file.write_text(_renamed(file.read_text(), root))
        for name, (width, dark) in PAGES.items():
            page.open(file, width=width, dark=dark)
            full = page.ask("document.documentElement.scrollWidth")
            heights = page.ask("[...document.querySelectorAll('section')].map(each => [each.id, each.offsetHeight])")
            yield name, Shown(page.photograph(), full, dict(heights), page.complaints)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
