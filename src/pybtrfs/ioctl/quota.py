"""
The ioctls on quotas and quota groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pybtrfs import kernel
from pybtrfs._ffi import lib, new

if TYPE_CHECKING:
    from pybtrfs._ffi import CData

QUOTA_CTL_ENABLE: int = lib.PYBTRFS_QUOTA_CTL_ENABLE
QUOTA_CTL_DISABLE: int = lib.PYBTRFS_QUOTA_CTL_DISABLE
QUOTA_CTL_ENABLE_SIMPLE_QUOTA: int = lib.PYBTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA

Limit = tuple[int | None, int | None]
"""The limits of a qgroup on referenced and on exclusive bytes; None is no limit."""

Inherit = tuple[Sequence[int], Limit | None]
"""The qgroups that a new subvolume joins, and the limits of its own qgroup."""


def qgroup_inherit(inherit: Inherit) -> CData:
    """
    Return *inherit* as a ``struct btrfs_qgroup_inherit``.
    """
    groups, limit = inherit
    values: dict[str, object] = {"num_qgroups": len(groups), "qgroups": groups}
    if limit is not None:
        values |= {"flags": lib.PYBTRFS_QGROUP_INHERIT_SET_LIMITS, "lim": _limits(limit)}
    return new("struct pybtrfs_qgroup_inherit *", values)


def _limits(limit: Limit) -> dict[str, int]:
    max_rfer, max_excl = limit
    values = {"flags": 0}
    if max_rfer is not None:
        values["flags"] |= lib.PYBTRFS_QGROUP_LIMIT_MAX_RFER
        values["max_rfer"] = max_rfer
    if max_excl is not None:
        values["flags"] |= lib.PYBTRFS_QGROUP_LIMIT_MAX_EXCL
        values["max_excl"] = max_excl
    return values


def quota_ctl(fd: int, cmd: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_QUOTA_CTL", new("struct pybtrfs_ioctl_quota_ctl_args *", {"cmd": cmd}))


def quota_rescan_wait(fd: int) -> None:
    kernel.current.ioctl(fd, "BTRFS_IOC_QUOTA_RESCAN_WAIT")


def qgroup_create(fd: int, qgroupid: int, *, create: bool = True) -> None:
    """
    Create the qgroup *qgroupid*, or destroy it if *create* is false.
    """
    arguments = new("struct pybtrfs_ioctl_qgroup_create_args *", {"create": create, "qgroupid": qgroupid})
    kernel.current.ioctl(fd, "BTRFS_IOC_QGROUP_CREATE", arguments)


def qgroup_limit(fd: int, qgroupid: int, limit: Limit) -> None:
    arguments = new("struct pybtrfs_ioctl_qgroup_limit_args *", {"qgroupid": qgroupid, "lim": _limits(limit)})
    kernel.current.ioctl(fd, "BTRFS_IOC_QGROUP_LIMIT", arguments)
