"""
Store: the open directories of a store, its header, and the ids that it hands out.
"""

import contextlib
import errno
import itertools
import os
import stat
import threading
from typing import Any

from pybtrfs import syscall
from pybtrfs.path import open_directory, owned
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    tolerating_full,
)
from snapshotter.events import Event
from snapshotter.store import header, pieces, records
from snapshotter.store.header import Header
from snapshotter.store.layout import (
    EMPTY,
    LOCK,
    QUARANTINE,
    SNAPSHOTS,
    STORE,
    Directory,
    Place,
)
from snapshotter.store.lock import Lock
from snapshotter.store.record_storage import DIRECTORY_MODE, RecordStorage
from snapshotter.store.volumes import Volumes

ID_BLOCK = 1024


class Store:
    """
    An open store: the file descriptors of its directories, and its header.
    """

    def __init__(self, root: str, volumes: Volumes) -> None:
        """
        Open the store at *root*, without its lock.

        Raises:
            FailedPreconditionError: *root* is not a store, or a newer release made it.
            DataLossError: The header is damaged.
        """
        self.root = root
        self._volumes = volumes
        self._lock = threading.Lock()
        # The paths of directories that may have pieces of records, and the xattrs that a failed change restores.
        self._spilled: set[str] = set()
        self._former: dict[str, bytes] = {}
        with contextlib.ExitStack() as stack:
            try:
                # The root may be reached through a symbolic link; no name inside a store is a link.
                self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, self.fd)
                self._store_fd = open_directory(self.fd, STORE)
                stack.callback(os.close, self._store_fd)
                self.snapshots_fd = open_directory(self.fd, SNAPSHOTS)
                stack.callback(os.close, self.snapshots_fd)
            except FileNotFoundError as error:
                raise _not_a_store(root) from error
            self.header = self._read()
            self._next_id = self.header.id_limit
            self._descriptors = stack.pop_all()

    @classmethod
    def make(cls, root: str, volumes: Volumes) -> None:
        """
        Make an empty store in the empty directory *root*, durably.

        The header comes last and makes the directory a store, so that an interrupted making can be repeated.

        Raises:
            AlreadyExistsError: *root* is a store; nothing was changed.
            FailedPreconditionError: *root* has other entries, or snapshots without a header.
            StoreHeldError: Another process is making the store.
        """
        with owned(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            if unexpected := set(os.listdir(fd)) - {STORE, LOCK, EMPTY, SNAPSHOTS, QUARANTINE}:
                raise FailedPreconditionError(f"{root!r} is not empty: it holds {min(unexpected)!r}")
            _check_unmade(fd, root, volumes.record_storage)
            os.fchmod(fd, 0o700)
            with Lock(fd, root):
                # Again, because the previous holder of the lock may have made the store.
                _check_unmade(fd, root, volumes.record_storage)
                for name in (STORE, SNAPSHOTS):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=fd)
                with owned(open_directory(fd, STORE)) as store_fd:
                    volumes.make_empty(fd)
                    new = Header(uuid=header.new_uuid(), identity=volumes.identity())
                    volumes.record_storage.write(store_fd, records.seal(new._asdict()))
                    volumes.barrier(store_fd)
                    volumes.barrier(fd)

    def close(self) -> None:
        self._descriptors.close()

    @property
    def is_copy(self) -> bool:
        """
        Whether this is a copy of the store's directory, such as a snapshot of it, where the subvolumes are missing.
        """
        return self.header.identity != self._volumes.identity()

    def acquire(self, socket: str = "") -> Lock:
        """
        Lock the store for writing, deny its root to other users, and return the lock for the caller to release.

        Args:
            socket: The address of the daemon, for others that find the store held.

        Raises:
            StoreHeldError: Another process, or this process already, has the lock.
        """
        lock = Lock(self.fd, self.root, socket, self.header.client)
        try:
            mode = stat.S_IMODE(os.fstat(self.fd).st_mode)
            if mode != 0o700:
                self._tighten(mode)
            # The previous holder may have reserved ids since the header was read.
            self.header = self._read()
            self._next_id = self.header.id_limit
        except BaseException:
            lock.release()
            raise
        return lock

    def _tighten(self, mode: int) -> None:
        """
        Deny the root to other users. A full disk refuses that, and still has to be opened, so that it can be emptied.
        """
        with tolerating_full():
            os.fchmod(self.fd, 0o700)
            Event.TIGHTENED.emit(root=self.root, error=f"its mode was {mode:04o}")

    def adopt(self) -> None:
        """
        Make this copy the store, durably.
        """
        self._volumes.make_empty(self.fd)
        self._volumes.barrier(self.fd)
        self.change(identity=self._volumes.identity())

    # -- the header

    def _read(self) -> Header:
        data = self._volumes.record_storage.read(self._store_fd)
        if data is None:
            raise _not_a_store(self.root)
        try:
            return header.decode(data)
        except records.DamagedError as error:
            raise DataLossError(f"the record of store {self.root!r} is damaged: {error}") from error

    def change(self, **values: Any) -> None:
        """
        Replace fields of the header, durably.
        """
        with self._lock:
            self._change(**values)

    def _change(self, **values: Any) -> None:
        changed = self.header._replace(**values)
        self._volumes.record_storage.write(self._store_fd, records.seal(changed._asdict()))
        self._volumes.barrier(self._store_fd)
        self.header = changed

    def is_dead(self) -> bool:
        """
        Return whether the filesystem is dead: it is read-only, or refuses a durable write of the header with EIO.

        Neither a full disk nor a root that somebody made read-only for a moment, as for ``btrfs send``, is dead.
        """
        try:
            if os.fstatvfs(self.fd).f_flag & syscall.ST_RDONLY:
                return True
            with self._lock:
                self._change()
        except OSError as error:
            return error.errno == errno.EIO
        return False

    def suspect_all(self) -> None:
        """
        Suspect every snapshot so far of data loss. The suspicion holds in memory even if the disk refuses the header.
        """
        with self._lock:
            self.header = self.header._replace(suspect=self._next_id)
            with contextlib.suppress(OSError):
                self._change()

    def take_id(self) -> int:
        """
        Return an id that was never taken before and is never given out again.
        """
        with self._lock:
            if self._next_id >= self.header.id_limit:
                self._change(id_limit=self._next_id + ID_BLOCK)
            self._next_id += 1
            return self._next_id - 1

    # -- the snapshots' directories

    def names(self) -> list[str]:
        """
        Return the names in ``snapshots/``: ids, and any other entries.
        """
        # Without the seek, a descriptor that was read before lists nothing new.
        os.lseek(self.snapshots_fd, 0, os.SEEK_SET)
        return os.listdir(self.snapshots_fd)

    def make_directory(self, snapshot_id: int, record: bytes) -> Directory:
        """
        Make the directory of a new snapshot with its *record*, and return it open, for a ``with``.

        Raises:
            FileExistsError: The directory exists.
        """
        place = self.place(snapshot_id)
        if self.fits(record):
            return Directory(self._volumes.record_storage.make_directory(place.dir_fd, place.name, record), place.path)
        os.mkdir(place.name, DIRECTORY_MODE, dir_fd=place.dir_fd)
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(self.directory(snapshot_id))
            self._spilled.add(directory.path)
            pieces.write(directory.fd, record, self._volumes.record_limit)
            stack.pop_all()
            return directory

    def directory(self, snapshot_id: int) -> Directory:
        """
        Return the directory of a snapshot, open, for a ``with``.

        Raises:
            FileNotFoundError: The directory does not exist.
        """
        place = self.place(snapshot_id)
        return Directory(open_directory(place.dir_fd, place.name), place.path)

    def place(self, snapshot_id: int) -> Place:
        """
        Return the place of a snapshot's directory; it need not exist.
        """
        return self._place(str(snapshot_id))

    def subvolume(self, snapshot_id: int, name: str) -> Place:
        """
        Return the place of the subvolume *name* of a snapshot; it need not exist.
        """
        return self._place(f"{snapshot_id}/{name}")

    @property
    def empty(self) -> Place:
        """
        The place of the empty subvolume, which a view without parent shows.
        """
        return Place(self.fd, EMPTY, f"{self.root}/{EMPTY}")

    def _place(self, name: str) -> Place:
        return Place(self.snapshots_fd, name, f"{self.root}/{SNAPSHOTS}/{name}")

    def fits(self, record: bytes) -> bool:
        """
        Return whether *record* needs no pieces.
        """
        return len(record) <= self._volumes.record_limit

    def read(self, directory: Directory) -> bytes | None:
        """
        Return the record of a snapshot's directory, or None without one.
        """
        data = self._volumes.record_storage.read(directory.fd)
        return data and pieces.join(directory.fd, data)

    def whole(self, snapshot_id: int, data: bytes) -> bytes:
        """
        Return the record of a snapshot's directory that `Volumes.inspect` returned, with its pieces.
        """
        if not records.is_spilled(data):
            return data
        with self.directory(snapshot_id) as directory:
            self._spilled.add(directory.path)
            return pieces.join(directory.fd, data)

    def write(self, directory: Directory, record: bytes) -> None:
        """
        Replace the record of a snapshot's directory, atomically; durable only after a barrier.

        `tidy` must follow once the change stands, or `restore` if it failed.
        """
        if self.fits(record) and directory.path not in self._spilled:
            self._volumes.record_storage.write(directory.fd, record)
            return
        if directory.path not in self._former:
            self._former[directory.path] = pieces.mark(directory.fd)
        self._spilled.add(directory.path)
        pieces.write(directory.fd, record, self._volumes.record_limit)

    def restore(self, directory: Directory, record: bytes) -> None:
        """
        Write back the former *record* of a snapshot's directory after a failed change. Its pieces are still there.
        """
        if directory.path not in self._spilled:
            self._volumes.record_storage.write(directory.fd, record)
        elif former := self._former.get(directory.path):  # without it, the failed change has written nothing
            self._volumes.record_storage.write(directory.fd, former)
        self.tidy(directory)

    def tidy(self, directory: Directory) -> None:
        """
        Delete the pieces of former records. If the disk refuses that, the next change tries again.
        """
        if directory.path in self._spilled:
            self._former.pop(directory.path, None)
            with contextlib.suppress(OSError, records.DamagedError):
                if not pieces.tidy(directory.fd):
                    self._spilled.remove(directory.path)

    def tidy_recovered(self, snapshot_id: int) -> None:
        """
        Delete the pieces of former records that an interrupted change left.
        """
        if self._spilled and self.place(snapshot_id).path in self._spilled:
            with contextlib.suppress(OSError), self.directory(snapshot_id) as directory:
                self.tidy(directory)

    def quarantine(self, dir_fd: int, name: str, new_name: str) -> None:
        """
        Move *name* in the directory *dir_fd* to the quarantine, durably, as *new_name* or with a number behind it.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(QUARANTINE, 0o700, dir_fd=self.fd)
        with owned(open_directory(self.fd, QUARANTINE)) as fd:
            taken = os.listdir(fd)
            names = itertools.chain([new_name], (f"{new_name}.{number}" for number in itertools.count(2)))
            os.rename(name, next(each for each in names if each not in taken), src_dir_fd=dir_fd, dst_dir_fd=fd)
            for each in (fd, dir_fd, self.fd):
                self._volumes.barrier(each)

    def remove_directory(self, snapshot_id: int) -> None:
        """
        Remove the directory of a snapshot without subvolumes, and its record with it.
        """
        with contextlib.suppress(FileNotFoundError), self.directory(snapshot_id) as directory:
            self._volumes.record_storage.delete(directory.fd)
            os.rmdir(str(snapshot_id), dir_fd=self.snapshots_fd)
            self._spilled.discard(directory.path)
            self._former.pop(directory.path, None)


def _check_unmade(fd: int, root: str, record_storage: RecordStorage) -> None:
    with contextlib.suppress(FileNotFoundError), owned(open_directory(fd, STORE)) as store_fd:
        if record_storage.read(store_fd) is not None:
            raise AlreadyExistsError(f"{root!r} is already a store")
    with contextlib.suppress(FileNotFoundError), owned(open_directory(fd, SNAPSHOTS)) as snapshots_fd:
        if os.listdir(snapshots_fd):
            raise FailedPreconditionError(f"{root!r} holds snapshots, and the record of their store is gone")


def _not_a_store(root: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{root!r} is not a store: make one with `snapshotter init`")
