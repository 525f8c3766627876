"""
Header of a store: the store's own record.
"""

from collections.abc import Mapping
from typing import NamedTuple

from snapshotter.store import records


class Header(NamedTuple):
    """
    The store's own record.

    Attributes:
        identity: The filesystem and the very directory the store was made in; a copy has another.
        client: Whose snapshots these are; empty until the first one.
        id_limit: Ids below it may have been handed out.
        suspect: Actives with an id below it may have lost data to the disk.
    """

    uuid: str
    identity: Mapping[str, str]
    client: str = ""
    id_limit: int = 1
    suspect: int = 0


def _header(data: bytes) -> Header:
    values = records.unseal(data)
    del values["crc"], values["format"]
    try:
        return Header(**values)
    except TypeError as error:
        raise records.DamagedError(str(error)) from error


def _new_uuid() -> str:
    from uuid import uuid4  # of no use to whoever opens a store, and slow to import

    return str(uuid4())
