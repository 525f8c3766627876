"""
Pieces of records: further xattrs of a directory, for a record that is too large for one xattr.

A directory has pieces only while its record has format 2, so recovery finds every piece without a search. A write takes
fresh numbers, so the pieces of the former record stay whole until `tidy` deletes them.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

from snapshotter.store import records
from snapshotter.store.record_storage import XATTR
from snapshotter.store.records import DamagedError

_PREFIX = f"{XATTR}."


def join(fd: int, data: bytes) -> bytes:
    """
    Return the whole record of the directory *fd*, whose xattr holds *data*.

    If a piece is missing, the record ends before the piece, and so is damaged. Damaged *data* is returned unchanged.
    """
    if not records.is_spilled(data):
        return data
    try:
        pieces = records.named_pieces(data)
    except DamagedError:
        return data
    return b"".join(_read(fd, pieces)) if pieces else data


def _read(fd: int, pieces: range) -> Iterator[bytes]:
    for number in pieces:
        try:
            yield os.getxattr(fd, f"{_PREFIX}{number}")
        except OSError as error:
            if error.errno == errno.ENODATA:
                return
            raise


def mark(fd: int) -> bytes:
    """
    Give the record of the directory *fd* format 2, before the directory gets pieces, and return its xattr.
    """
    data = os.getxattr(fd, XATTR)
    if not records.is_spilled(data):
        with contextlib.suppress(DamagedError):
            data = records.reformatted(data, records.SPILLED)
            os.setxattr(fd, XATTR, data)
    return data


def write(fd: int, record: bytes, limit: int) -> None:
    """
    Replace the record of the directory *fd*, which may have pieces, atomically.

    Args:
        limit: The largest record that needs no pieces, in bytes.
    """
    if len(record) <= limit:
        data = records.reformatted(record, records.SPILLED)
    else:
        size = 2 * limit  # an xattr that is never replaced may fill nearly a whole node
        parts = [record[at : at + size] for at in range(0, len(record), size)]
        first = max(_numbers(fd), default=0) + 1
        for number, part in enumerate(parts, first):
            os.setxattr(fd, f"{_PREFIX}{number}", part)
        data = records.seal_pieces(range(first, first + len(parts)))
    os.setxattr(fd, XATTR, data)


def tidy(fd: int) -> bool:
    """
    Delete all pieces that the record of the directory *fd* does not name, and return whether it names some.

    If it names none, it has format 1 again.

    Raises:
        DamagedError: The xattr is damaged, so nothing was deleted.
    """
    data = os.getxattr(fd, XATTR)
    named = records.named_pieces(data)
    for number in _numbers(fd):
        if number not in named:
            os.removexattr(fd, f"{_PREFIX}{number}")
    if not named:
        os.setxattr(fd, XATTR, records.reformatted(data, records.WHOLE))
    return bool(named)


def _numbers(fd: int) -> list[int]:
    suffixes = [name.removeprefix(_PREFIX) for name in os.listxattr(fd) if name.startswith(_PREFIX)]
    return [int(suffix) for suffix in suffixes if suffix.isdecimal()]
