"""
Test support for programs that use `Snapshotter`: stores without btrfs and without root, and a wait for background work.

::

    with Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes) as store:
        store.prepare("key")
        settle(store)
"""

import contextlib
import os
import sys
from typing import ClassVar

from pybtrfs.mountinfo import MountTable
from pybtrfs.path import open_directory, owned
from pybtrfs.testing import copy_tree, remove_tree
from snapshotter.contract import Snapshotter
from snapshotter.model import IdMap, Measured, Mount
from snapshotter.store import usage
from snapshotter.store.counters import Counters
from snapshotter.store.layout import EMPTY, FS, LAYER, Directory, Place
from snapshotter.store.record_storage import Files, RecordStorage
from snapshotter.store.volumes import Contents, MountMode, bind_mount

_NEW = ".new"  # suffix of an incomplete copy


def settle(store: Snapshotter, *, seconds: float = 60.0) -> None:
    """
    Wait until the background work of *store* is done, without its usual delays.

    Afterwards all records are up to date, and the usage of each committed snapshot is known. The subvolumes of removed
    snapshots are destroyed, unless they are mounted or otherwise in use.

    Raises:
        TimeoutError: The work is not done within *seconds*.
    """
    if not store.opened.worker.finish(seconds):
        raise TimeoutError(f"the background work of store {store.root!r} is not done within {seconds} s")


class DirectoryVolumes:
    """
    `snapshotter.store.volumes.Volumes` on plain directories.

    The contract is the same as on btrfs. But a snapshot is a copy, which takes time and space. No change is durable. A
    committed layer can be written to through its path.
    """

    record_storage: ClassVar[RecordStorage] = Files()
    record_limit = sys.maxsize  # a file holds every record

    def __init__(self, root: str, mount_mode: MountMode) -> None:
        self._status = os.stat(root)
        self._measured = 0

    def close(self) -> None:
        pass

    def check_root(self) -> None:
        pass

    @staticmethod
    def make_root(path: str) -> None:
        os.mkdir(path)

    def make_empty(self, root_fd: int) -> None:
        with contextlib.suppress(FileExistsError):
            _make_directory(EMPTY, root_fd)

    def identity(self) -> dict[str, str]:
        return {"device": str(self._status.st_dev), "inode": str(self._status.st_ino)}

    def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
        with owned(open_directory(place.dir_fd, place.name)) as fd:
            record = self.record_storage.read(fd)
            names = {name for name in os.listdir(fd) if not name.startswith("record")}
        unexpected = names - {FS, LAYER, FS + _NEW, LAYER + _NEW}
        return record, Contents(FS in names, LAYER in names, bool(names), tuple(sorted(unexpected)))

    def create(self, directory: Directory) -> None:
        _make_directory(FS, directory.fd)

    def snapshot(self, layer: Place, place: Place, record: bytes) -> None:
        os.close(self.record_storage.make_directory(place.dir_fd, place.name, record))
        _copy(layer.path, os.path.join(place.path, FS))

    def fork(self, source: Place, directory: Directory) -> None:
        _copy(source.path, os.path.join(directory.path, FS))

    def freeze(self, directory: Directory) -> None:
        self.destroy(directory, LAYER, MountTable())
        _copy(os.path.join(directory.path, FS), os.path.join(directory.path, LAYER))

    def destroy(self, directory: Directory, name: str, mounts: MountTable) -> None:
        for leftover in (name, name + _NEW):
            with contextlib.suppress(FileNotFoundError):
                remove_tree(os.path.join(directory.path, leftover))

    def check_readable(self, directory: Directory, name: str, base_transid: int) -> None:
        pass

    def barrier(self, fd: int) -> None:
        pass

    def verify(self) -> None:
        pass

    def write_errors(self, *, recent: bool = False) -> Counters:
        return Counters()

    def reclaim(self, seconds: float) -> None:
        pass

    def mounts(self) -> MountTable:
        return MountTable()

    def base_transid(self, directory: Directory) -> int:
        return 0

    def uuid(self, directory: Directory, name: str) -> str:
        return ""

    def commits(self) -> int | None:
        return None

    def change_counter(self, directory: Directory, last: tuple[int, ...] = ()) -> tuple[int, ...]:
        # A plain directory has no counter of changes, so return a new number each time.
        self._measured += 1
        return (self._measured,)

    def measure(self, directory: Directory, name: str, base_transid: int, parent: Directory | None) -> Measured:
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(owned(open_directory(directory.fd, name)))
            parent_fd = stack.enter_context(owned(open_directory(parent.fd, LAYER))) if parent else None
            # A copy keeps the mtime of the original, but not its ctime.
            return usage.walk(fd, parent_fd, changed_by="st_mtime_ns")

    def owner(self, place: Place) -> int:
        return os.stat(place.name, dir_fd=place.dir_fd).st_uid

    def mount(self, place: Place, *, read_only: bool, id_map: IdMap | None = None) -> Mount:
        return bind_mount(place, read_only=read_only, id_map=id_map)


def _make_directory(name: str, dir_fd: int) -> None:
    os.mkdir(name, dir_fd=dir_fd)
    os.chmod(name, 0o755, dir_fd=dir_fd)


def _copy(source: str, target: str) -> None:
    """
    Copy the tree *source* to *target* atomically.
    """
    copy_tree(source, target + _NEW)
    os.rename(target + _NEW, target)
