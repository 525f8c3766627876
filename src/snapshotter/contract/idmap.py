"""
Id maps of containers with a user namespace, which containerd gives as labels of their snapshots.

A client that has the capability ``remap-ids`` mounts such a snapshot with the options ``uidmap`` and ``gidmap``. The
files on disk keep the owners that the image gave them, and a diff of the snapshot has these owners.
"""

import re
from collections.abc import Iterable, Mapping

from snapshotter.model import IdMap

__all__ = ["read"]

UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"

# containerd sets it for the layers of an image, together with labels that the image chose.
IMAGE_LAYER = "containerd.io/snapshot.ref"

_EXTENT = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})", re.ASCII)
_MAX_EXTENTS = 340  # the kernel's limit
_END = 1 << 32  # above the largest id

_Extent = tuple[int, int, int]  # the first id in the container, the first id on the host, the number of ids


def read(labels: Mapping[str, str]) -> IdMap | None:
    """
    Return the id map in *labels*, or None without one that the kernel would take.

    Both labels have the form ``CONTAINER:HOST:SIZE[,...]``, and both must map the container's root.
    """
    if IMAGE_LAYER in labels:
        return None
    uids, gids = _extents(labels.get(UID_MAPPING, "")), _extents(labels.get(GID_MAPPING, ""))
    owner = next((host for container, host, _ in uids if container == 0), None)
    if owner is None or all(container for container, _, _ in gids):
        return None
    return IdMap(_text(uids), _text(gids), owner)


def _extents(text: str) -> list[_Extent]:
    """
    Return the extents in *text*; none if the kernel would refuse one of them.
    """
    found = [_EXTENT.fullmatch(part) for part in text.split(",")]
    extents = [(int(match[1]), int(match[2]), int(match[3])) for match in found if match]
    valid = len(extents) == len(found) <= _MAX_EXTENTS and all(
        _is_disjoint((extent[side], extent[2]) for extent in extents) for side in (0, 1)
    )
    return extents if valid else []


def _is_disjoint(ranges: Iterable[tuple[int, int]]) -> bool:
    """
    Return whether *ranges*, each a first id and a size, are not empty and share no id.
    """
    end = 0
    for first, size in sorted(ranges):
        if first < end or not size:
            return False
        end = first + size
    return end <= _END


def _text(extents: Iterable[_Extent]) -> str:
    return ",".join(":".join(map(str, extent)) for extent in extents)
