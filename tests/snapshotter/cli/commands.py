"""
The command, called in this process.
"""

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from snapshotter import Snapshotter


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]
Shown = Callable[..., str]


class Terminal(io.StringIO):
    """
    The output to a terminal.
    """

    def isatty(self) -> bool:
        return True


def image_of(root: str) -> str:
    """
    The image below a store; it is sparse, so doctor names it.
    """
    return str(next(parent for parent in Path(root).parents if parent.name == "mount").with_name("image"))


def settle(store: Snapshotter) -> None:
    """
    Wait until no record says that its snapshot is being made.
    """
    names = os.listdir(f"{store.root}/snapshots")
    while any(b'"preparing"' in os.getxattr(f"{store.root}/snapshots/{name}", "user.snapshotter") for name in names):
        time.sleep(0.01)


def names(run: Run, *argv: str) -> list[str]:
    return [info["name"] for info in json.loads(run("ls", "--json", *argv).out)]


def infos(run: Run, *argv: str) -> list[tuple[str, str, str, dict[str, str]]]:
    listed = json.loads(run("ls", "--json", *argv).out)
    return [(info["name"], info["kind"], info["parent"], info["labels"]) for info in listed]
