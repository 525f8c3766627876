"""
Counters of the writes that each device of a filesystem refused, and the conclusion from a difference of two readings.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self


class Counters(NamedTuple):
    """
    The counters at one moment.

    Attributes:
        total: The sum of the counters of all devices.
        devices: The counter of each device, by devid. None if an older release read them, or without devices.
        survives: The number of devices whose loss every block group survives.
        missing: The devices that are missing at this moment; a record does not have them.
    """

    total: int = 0
    devices: Mapping[int, int] | None = None
    survives: int = 0
    missing: frozenset[int] = frozenset()

    def to_record(self) -> Self:
        """
        Return the counters for the record of a snapshot that begins now. Its data is never written to missing devices.
        """
        return self._replace(survives=max(self.survives - len(self.missing), 0), missing=frozenset())

    def differing(self, now: "Counters") -> frozenset[int] | None:
        """
        Return the devices that may have refused a write between these counters and *now*; None if that is unknown.

        A smaller counter was reset, so the writes that were refused since are unknown. The same holds for a device that
        has been removed. A device that has been added begins with zero.
        """
        if self.devices is None or now.devices is None:
            return frozenset() if self.total == now.total else None
        before, after = self.devices, now.devices
        added = {devid for devid in after.keys() - before.keys() if after[devid]}
        return frozenset(added | {devid for devid in before if after.get(devid) != before[devid]})

    def may_have_lost(self, now: "Counters") -> bool:
        """
        Return whether data may have been lost between these counters and *now*.

        As many devices as every block group survives may differ, because another copy of each block is elsewhere. A
        missing device has no copy.
        """
        differing = self.differing(now)
        if not differing:
            return differing is None
        return len(differing | now.missing) > min(self.survives, now.survives)
