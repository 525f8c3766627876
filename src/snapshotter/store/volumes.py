"""
Volumes: the operations on subvolumes that the contract needs from a filesystem.

This layer knows directories and subvolumes, but no keys or kinds. A record is opaque bytes on a directory. Every
change either is one kernel transaction, or leaves a state that `Volumes.inspect` can tell from a complete change.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Protocol

from pybtrfs.mountinfo import MountTable
from snapshotter.model import IdMap, Measured, Mount
from snapshotter.store.counters import Counters
from snapshotter.store.layout import Directory, Place
from snapshotter.store.record_storage import RecordStorage

MountMode = Literal["auto", "btrfs", "bind"]


class Contents(NamedTuple):
    """
    The contents of a snapshot's directory.

    Attributes:
        fs: `FS` is a subvolume.
        layer: `LAYER` is a read-only subvolume.
        anything: The directory is not empty.
        unexpected: The names of all entries, if neither `FS` nor `LAYER` is a subvolume.
        writable: `LAYER` is a writable subvolume, so it may be incomplete or changed.
        unreadable: The kernel's error for each of `FS` and `LAYER` that cannot be read, and so counts as a subvolume.
    """

    fs: bool = False
    layer: bool = False
    anything: bool = False
    unexpected: tuple[str, ...] = ()
    writable: bool = False
    unreadable: Mapping[str, str] = MappingProxyType({})


class Volumes(Protocol):
    """
    The subvolumes of one store.

    Methods raise the OSErrors of the kernel, and FailedPreconditionError for a state that the caller can cure.
    """

    record_storage: ClassVar[RecordStorage]
    """
    The storage of the directories' records.
    """

    record_limit: int
    """
    The largest record that needs no pieces, in bytes.
    """

    def __init__(self, root: str, mount_mode: MountMode) -> None: ...

    def close(self) -> None: ...

    def check_root(self) -> None:
        """
        Check that mounts by path lead into this store.

        Raises:
            UnavailableError: The path of the root leads elsewhere, as after a rollback of the root, or above it.
        """

    @staticmethod
    def make_root(path: str) -> None:
        """
        Create the directory of a new store.
        """

    def make_empty(self, root_fd: int) -> None:
        """
        Create the read-only `EMPTY` below the root, unless it exists.
        """

    def identity(self) -> dict[str, str]:
        """
        Return values that differ between the root and every copy of the root.
        """

    def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
        """
        Return the record of the directory at *place*, None without a record, and the contents of the directory.

        The record is read first, so the contents may be newer than the record.

        Raises:
            FileNotFoundError: *place* does not exist.
            NotADirectoryError: *place* is not a directory.
        """

    def create(self, directory: Directory) -> None:
        """
        Create an empty `FS`, mode 0755; durable after `barrier`.
        """

    def snapshot(self, layer: Place, place: Place, record: bytes) -> None:
        """
        Create a directory at *place* with *record*, and in it `FS`, a writable snapshot of *layer*; durable.

        Raises:
            FileExistsError: *place* exists.
        """

    def fork(self, source: Place, directory: Directory) -> None:
        """
        Create `FS`, a writable snapshot of *source*, active or a layer, with all data written so far; durable.
        """

    def freeze(self, directory: Directory) -> None:
        """
        Create `LAYER`, a read-only snapshot of `FS` with all data written so far; durable.

        Replaces the `LAYER` of an earlier commit that failed.
        """

    def destroy(self, directory: Directory, name: str, mounts: MountTable) -> None:
        """
        Destroy the subvolume *name* and all subvolumes nested in it, if it exists. Not durable.

        Raises:
            OSError: EBUSY: the subvolume or a nested subvolume is in *mounts*. Also all errors of the kernel.
        """

    def check_readable(self, directory: Directory, name: str, base_transid: int) -> None:
        """
        Read the part of the subvolume *name* that the kernel will read after the subvolume is destroyed, if it exists.

        Args:
            base_transid: The generation at which `LAYER` began to differ from its parent; 0 if it is unknown.

        Raises:
            OSError: A block is damaged: without it, the kernel would turn the whole filesystem read-only.
        """

    def barrier(self, fd: int) -> None:
        """
        Make the record of the directory *fd*, and all changes in the directory, durable.
        """

    def verify(self) -> None:
        """
        Sync the filesystem, and raise OSError if the disk refused data since the last call.
        """

    def write_errors(self, *, recent: bool = False) -> Counters:
        """
        Return the counters of writes that the devices have refused.

        Args:
            recent: Accept counters that are up to a second old.
        """

    def reclaim(self, seconds: float) -> None:
        """
        Free the space of destroyed subvolumes now; wait at most about *seconds*.
        """

    def mounts(self) -> MountTable:
        """
        Return the mount table, read after the call began.
        """

    def base_transid(self, directory: Directory) -> int:
        """
        Return the generation at which `FS` began; later changes count as its usage.
        """

    def uuid(self, directory: Directory, name: str) -> str:
        """
        Return the uuid of the subvolume *name* in hexadecimal digits; empty if subvolumes have no uuid.
        """

    def commits(self) -> int | None:
        """
        Return a number that changes with each commit of the filesystem, up to a second late; None if it is unknown.

        Without a commit, `change_counter` stays the same. Never waits for the disk.
        """

    def change_counter(self, directory: Directory, last: tuple[int, ...] = ()) -> tuple[int, ...]:
        """
        Return numbers that change whenever the result of `measure` for `FS` may change.

        Args:
            last: The numbers at the last measurement; with them, an unchanged subvolume costs less.
        """

    def measure(self, directory: Directory, name: str, base_transid: int, parent: Directory | None) -> Measured:
        """
        Measure the changes of the subvolume *name* since generation *base_transid*, against `LAYER` of *parent*.
        """

    def owner(self, place: Place) -> int:
        """
        Return the uid of the root directory of the subvolume at *place*.
        """

    def mount(self, place: Place, *, read_only: bool, id_map: IdMap | None = None) -> Mount:
        """
        Return the mount that shows the subvolume at *place*, with the owners mapped by *id_map*.
        """


def bind_mount(place: Place, *, read_only: bool, id_map: IdMap | None) -> Mount:
    """
    Return the mount that shows the directory at *place* by its path, with the owners mapped by *id_map*.
    """
    options = ("rbind", "ro" if read_only else "rw", *(id_map.options if id_map else ()))
    return Mount("bind", place.path, options=options)
