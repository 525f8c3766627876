"""
Waiting for the space of what was removed.
"""

import contextlib
from collections.abc import Callable, Collection

from pybtrfs import filesystem, subvolume
from snapshotter.cli.progress import progress
from snapshotter.errors import translating

_LOOK_SECONDS = 0.5


def wait(root: str, subvolids: Collection[int], cleanup: Callable[[], None] = lambda: None) -> set[int]:
    """
    Have *cleanup* destroy subvolumes of the store at *root*, and wait until the kernel has cleaned them; gives those
    that are held, and stay for now.
    """
    with (
        translating(f"wait for the space of {root!r}"),
        progress("waiting for the space of", len(subvolids), str) as report,
    ):
        held = set(subvolids)
        while True:
            before = len(held)
            cleanup()
            held, cleaning = _left(root, held)
            while cleaning:
                report(len(subvolids) - len(held) - len(cleaning))
                filesystem.sync(root)  # wakes the cleaner, which may sleep for half a minute
                with contextlib.suppress(TimeoutError):
                    subvolume.wait_deleted(root, min(cleaning), _LOOK_SECONDS)
                _, cleaning = _left(root, cleaning)
            if len(held) in (0, before):
                return held


def _left(root: str, subvolids: Collection[int]) -> tuple[set[int], set[int]]:
    """
    Those that are not deleted, and those that are not cleaned.
    """
    held, cleaning = set(), set()
    for subvolid in subvolids:
        try:
            subvolume.wait_deleted(root, subvolid, timeout=0)
        except FileExistsError:
            held.add(subvolid)
        except TimeoutError:
            cleaning.add(subvolid)
    return held, cleaning
