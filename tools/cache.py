"""
The cache of slow builds: ``~/.cache/btrfs-snapshotter``, or the same below ``$XDG_CACHE_HOME``.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def place(name: str) -> Path:
    """
    Return the path of *name* in the cache, whether it exists or not.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "btrfs-snapshotter" / name


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """
    Return the directory *name* of the cache, after *build* has filled it if it is new.
    """
    directory, unfinished = place(name), place(f"{name}.unfinished")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with place(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # left by an interrupted build
            unfinished.mkdir()
            started = time.monotonic()
            print(f"building {name}", flush=True)
            build(unfinished)
            size = sum(path.lstat().st_size for path in unfinished.rglob("*"))
            print(f"built {name}: {size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s", flush=True)
            unfinished.rename(directory)
    return directory
