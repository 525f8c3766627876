"""
What takes long to make and is kept: ``~/.cache/btrfs-snapshotter``, or below ``$XDG_CACHE_HOME``.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def place(name: str) -> Path:
    """
    Where *name* is, or is going to be.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "btrfs-snapshotter" / name


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """
    The directory *name* of the cache, which *build* filled once.
    """
    directory, unfinished = place(name), place(f"{name}.unfinished")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with place(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a build that was interrupted
            unfinished.mkdir()
            started = time.monotonic()
            print(f"building {name}", flush=True)
            build(unfinished)
            size = sum(path.lstat().st_size for path in unfinished.rglob("*"))
            print(f"built {name}: {size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s", flush=True)
            unfinished.rename(directory)
    return directory
