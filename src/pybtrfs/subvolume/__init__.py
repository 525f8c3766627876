"""
Subvolumes: create, delete, inspect and list them.

A *target* is an existing file: a path, a file descriptor or an open file. A *filesystem* is any file of the filesystem.
A *dest* is a name to create or remove: a path, or an open directory and a name in it. Keep an open file that you give
to an iterator open until the iteration ends.
"""

from pybtrfs.subvolume.changes import Change, changes
from pybtrfs.subvolume.creation import Batch, batch, create, snapshot, temporary_snapshot
from pybtrfs.subvolume.deletion import (
    DeletedSubvolume,
    count_deleted,
    delete,
    delete_by_id,
    iterate_deleted,
    wait_deleted,
)
from pybtrfs.subvolume.info import (
    Subvolume,
    SubvolumeInfo,
    ancestors,
    find_received_uuid,
    find_uuid,
    get_default,
    get_id,
    get_info,
    get_path,
    get_read_only,
    get_root,
    is_subvolume,
    origins,
    set_default,
    set_read_only,
)
from pybtrfs.subvolume.listing import (
    SubvolumeEntry,
    SubvolumeRef,
    children,
    get_child_path,
    get_path_below,
    iterate,
    iterate_below,
)

__all__ = [
    "Batch",
    "Change",
    "DeletedSubvolume",
    "Subvolume",
    "SubvolumeEntry",
    "SubvolumeInfo",
    "SubvolumeRef",
    "ancestors",
    "batch",
    "changes",
    "children",
    "count_deleted",
    "create",
    "delete",
    "delete_by_id",
    "find_received_uuid",
    "find_uuid",
    "get_child_path",
    "get_default",
    "get_id",
    "get_info",
    "get_path",
    "get_path_below",
    "get_read_only",
    "get_root",
    "is_subvolume",
    "iterate",
    "iterate_below",
    "iterate_deleted",
    "origins",
    "set_default",
    "set_read_only",
    "snapshot",
    "temporary_snapshot",
    "wait_deleted",
]
