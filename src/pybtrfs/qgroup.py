"""
Quota groups: ids, limits and inheritance. Nothing here calls the kernel.
"""

from typing import NamedTuple

_LEVEL_SHIFT = 48


class QgroupLimit(NamedTuple):
    """
    The limits of a qgroup, in bytes; None is no limit.

    Attributes:
        max_rfer: The limit on referenced bytes, shared or not.
        max_excl: The limit on exclusive bytes, which no other qgroup references.
    """

    max_rfer: int | None = None
    max_excl: int | None = None


class QgroupInherit(NamedTuple):
    """
    The qgroups that a new subvolume joins, and the limits of its own qgroup.

    With simple quotas, a subvolume that is created without a QgroupInherit joins the qgroups of the subvolume that
    contains it. An empty QgroupInherit prevents that.

    Attributes:
        groups: The ids of the qgroups to join.
        limit: The limits of the new subvolume's own qgroup.
    """

    groups: tuple[int, ...] = ()
    limit: QgroupLimit | None = None


def qgroupid(level: int, number: int) -> int:
    """
    Return the id of the qgroup *level*/*number*.

    A subvolume's own qgroup has the level 0 and the subvolume's id as number.

    Raises:
        ValueError: *level* does not fit into 16 bits, or *number* into 48.
    """
    if not 0 <= level < 1 << 16 or not 0 <= number < 1 << _LEVEL_SHIFT:
        raise ValueError(f"'{level}/{number}' is not a qgroup id")
    return level << _LEVEL_SHIFT | number
