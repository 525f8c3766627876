"""
Export of a snapshot as a tar stream, and import of a tar stream as a committed snapshot.

A tar keeps owners, modes, times to the nanosecond, extended attributes, hard links, holes, devices, FIFOs, and names of
any bytes. The format is PAX, with extended attributes as ``SCHILY.xattr`` headers, and files with holes in GNU's sparse
format 1.0. GNU tar and bsdtar read and write both. Paths of more than 4,095 bytes are refused.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from pybtrfs.path import owned
from snapshotter.archive import packing, unpacking
from snapshotter.contract import Snapshotter
from snapshotter.errors import AlreadyExistsError, DataLossError, Error, NotFoundError, quoted, translating
from snapshotter.mounting import mounted

if TYPE_CHECKING:
    from snapshotter.client import Client

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def estimate_size(store: Snapshotter, key: str) -> int:
    """
    Return about how many bytes `save` writes. Reads the status of every file in the snapshot.

    Raises:
        NotFoundError: No snapshot has the key.
        DataLossError: The subvolume of the snapshot is gone.
        FailedPreconditionError: Something is mounted in the snapshot, or a path in it is too long.
    """
    with translating(f"export snapshot {quoted(key)}"), owned(os.open(store.subvolume(key), _DIRECTORY)) as fd:
        return packing.estimate_size(fd)


def save(store: Snapshotter, key: str, stream: IO[bytes]) -> None:
    """
    Write the content of the snapshot *key*, of any kind, to *stream* as a tar. Sockets are left out.

    An active snapshot can change while it is read; export a `Snapshotter.fork` for a consistent copy.

    Raises:
        NotFoundError: No snapshot has the key.
        DataLossError: The subvolume of the snapshot is gone, or was destroyed during the export.
        FailedPreconditionError: A file was deleted or truncated during the export, something is mounted in the
            snapshot, or a path in it is too long.
    """
    path = store.subvolume(key)
    with translating(f"export snapshot {quoted(key)}"), owned(os.open(path, _DIRECTORY)) as fd:
        try:
            packing.pack(fd, stream)
        finally:
            # A destroyed subvolume looks empty, so packing ends early without an error.
            if os.stat(path).st_dev != os.fstat(fd).st_dev:
                raise DataLossError(f"snapshot {quoted(key)} was removed during the export")


def load(
    store: "Snapshotter | Client",
    key: str,
    stream: IO[bytes],
    parent: str = "",
    labels: Mapping[str, str] | None = None,
) -> None:
    """
    Make the committed snapshot *key* from the tar in *stream*, completely or not at all.

    The tar may be compressed with gzip, bzip2 or xz. A member replaces a file of the same path in *parent*. No member
    can only delete a file.

    Needs ``CAP_SYS_ADMIN``.

    Args:
        parent: The committed snapshot below; empty for none.

    Raises:
        AlreadyExistsError: *key* is taken.
        FailedPreconditionError: A member exceeds a limit of btrfs.
        InvalidArgumentError: The stream is not a tar, is damaged or ends early. A member leads out of the root, or
            through a symbolic link. An argument breaks a rule of `Snapshotter.prepare`.
        NotFoundError: *parent* does not exist.
        ResourceExhaustedError: The disk is full.
    """
    with contextlib.suppress(NotFoundError):
        store.stat(key)
        raise AlreadyExistsError(f"snapshot {quoted(key)} already exists")
    temporary = f"{key}.import-{os.urandom(6).hex()}"
    mounts = store.prepare(temporary, parent)
    try:
        with (
            translating(f"import snapshot {quoted(key)}"),
            mounted(mounts) as path,
            owned(os.open(path, _DIRECTORY)) as fd,
        ):
            unpacking.unpack(stream, fd)
        store.commit(key, temporary, labels)
    except BaseException:
        with contextlib.suppress(Error):
            store.remove(temporary)
            store.cleanup()
        raise
