"""
`Volumes` on btrfs.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from pybtrfs import device, filesystem, ioctl, mountinfo, subvolume, syscall
from pybtrfs.errors import NotBtrfsError, not_subvolume
from pybtrfs.mountinfo import MountTable
from snapshotter.errors import FailedPreconditionError
from snapshotter.model import Measured, Mount
from snapshotter.store import usage
from snapshotter.store.coalesced import Coalesced
from snapshotter.store.layout import EMPTY, FS, LAYER, Directory, Place, is_subvolume, opened
from snapshotter.store.record_storage import DIRECTORY_MODE, XATTR, RecordStorage, Xattrs
from snapshotter.store.volumes import Contents, MountMode

WAKE_SECONDS = 1.0  # between calls of a cleaner that may not have heard
RECENT_SECONDS = 1.0  # each look at the devices is three system calls, where threads lose their turn

_FROZEN_FLAGS = ioctl.FS_IMMUTABLE_FL | ioctl.FS_APPEND_FL


class _Devices(NamedTuple):
    """
    The devices of a filesystem at a *time*: the writes refused by all of them, and the path of one.
    """

    time: float
    write_errors: int
    path: str


class BtrfsVolumes:
    """
    `Volumes` on btrfs.

    Privilege: CAP_SYS_ADMIN for destroying, searching and device statistics.
    """

    record_storage: ClassVar[RecordStorage] = Xattrs()

    def __init__(self, root: str, mount_mode: MountMode) -> None:
        self._root = root
        self._mode = mount_mode
        # Held open from the start: a later descriptor would not be told of an earlier write-back error.
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            info = filesystem.get_info(self._fd)
            self._device = mountinfo.device_of(self._fd)
        except NotBtrfsError as error:
            os.close(self._fd)
            raise _not_btrfs(root) from error
        except BaseException:
            os.close(self._fd)
            raise
        self._fsid = info.fsid_bytes
        # The kernel takes nearly a whole node, but to replace a record by a larger one it makes room in the node for
        # both; where it cannot, it depends on the neighbours, and is refused as on a full disk.
        self.record_limit = info.nodesize * 15 // 32
        self._devices: _Devices | None = None
        self.verify = Coalesced(lambda: syscall.syncfs(self._fd))
        self.mounts = Coalesced(lambda: mountinfo.read(self._device, root))

    def close(self) -> None:
        os.close(self._fd)

    @staticmethod
    def make_root(path: str) -> None:
        try:
            subvolume.create(path)
        except NotBtrfsError as error:
            raise _not_btrfs(path) from error

    def make_empty(self, root_fd: int) -> None:
        if not is_subvolume(root_fd, EMPTY):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(EMPTY, dir_fd=root_fd)  # the place holder that a snapshot of a store has
            subvolume.create((root_fd, EMPTY))
        with opened(root_fd, EMPTY) as fd:
            if not subvolume.get_read_only(fd):
                os.fchmod(fd, 0o755)
                subvolume.set_read_only(fd)

    def identity(self) -> dict[str, str]:
        return {
            "fsid": _uuid_text(self._fsid),
            "subvolume": _uuid_text(subvolume.get_info(self._fd).raw.uuid),
            "inode": str(os.fstat(self._fd).st_ino),
        }

    def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
        record, inodes = syscall.read_directory(place.dir_fd, place.name, XATTR, (FS, LAYER))
        fs, copy = (inode == ioctl.FIRST_FREE_OBJECTID for inode in inodes)
        if fs or copy:
            layer = copy and _is_read_only(place.dir_fd, f"{place.name}/{LAYER}")
            return record, Contents(fs, layer, True, writable=copy and not layer)
        with opened(place.dir_fd, place.name) as fd:
            unexpected = tuple(sorted(os.listdir(fd)))
        return record, Contents(False, False, bool(unexpected), unexpected)

    def create(self, directory: Directory) -> None:
        subvolume.create((directory.fd, FS))
        # The kernel applies the umask of whoever runs us.
        os.chmod(FS, 0o755, dir_fd=directory.fd)

    def snapshot(self, layer: Place, place: Place, record: bytes) -> None:
        # In one call: where many threads make snapshots, each call more is another turn to wait for.
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
        with opened(source.dir_fd, source.name) as fd:
            self._copy(fd, directory, FS)

    def freeze(self, directory: Directory) -> None:
        with opened(directory.fd, FS) as fd:
            _clear_flags(fd)
            self.destroy(directory, LAYER, MountTable())  # of a commit that failed
            self._copy(fd, directory, LAYER)

    def _copy(self, fd: int, directory: Directory, name: str) -> None:
        """
        Make *name* a copy of the active *fd*, durable, with directories for nested subvolumes; read-only if `LAYER`.
        """
        nested = self._nested(fd)
        subvolume.snapshot(fd, (directory.fd, name), read_only=name == LAYER and not nested)
        try:
            if nested:
                with opened(directory.fd, name) as copy_fd:
                    _flatten(fd, copy_fd, nested)
                    if name == LAYER:
                        subvolume.set_read_only(copy_fd)
                    else:
                        filesystem.sync(copy_fd)
            # What was made, or written into, since the first look is not in the copy.
            if set(self._nested(fd)) - set(nested):
                raise FailedPreconditionError("a nested subvolume was made meanwhile: try again")
        except BaseException:
            self.destroy(directory, name, MountTable())
            raise

    def _nested(self, fd: int) -> list[str]:
        """
        The paths of the empty subvolumes in *fd*; one with content is refused.
        """
        paths = []
        for child in subvolume.children(fd):
            path = subvolume.get_child_path(fd, child)
            with _opened_beneath(fd, path) as child_fd:
                if os.listdir(child_fd):
                    raise FailedPreconditionError(
                        f"the content of the nested subvolume {path!r} would be lost: "
                        "delete it, or copy it to a directory"
                    )
            paths.append(path)
        return paths

    def destroy(self, directory: Directory, name: str, mounts: MountTable) -> None:
        if mounts.has_mount_below(os.path.join(directory.path, name)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        with contextlib.suppress(FileNotFoundError), opened(directory.fd, name) as fd:
            if not subvolume.is_subvolume(fd):
                raise not_subvolume(name)
            subvolid = subvolume.get_id(fd)
            ids = {subvolid}
            if any(subvolume.children(fd)):
                ids.update(entry.info.id for entry in subvolume.iterate(fd, top=subvolid))
            if not mounts.subvolids.isdisjoint(ids):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
            nested = len(ids) > 1
            try:
                subvolume.delete((directory.fd, name), recursive=nested)
            except PermissionError:
                _clear_flags(fd)
                subvolume.delete((directory.fd, name), recursive=nested)
            except FileNotFoundError:
                # The kernel can lose a name that it still lists.
                subvolume.delete_by_id(self._fd, subvolid)

    def barrier(self, fd: int) -> None:
        os.fsync(fd)

    def write_errors(self, *, recent: bool = False) -> int:
        return self._look_at_devices(RECENT_SECONDS if recent else 0.0).write_errors

    def _look_at_devices(self, max_age: float) -> _Devices:
        devices = self._devices
        now = time.monotonic()
        if devices is None or now - devices.time >= max_age:
            errors, path = 0, ""
            for each in device.iterate(self._fd):
                stats = device.get_stats(self._fd, each.devid)
                errors += stats.write_errs + stats.flush_errs
                path = path or each.path
            devices = self._devices = _Devices(now, errors, path)
        return devices

    def reclaim(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        next_sync = 0.0
        while subvolume.count_deleted(self._fd) and (now := time.monotonic()) < end:
            # It wakes the cleaner, which does not hear it on its way to sleep.
            if now >= next_sync:
                filesystem.sync(self._fd)
                next_sync = now + WAKE_SECONDS
            time.sleep(0.01)
        # What the cleaner has let go is free after another commit.
        filesystem.sync(self._fd)

    def base_transid(self, directory: Directory) -> int:
        with opened(directory.fd, FS) as fd:
            return subvolume.get_info(fd).otransid

    def change_counter(self, directory: Directory) -> int:
        with opened(directory.fd, FS) as fd:
            return subvolume.get_info(fd).generation

    def measure(self, directory: Directory, name: str, base_transid: int, parent: Directory | None) -> Measured:
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(opened(directory.fd, name))
            parent_fd = stack.enter_context(opened(parent.fd, LAYER)) if parent else None
            return usage.measure(fd, base_transid, parent_fd)

    def mount(self, place: Place, *, read_only: bool) -> Mount:
        if self._mode == "bind":
            return Mount("bind", place.path, options=("rbind", "ro" if read_only else "rw"))
        subvolid, inode = syscall.name_to_handle_at(place.dir_fd, place.name)
        if inode != ioctl.FIRST_FREE_OBJECTID:
            raise not_subvolume(place.path)
        device = self._look_at_devices(RECENT_SECONDS).path
        return Mount("btrfs", device, options=(f"subvolid={subvolid}", *(("ro",) if read_only else ())))


def _uuid_text(uuid: bytes) -> str:
    """
    What `str` gives of a UUID, whose module is slow to import, or of None for zeros.
    """
    text = uuid.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])) if any(uuid) else "None"


def _not_btrfs(path: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path!r} is not on btrfs: choose a directory that is, or make an image with `snapshotter init --image SIZE`"
    )


@contextlib.contextmanager
def _opened_beneath(dir_fd: int, path: str) -> Iterator[int]:
    # Containers made the names in there.
    resolve = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_MAGICLINKS
    fd = syscall.openat2(dir_fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, resolve)
    try:
        yield fd
    finally:
        os.close(fd)


def _flatten(fd: int, copy_fd: int, paths: list[str]) -> None:
    """
    Make a directory of each place holder that an empty subvolume nested in *fd* left in its copy.
    """
    for path in paths:
        above, name = os.path.split(path)
        with _opened_beneath(copy_fd, above or ".") as above_fd, _opened_beneath(fd, path) as original_fd:
            times = os.fstat(above_fd)
            status = os.fstat(original_fd)
            os.rmdir(name, dir_fd=above_fd)
            os.mkdir(name, dir_fd=above_fd)
            with opened(above_fd, name) as new_fd:
                os.fchown(new_fd, status.st_uid, status.st_gid)
                os.fchmod(new_fd, status.st_mode & 0o7777)
                for attribute in os.listxattr(original_fd):
                    os.setxattr(new_fd, attribute, os.getxattr(original_fd, attribute))
                os.utime(new_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.utime(above_fd, ns=(times.st_atime_ns, times.st_mtime_ns))


def _is_read_only(dir_fd: int, name: str) -> bool:
    with opened(dir_fd, name) as fd:
        return subvolume.get_read_only(fd)


def _clear_flags(fd: int) -> None:
    """
    Clear +i and +a: a snapshot inherits them, and cannot be deleted then.
    """
    flags = ioctl.getflags(fd)
    if flags & _FROZEN_FLAGS:
        # Refused while it is read-only, and whoever owns it can make it so.
        subvolume.set_read_only(fd, read_only=False, clear_received=True)
        ioctl.setflags(fd, flags & ~_FROZEN_FLAGS)
