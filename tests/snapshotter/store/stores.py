"""
Stores for the tests of this folder.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshotter import Snapshotter
from snapshotter.store.record_storage import XATTR
from snapshotter.testing import settle


def works(opened: Snapshotter) -> None:
    """
    Put a store to use, and close it.
    """
    with opened:
        opened.prepare("k")
        opened.commit("base", "k")
        opened.view("view", "base")
        opened.view("nothing")
        settle(opened)


def everything(root: Path) -> dict[str, object]:
    return {
        str(path.relative_to(root)): os.getxattr(path, XATTR) if XATTR in os.listxattr(path) else None
        for path in root.rglob("*")
    }


CHANGES: dict[str, Callable[[Snapshotter], object]] = {
    "prepare": lambda copy: copy.prepare("new"),
    "view": lambda copy: copy.view("new", "base"),
    "commit": lambda copy: copy.commit("c", "active"),
    "fork": lambda copy: copy.fork("active", "new"),
    "update": lambda copy: copy.update(copy.stat("base")),
    "remove": lambda copy: copy.remove("view"),
    "cleanup": lambda copy: copy.cleanup(),
}


HOLD = """
import os, sys
from snapshotter import Snapshotter
from snapshotter.store.record_storage import XATTR
from snapshotter.testing import settle
with Snapshotter(sys.argv[1]) as store:
    print("ready", flush=True)
    for expression in sys.stdin:
        print(eval(expression), flush=True)
"""


@contextmanager
def holder(root: Path, *arguments: str) -> Iterator[Callable[[str], str]]:
    """
    Another process that has the store open; gives a function to have it evaluate something.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout

    def ask(expression: str) -> str:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{expression}\n")
        process.stdin.flush()
        return process.stdout.readline()

    try:
        assert process.stdout.readline() == "ready\n"
        yield ask
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()
