"""
What a snapshot holds as a tar, and a snapshot from one: with owners, modes, times to the nanosecond, extended
attributes, hard links, holes, devices, FIFOs, and names of any bytes.

The format is PAX. Extended attributes are ``SCHILY.xattr`` and files with holes GNU's sparse format 1.0: GNU tar and
bsdtar read and write both. Paths of more than 4,095 bytes are refused.
"""

import contextlib
import os
import stat
import tarfile
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from snapshotter.archive.format import _TYPES, _opened
from snapshotter.archive.packing import pack
from snapshotter.archive.unpacking import _HEADERS, unpack
from snapshotter.contract import Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    Error,
    NotFoundError,
    quoted,
    translating,
)
from snapshotter.mounting import mounted

if TYPE_CHECKING:
    from snapshotter.client import Client

_HEADERS |= {tarfile.GNUTYPE_LONGLINK}
_TYPES |= {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFLNK: tarfile.SYMTYPE}


def save(store: Snapshotter, key: str, stream: IO[bytes]) -> None:
    """
    Write the content of the snapshot *key*, of any kind, to *stream* as a tar; sockets are left out.

    That of an active one is not of one moment: `Snapshotter.fork` makes one that is.

    Raises:
        NotFoundError: No snapshot has the key.
        DataLossError: Its subvolume is gone, also in the middle.
        FailedPreconditionError: Files went or became shorter meanwhile, something is mounted in it, or a path is too
            long.
    """
    path = store.subvolume(key)
    with translating(f"export snapshot {quoted(key)}"), _opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        try:
            pack(fd, stream)
        finally:
            # Nothing can be found in one that was destroyed meanwhile, which looks like an end.
            if os.stat(path).st_dev != os.fstat(fd).st_dev:
                raise DataLossError(f"snapshot {quoted(key)} was removed meanwhile")


def load(
    store: "Snapshotter | Client",
    key: str,
    stream: IO[bytes],
    parent: str = "",
    labels: Mapping[str, str] | None = None,
) -> None:
    """
    Make the committed snapshot *key* of the tar that *stream* has, on top of *parent* or of nothing; whole or not at
    all. Compressed ones are read, too. Needs CAP_SYS_ADMIN.

    What *parent* has in the place of a member goes; there is no member that only deletes.

    Raises:
        AlreadyExistsError: *key* is taken.
        InvalidArgumentError: It is no tar, it is damaged or cut off, or a member would be outside or behind a link;
            and as `Snapshotter.prepare`.
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
            _opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as fd,
        ):
            unpack(stream, fd)
        store.commit(key, temporary, labels)
    except BaseException:
        with contextlib.suppress(Error):
            store.remove(temporary)
            store.cleanup()
        raise


# -- writing


# -- reading
