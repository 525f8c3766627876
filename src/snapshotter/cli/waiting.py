"""
Waiting until the kernel has freed the space of deleted subvolumes.
"""

import contextlib
import time
from collections.abc import Callable, Collection

from pybtrfs import filesystem, subvolume, tree_search
from snapshotter.cli.progress import progress
from snapshotter.errors import translating

_LOOK_SECONDS = 0.5


def wait(root: str, subvolids: Collection[int], cleanup: Callable[[], None] = lambda: None) -> set[int]:
    """
    Call *cleanup* until it destroys no more of *subvolids*, and wait until the kernel has cleaned the destroyed ones.

    Return the ids of subvolumes that are still in use, and so not destroyed.
    """
    with (
        translating(f"wait for the space of {root!r}"),
        progress("waiting for the space of", len(subvolids), str) as report,
    ):
        if not tree_search.is_permitted(root):
            return _wait_for_all(root, set(subvolids), cleanup)
        held = set(subvolids)
        while True:
            before = len(held)
            cleanup()
            held, cleaning = _left(root, held)
            while cleaning:
                report(len(subvolids) - len(held) - len(cleaning))
                filesystem.sync(root)  # wakes the cleaner, which can sleep for 30 s
                with contextlib.suppress(TimeoutError):
                    subvolume.wait_deleted(root, min(cleaning), _LOOK_SECONDS)
                _, cleaning = _left(root, cleaning)
            if len(held) in (0, before):
                return held


def _wait_for_all(root: str, subvolids: set[int], cleanup: Callable[[], None]) -> set[int]:
    """
    Wait until the kernel has cleaned every destroyed subvolume of the filesystem, because it tells only their number.
    """
    cleanup()
    held = subvolids.intersection(entry.info.id for entry in subvolume.iterate(root, top=0))
    while subvolume.count_deleted(root):
        filesystem.sync(root)
        time.sleep(_LOOK_SECONDS)
    return held


def _left(root: str, subvolids: Collection[int]) -> tuple[set[int], set[int]]:
    """
    Return the ids that are not deleted, and the ids that are deleted and not cleaned.
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
