"""
A fake kernel, in which the subvolumes below one directory are plain directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from pybtrfs import ioctl, items, kernel, syscall
from pybtrfs._ffi import check, ffi
from pybtrfs.ioctl import EMPTY_SUBVOL_DIR_OBJECTID, FIRST_FREE_OBJECTID, SUBVOL_RDONLY
from pybtrfs.items import FS_TREE_OBJECTID, ROOT_TREE_OBJECTID, UUID_TREE_OBJECTID
from pybtrfs.testing.trees import copy_tree, file_id, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pybtrfs._ffi import CData

_U64_MAX = (1 << 64) - 1
_SECOND = 1_000_000_000  # nanoseconds
_TRANSACTIONS = ("ctransid", "otransid", "stransid", "rtransid")
_TIMES = ("ctime", "otime", "stime", "rtime")
_INODE_ITEM = items.INODE_ITEM_LAYOUT.pack(1, *[0] * 19)  # of generation 1


@contextlib.contextmanager
def fake_btrfs(
    directory: str | os.PathLike[str], *, privileged: bool = True, user_subvol_rm_allowed: bool = False
) -> Iterator[None]:
    """
    Make the plain *directory* the top level of a btrfs, for all of pybtrfs in this process.

    A fake kernel answers for files in *directory*, and the real kernel for all other files. So `pybtrfs.subvolume`
    works in *directory* as it does on btrfs, and raises the same errors. A subvolume is a directory. A snapshot is a
    copy: it takes time and space, and needs permission to read the files it copies.

    Only pybtrfs sees the fake: open() writes to read-only subvolumes, and os.stat() returns the directory's own inode
    number. Changing a file does not change a generation. Deleted subvolumes are cleaned at once. Quotas, devices, and
    searches for anything but subvolumes fail as on a kernel without the ioctl.

    Each subvolume uses a file descriptor until the end. The files in *directory* remain.

    Args:
        privileged: Answer as the kernel answers root. False refuses what needs ``CAP_SYS_ADMIN``, as for the owner of
            all subvolumes in a container.
        user_subvol_rm_allowed: The mount option of this name, which matters only without *privileged*.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, kernel, "current", kernel.current)
        filesystem = _Filesystem(directory, stack, privileged=privileged, user_subvol_rm_allowed=user_subvol_rm_allowed)
        kernel.current = _Kernel(filesystem, kernel.current)
        yield


@dataclass(slots=True)
class _Subvolume:
    """
    A subvolume, with the fields that the kernel keeps of it.

    Attributes:
        fd: The directory. The file descriptor follows renames, and keeps the inode number from being reused.
    """

    fd: int
    uuid: bytes
    ctransid: int
    ctime: int
    otransid: int
    otime: int
    generation: int
    read_only: bool = False
    parent_uuid: bytes = bytes(16)
    received_uuid: bytes = bytes(16)
    stransid: int = 0
    stime: int = 0
    rtransid: int = 0
    rtime: int = 0


class _Paths:
    """
    The paths of the subvolumes that are not deleted, at the time of a call.

    Attributes:
        by_id: The path of each subvolume.
    """

    def __init__(self, paths: dict[int, str]) -> None:
        self.by_id = paths
        self._ids = {path: subvolid for subvolid, path in paths.items()}

    def path(self, subvolid: int) -> str:
        if subvolid not in self.by_id:
            raise _error(errno.ENOENT)
        return self.by_id[subvolid]

    def containing(self, path: str) -> int:
        """
        Return the id of the subvolume that contains *path*, or whose root is *path*.
        """
        while path not in self._ids:
            path = os.path.dirname(path)
        return self._ids[path]

    def location(self, subvolid: int) -> tuple[int, int, bytes]:
        """
        Return the parent_id, dirid and name of a subvolume.
        """
        if subvolid == FS_TREE_OBJECTID:
            return 0, 0, b""
        directory, name = os.path.split(self.by_id[subvolid])
        parent_id = self.containing(directory)
        dirid = FIRST_FREE_OBJECTID if directory == self.by_id[parent_id] else _objectid(os.stat(directory))
        return parent_id, dirid, os.fsencode(name)

    def children(self, subvolid: int) -> list[int]:
        return [child for child in sorted(self.by_id) if self.location(child)[0] == subvolid]

    def directory(self, subvolid: int, objectid: int) -> str:
        """
        Return the path of the directory *objectid* in the subvolume *subvolid*.
        """
        top = self.path(subvolid)
        if objectid == FIRST_FREE_OBJECTID:
            return top
        for path, names, _ in os.walk(top):
            if path != top and _objectid(os.stat(path)) == objectid:
                return path
            names[:] = [name for name in names if os.path.join(path, name) not in self._ids]
        raise _error(errno.ENOENT)


