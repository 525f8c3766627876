"""
Quota groups: their ids, and what a new subvolume takes of them. Nothing here calls the kernel.
"""

from typing import NamedTuple

_LEVEL_SHIFT = 48


class QgroupLimit(NamedTuple):
    """
    What a subvolume may hold, in bytes; None is no limit.

    Attributes:
        max_rfer: Of everything it references, shared or not.
        max_excl: Of what nothing else shares.
    """

    max_rfer: int | None = None
    max_excl: int | None = None


class QgroupInherit(NamedTuple):
    """
    What a new subvolume is given at once: the qgroups it joins, and the limit of its own.

    With simple quotas a subvolume made inside another one joins that one's qgroups, unless this is given, even empty.
    """

    groups: tuple[int, ...] = ()
    limit: QgroupLimit | None = None


def qgroupid(level: int, number: int) -> int:
    """
    Return the id of the qgroup written *level*/*number*. Level 0 is that of the subvolumes, whose id is *number*.

    Raises:
        ValueError: *level* or *number* does not fit its 16 or 48 bits.
    """
    if not 0 <= level < 1 << 16 or not 0 <= number < 1 << _LEVEL_SHIFT:
        raise ValueError(f"'{level}/{number}' is not a qgroup")
    return level << _LEVEL_SHIFT | number
