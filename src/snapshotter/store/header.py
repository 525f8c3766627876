"""
Header of a store: the record of the store itself.
"""

from collections.abc import Mapping
from typing import NamedTuple

from snapshotter.store import records


class Header(NamedTuple):
    """
    The record of the store itself.

    Attributes:
        identity: The filesystem, subvolume and inode that the store was made in. A copy has a different identity.
        client: The owner of the snapshots; empty until the first snapshot.
        id_limit: Ids below this limit may have been taken.
        suspect: The disk may have refused data of active snapshots whose id is below this limit.
    """

    uuid: str
    identity: Mapping[str, str]
    client: str = ""
    id_limit: int = 1
    suspect: int = 0


def decode(data: bytes) -> Header:
    """
    Decode the header of a store.

    Raises:
        DamagedError: *data* is not a header, or its checksum does not match.
    """
    values = records.unseal(data)
    del values["crc"], values["format"]
    try:
        return Header(**values)
    except TypeError as error:
        raise records.DamagedError(str(error)) from error


def new_uuid() -> str:
    """
    Return a random uuid for a new store.
    """
    from uuid import uuid4  # slow to import, and not needed to open a store

    return str(uuid4())