class _Kernel:
    """
    A `pybtrfs.kernel.Kernel` that answers for the files of *filesystem*, and passes all other calls to *real*.
    """

    def __init__(self, filesystem: _Filesystem, real: kernel.Kernel) -> None:
        self._filesystem = filesystem
        self._real = real
        self._lock = threading.Lock()

    def ioctl(self, fd: int, name: str, argument: CData | int = 0, /) -> int:
        if not self._filesystem.has(fd):
            return self._real.ioctl(fd, name, argument)
        return self._answer(fd, name, argument)

    def value_ioctl(self, fd: int, name: str, /) -> int:
        if not self._filesystem.has(fd):
            return self._real.value_ioctl(fd, name)
        if name == "BTRFS_IOC_INO_LOOKUP":
            arguments = ffi.new("struct pybtrfs_ioctl_ino_lookup_args *", {"objectid": FIRST_FREE_OBJECTID})
            self._answer(fd, name, arguments)
            return int(arguments.treeid)
        value = ffi.new("uint64_t *")
        self._answer(fd, name, value)
        return int(value[0])

    def vol_ioctl(
        self,
        dirfd: int,
        name: str,
        filename: bytes,
        source_fd: int = 0,
        flags: int = 0,
        inherit: CData = ffi.NULL,
        /,
    ) -> None:
        if self._filesystem.has(dirfd):
            self._answer(dirfd, name, filename, source_fd, flags)
        else:
            self._real.vol_ioctl(dirfd, name, filename, source_fd, flags, inherit)

    def info_ioctl(self, fd: int, name: str, subvolume: CData, /) -> None:
        if self._filesystem.has(fd):
            self._answer(fd, name, subvolume)
        else:
            self._real.info_ioctl(fd, name, subvolume)

    def sum_ioctl(self, fd: int, name: str, changes: CData, /) -> bool:
        if not self._filesystem.has(fd):
            return self._real.sum_ioctl(fd, name, changes)
        return bool(self._answer(fd, name, None))

    def fstat_ino(self, fd: int, /) -> int:
        return self._filesystem.inode(fd) if self._filesystem.has(fd) else self._real.fstat_ino(fd)

    def fstatfs_type(self, fd: int, /) -> int:
        return syscall.BTRFS_SUPER_MAGIC if self._filesystem.has(fd) else self._real.fstatfs_type(fd)

    def open_by_handle_at(self, fd: int, handle: CData, flags: int, /) -> int:
        if not self._filesystem.has(fd):
            return self._real.open_by_handle_at(fd, handle, flags)
        with self._lock:
            return self._filesystem.open_by_handle_at(handle, flags)

    def _answer(self, fd: int, name: str, *arguments: object) -> int:
        with self._lock:
            try:
                self._filesystem.answer(fd, name, *arguments)
            except OSError as error:
                return check(-(error.errno or errno.EIO), name, kernel.privilege(name))
        return 0


