"""
Limits of btrfs that a member of a tar can exceed.
"""

import contextlib
import errno
import os
import tarfile

from pybtrfs import filesystem
from pybtrfs.errors import NotBtrfsError
from snapshotter.archive.format import attributes
from snapshotter.errors import FailedPreconditionError, quoted

_MAX_LINKS = 65_535  # BTRFS_LINK_MAX
_MAX_NAME = 255  # bytes; also of an attribute's name
_MAX_PATH = 4095  # bytes
# The rest of a node with a single item, in bytes: struct btrfs_header and struct btrfs_item.
_NODE_OVERHEAD = 101 + 25
_ATTRIBUTE_OVERHEAD = _NODE_OVERHEAD + 30  # struct btrfs_dir_item
_SYMLINK_OVERHEAD = _NODE_OVERHEAD + 21  # struct btrfs_file_extent_item up to the inline data


def exceeded(error: OSError, member: tarfile.TarInfo, fd: int) -> FailedPreconditionError | None:
    """
    Return the error that names the limit behind *error*, or None if *member* exceeds no limit.

    The kernel says ENOSPC for an attribute that is too large, as for a full disk. So the member decides, and not the
    errno alone.

    Args:
        error: The refusal of *member* by the kernel.
        fd: A file on the filesystem.
    """
    reason = ""
    if error.errno == errno.EMLINK:
        reason = f"a file has at most {_MAX_LINKS:,} hard links"
    elif error.errno in (errno.ENAMETOOLONG, errno.ENOSPC, errno.E2BIG, errno.ERANGE):
        with contextlib.suppress(NotBtrfsError):
            node_size = filesystem.get_info(fd).nodesize
            reason = _name(member, node_size) if error.errno == errno.ENAMETOOLONG else _attribute(member, node_size)
    return FailedPreconditionError(f"btrfs cannot hold member {quoted(member.name)}: {reason}") if reason else None


def _name(member: tarfile.TarInfo, node_size: int) -> str:
    for path in (member.name, member.linkname if member.islnk() else ""):
        if any(len(os.fsencode(name)) > _MAX_NAME for name in path.split("/")):
            return f"a name has at most {_MAX_NAME} bytes"
        if len(os.fsencode(path)) > _MAX_PATH:
            return f"a path has at most {_MAX_PATH:,} bytes"
    limit = min(_MAX_PATH, node_size - _SYMLINK_OVERHEAD)
    return f"the target of a symbolic link has at most {limit:,} bytes" if member.issym() else ""


def _attribute(member: tarfile.TarInfo, node_size: int) -> str:
    limit = node_size - _ATTRIBUTE_OVERHEAD
    for name, value in attributes(member).items():
        encoded = os.fsencode(name)
        if not 0 < len(encoded) <= _MAX_NAME:
            return f"the name of the extended attribute {quoted(name)} has {len(encoded)} bytes, not 1 to {_MAX_NAME}"
        size = len(encoded) + len(value)
        if size > limit:
            return (
                f"the extended attribute {quoted(name)} has {size:,} bytes with its name, "
                f"and a node of this filesystem takes {limit:,}"
            )
    return ""
