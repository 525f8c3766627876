"""
Devices below an open store: the counters of their refused writes, and the device node that mounts name.
"""

import errno
import os
import time

from pybtrfs import device, space
from pybtrfs.device import Node
from snapshotter.store.counters import Counters

RECENT_SECONDS = 1.0  # validity of a reading, because each takes several system calls, and each call drops the GIL


class Devices:
    """
    The devices of the filesystem of *fd*.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._counters = Counters()
        self._counters_time = -RECENT_SECONDS
        self._node = Node("", "")
        self._node_time = -RECENT_SECONDS

    def counters(self, *, recent: bool = False) -> Counters:
        """
        Return the counters of refused writes.

        Args:
            recent: Accept counters that are up to a second old.
        """
        now = time.monotonic()
        if not recent or now - self._counters_time >= RECENT_SECONDS:
            self._counters, self._counters_time = self._read_counters(), now
        return self._counters

    def _read_counters(self) -> Counters:
        devices: dict[int, int] = {}
        missing = set()
        for each in device.iterate(self._fd):
            state = device.get_state(self._fd, each)
            if state.seed:
                continue  # nothing is written to a seed
            if state.missing:
                missing.add(each.devid)
            try:
                stats = device.get_stats(self._fd, each.devid)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue  # removed since it was listed
            devices[each.devid] = stats.write_errs + stats.flush_errs
        return Counters(sum(devices.values()), devices, space.get_survivable(self._fd), frozenset(missing))

    def node(self) -> str:
        """
        Return the path of a device node by which the filesystem can be mounted.
        """
        now = time.monotonic()
        # A reading is kept for a second, but no longer than the device is one of the filesystem.
        removed = self._node.link and not os.path.lexists(self._node.link)
        if removed or now - self._node_time >= RECENT_SECONDS:
            self._node, self._node_time = device.find_node(self._fd), now
        return self._node.path