class _Filesystem:
    """
    The subvolumes below one directory, with a method for each ioctl.

    Such a method has the name of the ioctl. It takes the C struct, or the arguments of the C function that makes it.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        stack: contextlib.ExitStack,
        *,
        privileged: bool,
        user_subvol_rm_allowed: bool,
    ) -> None:
        self._stack = stack
        self._privileged = privileged
        self._user_subvol_rm_allowed = user_subvol_rm_allowed
        self._fsid = os.urandom(16)
        self._transid = 1
        self._default = FS_TREE_OBJECTID
        self._next_id = FIRST_FREE_OBJECTID
        self._subvolumes: dict[int, _Subvolume] = {}
        self._ids: dict[tuple[int, int], int] = {}  # including deleted subvolumes
        self._placeholders: set[tuple[int, int]] = set()
        self._add(FS_TREE_OBJECTID, os.fspath(directory))
        self._top = _path(self._subvolumes[FS_TREE_OBJECTID].fd)

    def answer(self, fd: int, name: str, *arguments: object) -> None:
        if file_id(os.fstat(fd)) in self._placeholders:
            raise _error(errno.ENOTTY)
        if name in ("BTRFS_IOC_TREE_SEARCH_V2", "BTRFS_IOC_DEFAULT_SUBVOL"):
            self._check_privileged()
        getattr(self, name.partition("_IOC_")[2].lower(), _lacking)(fd, *arguments)

    def _check_privileged(self) -> None:
        if not self._privileged:
            raise _error(errno.EPERM)

    # Files

    def has(self, fd: Any) -> bool:
        try:
            path = _path(fd)
        except OSError:
            return False
        return path == self._top or path.startswith(self._top.rstrip("/") + "/")

    def _paths(self) -> _Paths:
        paths = {subvolid: _path(subvolume.fd) for subvolid, subvolume in self._subvolumes.items()}
        return _Paths({subvolid: path for subvolid, path in paths.items() if self._is_there(subvolid, path)})

    def _is_there(self, subvolid: int, path: str) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._ids.get(file_id(os.lstat(path))) == subvolid
        return False

    def _containing(self, fd: int, paths: _Paths) -> int:
        root = self._ids.get(file_id(os.fstat(fd)))
        return paths.containing(_path(fd)) if root is None else root

    def _root(self, fd: int) -> _Subvolume:
        root = self._ids.get(file_id(os.fstat(fd)))
        if root is None:
            raise _error(errno.EINVAL)
        return self._subvolumes[root]

    def _live(self, fd: int) -> tuple[int, _Paths]:
        paths = self._paths()
        subvolid = self._containing(fd, paths)
        paths.path(subvolid)
        return subvolid, paths

    def inode(self, fd: int) -> int:
        status = os.fstat(fd)
        if file_id(status) in self._placeholders:
            return EMPTY_SUBVOL_DIR_OBJECTID
        return FIRST_FREE_OBJECTID if file_id(status) in self._ids else _objectid(status)

    def open_by_handle_at(self, handle: Any, flags: int) -> int:
        if not self._privileged:
            check(-errno.EPERM, "open_by_handle_at", "CAP_DAC_READ_SEARCH")
        return os.open(self._paths().directory(handle.root_objectid, handle.objectid), flags)

    def getflags(self, fd: int, flags: Any) -> None:
        flags[0] = 0

    # Subvolumes

    def _commit(self) -> int:
        self._transid += 1
        return self._transid

    def _hold(self, path: str) -> int:
        fd = os.open(path, syscall.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def _add(self, subvolid: int, path: str) -> _Subvolume:
        fd, now, transid = self._hold(os.path.realpath(path)), time.time_ns(), self._commit()
        made = _Subvolume(fd, os.urandom(16), transid, now, transid, now, transid)
        self._subvolumes[subvolid] = made
        self._ids[file_id(os.fstat(fd))] = subvolid
        return made

    def _new(self, dirfd: int, name: bytes, make: Callable[[str], object]) -> _Subvolume:
        path = os.path.join(_path(dirfd), os.fsdecode(name))
        if not stat.S_ISDIR(os.fstat(dirfd).st_mode):
            raise _error(errno.ENOTDIR)
        if os.path.lexists(path):
            raise _error(errno.EEXIST)
        self._check_writable(dirfd)
        make(path)
        self._next_id += 1
        return self._add(self._next_id - 1, path)

    def _check_writable(self, fd: int) -> None:
        subvolid, _ = self._live(fd)
        if self._subvolumes[subvolid].read_only:
            raise _error(errno.EROFS)

    def subvol_create_v2(self, dirfd: int, name: bytes, *_: object) -> None:
        self._new(dirfd, name, os.mkdir)

    def snap_create_v2(self, dirfd: int, name: bytes, source_fd: int, flags: int) -> None:
        if not self.has(source_fd):
            raise _error(errno.EXDEV)
        self._root(source_fd)
        subvolid, paths = self._live(source_fd)
        source, source_path = self._subvolumes[subvolid], paths.by_id[subvolid]
        nested: list[str] = []

        def is_nested(path: str) -> bool:
            found = file_id(os.lstat(path))
            if found in self._ids or found in self._placeholders:
                nested.append(os.path.relpath(path, source_path))
                return True
            return False

        made = self._new(dirfd, name, lambda path: copy_tree(source_path, path, is_nested))
        for path in nested:
            self._placeholders.add(file_id(os.fstat(self._hold(os.path.join(_path(made.fd), path)))))
        source.generation = made.generation
        made.parent_uuid, made.ctransid, made.ctime = source.uuid, source.ctransid, source.ctime
        made.read_only = bool(flags & SUBVOL_RDONLY)
        if made.read_only:
            made.received_uuid, made.stransid, made.stime = source.received_uuid, source.stransid, source.stime
            made.rtransid, made.rtime = source.rtransid, source.rtime

    def snap_destroy(self, dirfd: int, name: bytes, *_: object) -> None:
        self._destroy(dirfd, _path(dirfd), os.fsdecode(name))

    def _destroy(self, dirfd: int, directory: str, name: str) -> None:
        path = os.path.join(directory, name)
        status = os.lstat(path)
        if not self._user_subvol_rm_allowed:
            self._check_privileged()
        self._check_writable(dirfd)
        if not stat.S_ISDIR(status.st_mode):
            raise _error(errno.ENOTDIR)
        subvolid = self._ids.get(file_id(status))
        if subvolid is None:
            raise _error(errno.EINVAL)
        if not self._privileged and self._subvolumes[subvolid].read_only:
            raise _error(errno.EROFS)
        if subvolid == self._default:
            raise _error(errno.EPERM)
        if self._paths().children(subvolid):
            raise _error(errno.ENOTEMPTY)
        remove_tree(path)
        self._commit()

    def snap_destroy_v2(self, fd: int, arguments: Any) -> None:
        if arguments.subvolid < FIRST_FREE_OBJECTID:
            raise _error(errno.EINVAL)
        directory, name = os.path.split(self._paths().path(arguments.subvolid))
        dirfd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._destroy(dirfd, directory, name)
        finally:
            os.close(dirfd)

    def subvol_getflags(self, fd: int, flags: Any) -> None:
        flags[0] = SUBVOL_RDONLY if self._root(fd).read_only else 0

    def subvol_setflags(self, fd: int, flags: Any) -> None:
        subvolume = self._root(fd)
        if flags[0] & ~SUBVOL_RDONLY:
            raise _error(errno.EOPNOTSUPP)
        if subvolume.read_only != bool(flags[0]):
            subvolume.read_only = bool(flags[0])
            subvolume.generation = self._commit()

    def default_subvol(self, fd: int, subvolid: Any) -> None:
        default = subvolid[0] or FS_TREE_OBJECTID
        self._paths().path(default)
        self._default = default

    def get_subvol_info(self, fd: int, info: Any) -> None:
        subvolid, paths = self._live(fd)
        subvolume = self._subvolumes[subvolid]
        info.treeid = subvolid
        info.parent_id, info.dirid, name = paths.location(subvolid)
        info.name, info.name_len = name, len(name)
        info.flags = items.ROOT_SUBVOL_RDONLY if subvolume.read_only else 0
        for field in ("generation", "uuid", "parent_uuid", "received_uuid", *_TRANSACTIONS, *_TIMES):
            setattr(info, field, getattr(subvolume, field))

    def get_subvol_rootref(self, fd: int, arguments: Any) -> None:
        subvolid, paths = self._live(fd)
        left = [child for child in paths.children(subvolid) if child >= arguments.min_treeid]
        arguments.num_items = min(len(left), len(arguments.rootref))
        for number, child in enumerate(left[: arguments.num_items]):
            arguments.rootref[number].treeid = child
            arguments.rootref[number].dirid = paths.location(child)[1]
        if len(left) > arguments.num_items:
            arguments.min_treeid = left[arguments.num_items]
            raise _error(errno.EOVERFLOW)

    def set_received_subvol(self, fd: int, arguments: Any) -> None:
        subvolume = self._root(fd)
        if subvolume.read_only:
            raise _error(errno.EROFS)
        subvolume.received_uuid, subvolume.stransid = b"".join(arguments.uuid), arguments.stransid
        subvolume.stime = arguments.stime.sec * _SECOND + arguments.stime.nsec
        subvolume.rtransid, subvolume.rtime = self._commit(), time.time_ns()
        arguments.rtransid = subvolume.rtransid
        _set_time(arguments.rtime, subvolume.rtime)

    def subvol_sync_wait(self, fd: int, arguments: Any) -> None:
        if arguments.mode != ioctl.SUBVOL_SYNC_COUNT:
            raise _error(errno.EEXIST if arguments.subvolid in self._paths().by_id else errno.ENOENT)

    # Trees

    def ino_lookup(self, fd: int, arguments: Any) -> None:
        paths = self._paths()
        arguments.treeid = arguments.treeid or self._containing(fd, paths)
        if arguments.objectid != FIRST_FREE_OBJECTID:
            self._check_privileged()
            path = paths.directory(arguments.treeid, arguments.objectid)
            arguments.name = os.fsencode(os.path.relpath(path, paths.by_id[arguments.treeid])) + b"/"

    def ino_lookup_user(self, fd: int, arguments: Any) -> None:
        subvolid, paths = self._live(fd)
        directory, name = os.path.split(paths.path(arguments.treeid))
        if paths.location(arguments.treeid)[:2] != (subvolid, arguments.dirid):
            raise _error(errno.ENOENT)
        arguments.name = os.fsencode(name)
        top = _path(fd)
        if directory != top:
            if not directory.startswith(top + "/"):
                raise _error(errno.EACCES)
            arguments.path = os.fsencode(os.path.relpath(directory, top)) + b"/"

    def tree_search_v2(self, fd: int, arguments: Any) -> None:
        if arguments is None:
            raise _error(errno.ENOTTY)  # a sum, which needs the generations of files
        key = arguments.key
        least = key.min_objectid, key.min_type, key.min_offset
        most = key.max_objectid, key.max_type, key.max_offset
        paths = self._paths()
        if key.tree_id == ROOT_TREE_OBJECTID:
            found = self._root_items(paths)
        elif key.tree_id == UUID_TREE_OBJECTID:
            found = self._uuid_items(paths)
        elif least[:2] == most[:2] and key.min_type == items.INODE_ITEM_KEY:
            paths.directory(key.tree_id or self._containing(fd, paths), key.min_objectid)
            found = iter([((key.min_objectid, items.INODE_ITEM_KEY, 0), _INODE_ITEM)])
        else:
            raise _error(errno.ENOTTY)
        key.nr_items = end = 0
        for (objectid, type_, offset), data in sorted(found):
            if least <= (objectid, type_, offset) <= most:
                start, end = end, end + ioctl.SEARCH_HEADER.size + len(data)
                if end > arguments.buf_size:
                    break
                header = ioctl.SEARCH_HEADER.pack(self._transid, objectid, offset, type_, len(data))
                arguments.buf[start:end] = header + data
                key.nr_items += 1

    def _root_items(self, paths: _Paths) -> Iterator[tuple[tuple[int, int, int], bytes]]:
        location = self._default, items.ROOT_ITEM_KEY, _U64_MAX
        name = b"default"
        default = items.DIR_ITEM_LAYOUT.pack(*location, 0, 0, len(name), items.FT_DIR) + name
        yield (items.ROOT_TREE_DIR_OBJECTID, items.DIR_ITEM_KEY, 0), default
        for subvolid in paths.by_id:
            subvolume = self._subvolumes[subvolid]
            times = (part for field in _TIMES for part in divmod(getattr(subvolume, field), _SECOND))
            yield (
                (subvolid, items.ROOT_ITEM_KEY, 0),
                items.ROOT_ITEM_LAYOUT.pack(
                    *(subvolume.generation, FIRST_FREE_OBJECTID, 0, 0, 0, 0),
                    *(items.ROOT_SUBVOL_RDONLY if subvolume.read_only else 0, 1, 0, subvolume.generation),
                    *(subvolume.uuid, subvolume.parent_uuid, subvolume.received_uuid),
                    *(getattr(subvolume, field) for field in _TRANSACTIONS),
                    *times,
                ),
            )
            if subvolid != FS_TREE_OBJECTID:
                parent_id, dirid, name = paths.location(subvolid)
                ref = items.ROOT_REF_LAYOUT.pack(dirid, 0, len(name)) + name
                yield (subvolid, items.ROOT_BACKREF_KEY, parent_id), ref
                yield (parent_id, items.ROOT_REF_KEY, subvolid), ref

    def _uuid_items(self, paths: _Paths) -> Iterator[tuple[tuple[int, int, int], bytes]]:
        found: dict[tuple[int, bytes], bytes] = {}
        for subvolid in paths.by_id:
            subvolume = self._subvolumes[subvolid]
            for type_, uuid in (
                (items.UUID_KEY_SUBVOL, subvolume.uuid),
                (items.UUID_KEY_RECEIVED_SUBVOL, subvolume.received_uuid),
            ):
                if any(uuid):
                    found[type_, uuid] = found.get((type_, uuid), b"") + items.UUID_ITEM_LAYOUT.pack(subvolid)
        for (type_, uuid), data in found.items():
            yield (int.from_bytes(uuid[:8], "little"), type_, int.from_bytes(uuid[8:], "little")), data

    # The filesystem

    def sync(self, fd: int, _: object) -> None:
        pass

    def start_sync(self, fd: int, transid: Any) -> None:
        transid[0] = self._transid

    def wait_sync(self, fd: int, transid: Any) -> None:
        if transid[0] > self._transid:
            raise _error(errno.EINVAL)

    def fs_info(self, fd: int, info: Any) -> None:
        info.max_id = info.num_devices = 1
        info.fsid = info.metadata_uuid = self._fsid
        info.nodesize, info.sectorsize, info.clone_alignment, info.csum_size = 16384, 4096, 4096, 4
        info.generation = self._transid


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _lacking(*_: object) -> NoReturn:
    raise _error(errno.ENOTTY)


def _set_time(timespec: Any, nanoseconds: int) -> None:
    timespec.sec, timespec.nsec = divmod(nanoseconds, _SECOND)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _objectid(status: os.stat_result) -> int:
    # On tmpfs the inode number of a directory may be one that is special on btrfs.
    return status.st_ino if status.st_ino > FIRST_FREE_OBJECTID else status.st_ino + (1 << 62)
