"""
`Volumes` on btrfs.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterable
from typing import ClassVar

from pybtrfs import device, filesystem, ioctl, mountinfo, processes, space, subvolume, syscall, sysfs, tree_search
from pybtrfs.errors import NotBtrfsError, NotSubvolumeError, not_subvolume
from pybtrfs.items import uuid_text
from pybtrfs.mountinfo import MountPoint, MountTable
from pybtrfs.path import open_directory, owned
from snapshotter.errors import FailedPreconditionError, UnavailableError, is_damage
from snapshotter.model import IdMap, Measured, Mount
from snapshotter.store import holding_mounts, nested, usage
from snapshotter.store.barrier import Barrier
from snapshotter.store.coalesced import Coalesced
from snapshotter.store.counters import Counters
from snapshotter.store.devices import Devices
from snapshotter.store.layout import EMPTY, FS, LAYER, Directory, Place, is_subvolume
from snapshotter.store.record_storage import DIRECTORY_MODE, XATTR, RecordStorage, Xattrs
from snapshotter.store.volumes import Contents, MountMode, bind_mount

WAKE_SECONDS = 1.0  # between two attempts to wake the kernel's cleaner
COMMITS_SECONDS = 1.0  # between two looks whether the filesystem has committed
SETTLED_SECONDS = 0.25  # without a change of the block groups, after which the kernel's cleaner is done with them

_LARGEST_CHUNK = 1 << 30  # bytes; the kernel allocates at most this much at once, or a tenth of the filesystem
_PLACEHOLDER = 2  # inode of the empty directory that a snapshot shows in place of a nested subvolume


class BtrfsVolumes:
    """
    `Volumes` on btrfs.

    Privilege: CAP_SYS_ADMIN to search trees and to read device statistics. Without it, subvolumes that the process owns
    are destroyed file by file, unless the filesystem is mounted with ``user_subvol_rm_allowed``.
    """

    record_storage: ClassVar[RecordStorage] = Xattrs()

    def __init__(self, root: str, mount_mode: MountMode, *, wake_seconds: float = WAKE_SECONDS) -> None:
        self._root = root
        self._binds = mount_mode == "bind" or (mount_mode == "auto" and processes.in_user_namespace())
        self._wake_seconds = wake_seconds
        # Kept open, because syncfs on a descriptor reports only the write-back errors since its open.
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._status = os.fstat(self._fd)
            info = filesystem.get_info(self._fd)
        except BaseException as error:
            os.close(self._fd)
            if isinstance(error, NotBtrfsError):
                raise _not_btrfs(root) from error
            if isinstance(error, NotSubvolumeError) and self._status.st_ino == _PLACEHOLDER:
                raise _rolled_away(root) from error
            raise
        self._fsid = info.fsid_bytes
        # The kernel stores an xattr of nearly a whole node. But to replace it by a larger one, the node must have room
        # for both values. Otherwise the neighbours in the node decide whether the kernel answers ENOSPC.
        self.record_limit = info.nodesize * 15 // 32
        self._devices = Devices(self._fd)
        self._commits: tuple[float, int | None] = (-COMMITS_SECONDS, None)
        self._barrier = Barrier(self._fd)
        self.verify = Coalesced(lambda: syscall.syncfs(self._fd))
        self.mounts = Coalesced(lambda: mountinfo.read(self._fd, root))

    def close(self) -> None:
        os.close(self._fd)

    def check_root(self) -> None:
        if self._binds:  # otherwise, mounts go by the id of the subvolume
            self._check_path()

    def _check_path(self) -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._root), self._status):
                return
        raise UnavailableError(
            f"{self._root!r} no longer leads to the open store: was a subvolume rolled back? "
            "Move the store's subvolume back to this path"
        )

    @staticmethod
    def make_root(path: str) -> None:
        try:
            subvolume.create(path)
        except NotBtrfsError as error:
            raise _not_btrfs(path) from error

    def make_empty(self, root_fd: int) -> None:
        if not is_subvolume(root_fd, EMPTY):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(EMPTY, dir_fd=root_fd)  # the empty directory that a snapshot of a store has here
            subvolume.create((root_fd, EMPTY))
        with owned(open_directory(root_fd, EMPTY)) as fd:
            if not subvolume.get_read_only(fd):
                os.fchmod(fd, 0o755)
                subvolume.set_read_only(fd)

    def identity(self) -> dict[str, str]:
        uuid = subvolume.get_info(self._fd).raw.uuid
        return {
            "fsid": uuid_text(self._fsid),
            "subvolume": uuid_text(uuid) if any(uuid) else "None",
            "inode": str(os.fstat(self._fd).st_ino),
        }

    def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
        try:
            return self._inspect(place)
        except OSError as error:
            if not is_damage(error):
                raise
        with owned(open_directory(place.dir_fd, place.name)) as fd:
            return self.record_storage.read(fd), _damaged_contents(fd)

    def _inspect(self, place: Place) -> tuple[bytes | None, Contents]:
        record, inodes = syscall.read_directory(place.dir_fd, place.name, XATTR, (FS, LAYER))
        fs, copy = (inode == ioctl.FIRST_FREE_OBJECTID for inode in inodes)
        if fs or copy:
            layer = copy and _is_read_only(place.dir_fd, f"{place.name}/{LAYER}")
            return record, Contents(fs, layer, anything=True, writable=copy and not layer)
        with owned(open_directory(place.dir_fd, place.name)) as fd:
            unexpected = tuple(sorted(os.listdir(fd)))
        return record, Contents(anything=bool(unexpected), unexpected=unexpected)

    def create(self, directory: Directory) -> None:
        subvolume.create((directory.fd, FS))
        # The kernel has applied the umask.
        os.chmod(FS, 0o755, dir_fd=directory.fd)

    def snapshot(self, layer: Place, place: Place, record: bytes) -> None:
        # Make directory, record and snapshot in a single call, because with many threads each call waits for the GIL.
        ioctl.snap_create_v2_in(
            layer.dir_fd,
            layer.name.encode(),
            place.dir_fd,
            place.name.encode(),
            DIRECTORY_MODE,
            XATTR.encode(),
            record,
            FS.encode(),
        )

    def fork(self, source: Place, directory: Directory) -> None:
        with owned(open_directory(source.dir_fd, source.name)) as fd:
            self._copy(fd, directory, FS)

    def freeze(self, directory: Directory) -> None:
        with owned(open_directory(directory.fd, FS)) as fd:
            _clear_flags(fd)
            self.destroy(directory, LAYER, MountTable())
            self._copy(fd, directory, LAYER)

    def _copy(self, fd: int, directory: Directory, name: str) -> None:
        """
        Create *name*, a durable snapshot of the active *fd*, read-only if *name* is `LAYER`.

        Nested subvolumes become directories.
        """
        children = nested.find_empty(fd)
        subvolume.snapshot(fd, (directory.fd, name), read_only=name == LAYER and not children)
        try:
            if children:
                with owned(open_directory(directory.fd, name)) as copy_fd:
                    nested.flatten(fd, copy_fd, children)
                    if name == LAYER:
                        subvolume.set_read_only(copy_fd)
                    else:
                        filesystem.sync(copy_fd)
            # The copy lacks subvolumes that were created, or filled, since they were listed.
            if set(nested.find_empty(fd)) - set(children):
                raise FailedPreconditionError("a nested subvolume was created concurrently: try again")
        except BaseException:
            self.destroy(directory, name, MountTable())
            raise

    def destroy(self, directory: Directory, name: str, mounts: MountTable) -> None:
        path = os.path.join(directory.path, name)
        if mounts.has_mount_below(path):
            raise _busy(mounts.of((), path), name)
        with contextlib.suppress(FileNotFoundError), owned(open_directory(directory.fd, name)) as fd:
            if not subvolume.is_subvolume(fd):
                raise not_subvolume(name)
            subvolid = subvolume.get_id(fd)
            ids = {subvolid}
            recursive = any(subvolume.children(fd))
            if recursive:
                ids.update(entry.info.id for entry in subvolume.iterate(fd, top=subvolid))
            if not mounts.subvolids.isdisjoint(ids):
                raise _busy(mounts.of(ids, path), name)
            try:
                subvolume.delete((directory.fd, name), recursive=recursive, unlink=True)
            except PermissionError:
                _clear_flags(fd)
                subvolume.delete((directory.fd, name), recursive=recursive, unlink=True)
            except FileNotFoundError:
                # The kernel can fail to find a name that it still lists.
                subvolume.delete_by_id(self._fd, subvolid)

    def check_readable(self, directory: Directory, name: str, base_transid: int) -> None:
        # A missing subvolume has nothing to read. Without CAP_SYS_ADMIN, nothing can be searched.
        with (
            contextlib.suppress(FileNotFoundError, PermissionError),
            owned(open_directory(directory.fd, name)) as fd,
        ):
            if not subvolume.is_subvolume(fd):
                return
            # Older blocks belong to the parent. Newer blocks that `FS` shares with `LAYER` are read, too, because the
            # kernel changes their owner.
            tree_search.read(fd, min_transid=base_transid if name == LAYER else subvolume.get_info(fd).otransid)
            if any(subvolume.children(fd)):
                for entry in subvolume.iterate(fd, top=subvolume.get_id(fd)):
                    tree_search.read(fd, tree_id=entry.info.id)

    def barrier(self, fd: int) -> None:
        self._barrier(fd)

    def write_errors(self, *, recent: bool = False) -> Counters:
        return self._devices.counters(recent=recent)

    def reclaim(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        next_sync = 0.0
        while self._is_cleaning() and (now := time.monotonic()) < end:
            # A sync wakes the cleaner. The wake-up is lost if the cleaner is about to sleep, so repeat it.
            if now >= next_sync:
                filesystem.sync(self._fd)
                next_sync = now + self._wake_seconds
            time.sleep(0.01)
        # The space is free only after the transaction of the cleaner is committed.
        filesystem.sync(self._fd)
        self._await_block_groups(end)

    def _await_block_groups(self, end: float) -> None:
        """
        Wait while the kernel's cleaner deletes block groups that have become empty, if the devices have no space left.

        In between, the space of such a block group is neither in a block group nor on a device. A write that comes then
        fails with ENOSPC, although nearly the whole filesystem is free.
        """
        devices = list(device.iterate(self._fd))
        size = sum(each.total_bytes for each in devices)
        if size - sum(each.bytes_used for each in devices) >= min(_LARGEST_CHUNK, size // 10):
            return
        before, since = self._allocated(), time.monotonic()
        while (now := time.monotonic()) < min(end, since + SETTLED_SECONDS):
            time.sleep(0.01)
            if (allocated := self._allocated()) != before:
                before, since = allocated, now
        filesystem.sync(self._fd)

    def _allocated(self) -> list[int]:
        return [each.total_bytes for each in space.get(self._fd)]

    def _is_cleaning(self) -> bool:
        try:
            # The kernel queues a subvolume for cleaning only with the last of its inodes. An open file, or data on its
            # way to the disk, keeps the subvolume out of count_deleted.
            return any(subvolume.iterate_deleted(self._fd))
        except PermissionError:
            return subvolume.count_deleted(self._fd) > 0

    def base_transid(self, directory: Directory) -> int:
        with owned(open_directory(directory.fd, FS)) as fd:
            return subvolume.get_info(fd).otransid

    def uuid(self, directory: Directory, name: str) -> str:
        with owned(open_directory(directory.fd, name)) as fd:
            return subvolume.get_info(fd).raw.uuid.hex()

    def commits(self) -> int | None:
        # Not the filesystem's generation, because the kernel advances it when a transaction begins. A change in a
        # running transaction would be missed until the next transaction.
        read, commits = self._commits
        now = time.monotonic()
        if now - read >= COMMITS_SECONDS:
            commits = sysfs.count_commits(self._fsid)
            self._commits = now, commits
        return commits

    def change_counter(self, directory: Directory, last: tuple[int, ...] = ()) -> tuple[int, ...]:
        with owned(open_directory(directory.fd, FS)) as fd:
            generation = subvolume.get_info(fd).generation
            if last == (generation,):
                return last  # the creation of a nested subvolume changes the generation of `FS`, too
            return generation, *nested.change_times(fd)

    def measure(self, directory: Directory, name: str, base_transid: int, parent: Directory | None) -> Measured:
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(owned(open_directory(directory.fd, name)))
            parent_fd = stack.enter_context(owned(open_directory(parent.fd, LAYER))) if parent else None
            return usage.measure(fd, base_transid, parent_fd)

    def owner(self, place: Place) -> int:
        return os.stat(place.name, dir_fd=place.dir_fd, follow_symlinks=False).st_uid

    def mount(self, place: Place, *, read_only: bool, id_map: IdMap | None = None) -> Mount:
        if self._is_bound(read_only=read_only, mapped=id_map is not None):
            self._check_path()
            return bind_mount(place, read_only=read_only, id_map=id_map)
        subvolid, inode = syscall.name_to_handle_at(place.dir_fd, place.name)
        if inode != ioctl.FIRST_FREE_OBJECTID:
            raise not_subvolume(place.path)
        options = (f"subvolid={subvolid}", *(("ro",) if read_only else ()), *(id_map.options if id_map else ()))
        return Mount("btrfs", self._devices.node(), options=options)

    def _is_bound(self, *, read_only: bool, mapped: bool) -> bool:
        """
        Return whether the mount of a subvolume is a bind mount.

        To compare a snapshot with its parent, containerd adds ``ro`` to its mounts. containerd maps the ids of a
        read-only btrfs mount, but not of a read-only bind mount. So a mapped active is a bind mount, because its diff
        needs the image's owners, and a mapped view is a btrfs mount.
        """
        if not mapped:
            return self._binds
        return not read_only and (self._binds or not mountinfo.inherited(self._fd))


def _busy(mounts: Iterable[MountPoint], name: str) -> OSError:
    where = "; ".join(held.text for held in holding_mounts.locate(mounts))
    return OSError(errno.EBUSY, f"{os.strerror(errno.EBUSY)}: mounted at {where}", name)


def _not_btrfs(path: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path!r} is not on btrfs: choose a directory on btrfs, or make an image with `snapshotter init --image SIZE`"
    )


def _rolled_away(path: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path!r} is the empty directory that a snapshot shows in place of a subvolume: the subvolume above it was "
        "rolled back, and the store is in the subvolume that was rolled away. Find it with `btrfs subvolume list`, "
        f"remove the empty directory, and move the store's subvolume to {path!r}"
    )


def _is_read_only(dir_fd: int, name: str) -> bool:
    with owned(open_directory(dir_fd, name)) as fd:
        return subvolume.get_read_only(fd)


def _damaged_contents(fd: int) -> Contents:
    """
    Return the contents of the directory *fd*, in which something cannot be read.
    """
    found = {FS: False, LAYER: False}
    writable = False
    unreadable = {}
    for name in found:
        try:
            found[name] = is_subvolume(fd, name)
            if found[name] and name == LAYER:
                writable = not _is_read_only(fd, name)
        except OSError as error:
            if not is_damage(error):
                raise
            found[name] = True
            unreadable[name] = os.strerror(error.errno or 0)
    return Contents(found[FS], found[LAYER] and not writable, anything=True, writable=writable, unreadable=unreadable)


def _clear_flags(fd: int) -> None:
    """
    Clear the flags +i and +a, because a snapshot inherits them and then cannot be deleted.
    """
    flags = ioctl.getflags(fd)
    if flags & nested.FROZEN_FLAGS:
        # The flags of a read-only subvolume cannot be changed, and its owner may have made it read-only.
        subvolume.set_read_only(fd, read_only=False, clear_received=True)
        ioctl.setflags(fd, flags & ~nested.FROZEN_FLAGS)
