"""
The subvolumes of a store: what the contract asks of a filesystem, and btrfs doing it.

Knows directories and subvolumes, no keys or kinds; a record is bytes that a directory carries. Every change is one
kernel transaction or leaves what `Volumes.inspect` tells apart.
"""

from typing import ClassVar, Literal, NamedTuple, Protocol

from pybtrfs.mountinfo import MountTable
from snapshotter.model import Measured, Mount
from snapshotter.store.layout import Directory, Place
from snapshotter.store.record_storage import RecordStorage

MountMode = Literal["btrfs", "bind"]


class Contents(NamedTuple):
    """
    What stands in a snapshot's directory.

    *layer* means a whole, read-only one, *writable* another one; *unexpected* are the names of all else, where it
    matters: where there is no subvolume of a snapshot.
    """

    fs: bool
    layer: bool
    anything: bool
    unexpected: tuple[str, ...] = ()
    writable: bool = False


class Volumes(Protocol):
    """
    The subvolumes of one store.

    Methods raise OSError as the kernel does; what they cannot do for a reason that a caller can cure is a
    FailedPreconditionError.
    """

    record_storage: ClassVar[RecordStorage]
    """
    How a directory carries its record.
    """

    record_limit: int
    """
    The largest record that a directory can carry, in bytes.
    """

    def __init__(self, root: str, mount_mode: MountMode) -> None: ...

    def close(self) -> None: ...

    @staticmethod
    def make_root(path: str) -> None:
        """
        Make the directory for a new store.
        """

    def make_empty(self, root_fd: int) -> None:
        """
        Make the read-only `EMPTY` below the root, unless it is there.
        """

    def identity(self) -> dict[str, str]:
        """
        What tells the root from every copy of it.
        """

    def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
        """
        The record of the directory at *place*, None without one, and then what stands in it.

        Raises:
            FileNotFoundError: There is none.
            NotADirectoryError: It is something else.
        """

    def create(self, directory: Directory) -> None:
        """
        Make an empty `FS`, mode 0755; durable after `barrier`.
        """

    def snapshot(self, layer: Place, place: Place, record: bytes) -> None:
        """
        Make a directory at *place* with its *record*, and `FS` in it a writable copy of *layer*; durable.

        Raises:
            FileExistsError: There is one.
        """

    def fork(self, source: Place, directory: Directory) -> None:
        """
        Make `FS` a writable copy of the active *source*, with all data written so far; durable.
        """

    def freeze(self, directory: Directory) -> None:
        """
        Make `LAYER` a read-only copy of `FS`; durable, with all data written so far.
        """

    def destroy(self, directory: Directory, name: str, mounts: MountTable) -> None:
        """
        Destroy a subvolume and what is nested in it; one that is not there is fine. Not durable.

        Raises:
            OSError: EBUSY when it or a nested one is in *mounts*; else as the kernel says.
        """

    def barrier(self, fd: int) -> None:
        """
        Make what was done in the directory *fd*, its record included, durable.
        """

    def verify(self) -> None:
        """
        Raise OSError if data of this filesystem was lost on its way to the disk since the last call.
        """

    def write_errors(self, *, recent: bool = False) -> int:
        """
        How many writes the devices have refused so far, or, *recent*, a second ago at most.
        """

    def reclaim(self, seconds: float) -> None:
        """
        Have the space of destroyed subvolumes given back now; wait for about *seconds*.
        """

    def mounts(self) -> MountTable:
        """
        What is mounted, read after the call.
        """

    def base_transid(self, directory: Directory) -> int:
        """
        The generation from which changes of `FS` count.
        """

    def change_counter(self, directory: Directory) -> int:
        """
        Moves whenever `measure` of `FS` may give something else.
        """

    def measure(self, directory: Directory, name: str, base_transid: int, parent: Directory | None) -> Measured:
        """
        What *name* added since *base_transid* to its parent's `LAYER`.
        """

    def mount(self, place: Place, *, read_only: bool) -> Mount:
        """
        How to mount the subvolume at *place*.
        """
