"""
The Python interface of libbtrfsutil 7.3 without the library: ``from pybtrfs.compat import btrfsutil``.

A *path* is a path in any form or a file descriptor; to create or remove something it must be a path. All errors are
`BtrfsUtilError`, with the codes and messages of libbtrfsutil. docs/moving.md lists the differences, and the functions
that new programs should use instead.
"""

from __future__ import annotations

import errno
import operator
import os
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from pybtrfs import ioctl, items, subvolume, syscall
from pybtrfs.items import FS_TREE_OBJECTID, ROOT_TREE_OBJECTID, Key
from pybtrfs.path import open_beneath, open_in_pieces, owned
from pybtrfs.subvolume.creation import snapshot_below
from pybtrfs.subvolume.info import directory_path, is_root, lookup_root, missing
from pybtrfs.subvolume.listing import walk
from pybtrfs.tree_search import MAX, search, search_subvolumes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Self, SupportsIndex, TypeAlias

ERROR_STOP_ITERATION = 1
ERROR_NO_MEMORY = 2
ERROR_INVALID_ARGUMENT = 3
ERROR_NOT_BTRFS = 4
ERROR_NOT_SUBVOLUME = 5
ERROR_SUBVOLUME_NOT_FOUND = 6
ERROR_OPEN_FAILED = 7
ERROR_RMDIR_FAILED = 8
ERROR_UNLINK_FAILED = 9
ERROR_STAT_FAILED = 10
ERROR_STATFS_FAILED = 11
ERROR_SEARCH_FAILED = 12
ERROR_INO_LOOKUP_FAILED = 13
ERROR_SUBVOL_GETFLAGS_FAILED = 14
ERROR_SUBVOL_SETFLAGS_FAILED = 15
ERROR_SUBVOL_CREATE_FAILED = 16
ERROR_SNAP_CREATE_FAILED = 17
ERROR_SNAP_DESTROY_FAILED = 18
ERROR_DEFAULT_SUBVOL_FAILED = 19
ERROR_SYNC_FAILED = 20
ERROR_START_SYNC_FAILED = 21
ERROR_WAIT_SYNC_FAILED = 22
ERROR_GET_SUBVOL_INFO_FAILED = 23
ERROR_GET_SUBVOL_ROOTREF_FAILED = 24
ERROR_INO_LOOKUP_USER_FAILED = 25
ERROR_FS_INFO_FAILED = 26

_WORDS = {
    ERROR_INVALID_ARGUMENT: "Invalid argument",
    ERROR_NOT_BTRFS: "Not a Btrfs filesystem",
    ERROR_NOT_SUBVOLUME: "Not a Btrfs subvolume",
    ERROR_SUBVOLUME_NOT_FOUND: "Subvolume not found",
    ERROR_OPEN_FAILED: "Could not open",
    ERROR_RMDIR_FAILED: "Could not rmdir",
    ERROR_STATFS_FAILED: "Could not statfs",
    ERROR_SEARCH_FAILED: "Could not search B-tree",
    ERROR_INO_LOOKUP_FAILED: "Could not lookup inode",
    ERROR_SUBVOL_GETFLAGS_FAILED: "Could not get subvolume flags",
    ERROR_SUBVOL_SETFLAGS_FAILED: "Could not set subvolume flags",
    ERROR_SUBVOL_CREATE_FAILED: "Could not create subvolume",
    ERROR_SNAP_CREATE_FAILED: "Could not create snapshot",
    ERROR_SNAP_DESTROY_FAILED: "Could not destroy subvolume/snapshot",
    ERROR_DEFAULT_SUBVOL_FAILED: "Could not set default subvolume",
    ERROR_SYNC_FAILED: "Could not sync filesystem",
    ERROR_START_SYNC_FAILED: "Could not start filesystem sync",
    ERROR_WAIT_SYNC_FAILED: "Could not wait for filesystem sync",
    ERROR_GET_SUBVOL_INFO_FAILED: "Could not get subvolume information with BTRFS_IOC_GET_SUBVOL_INFO",
    ERROR_GET_SUBVOL_ROOTREF_FAILED: "Could not get rootref information with BTRFS_IOC_GET_SUBVOL_ROOTREF",
    ERROR_INO_LOOKUP_USER_FAILED: "Could not resolve subvolume path with BTRFS_IOC_INO_LOOKUP_USER",
}

# By the refused call, which pybtrfs adds to the error as a note.
_CODES = {
    "fstatfs": ERROR_STATFS_FAILED,
    "openat2": ERROR_OPEN_FAILED,
    "BTRFS_IOC_TREE_SEARCH": ERROR_SEARCH_FAILED,
    "BTRFS_IOC_TREE_SEARCH_V2": ERROR_SEARCH_FAILED,
    "BTRFS_IOC_INO_LOOKUP": ERROR_INO_LOOKUP_FAILED,
    "BTRFS_IOC_SUBVOL_GETFLAGS": ERROR_SUBVOL_GETFLAGS_FAILED,
    "BTRFS_IOC_SUBVOL_SETFLAGS": ERROR_SUBVOL_SETFLAGS_FAILED,
    "BTRFS_IOC_SET_RECEIVED_SUBVOL": ERROR_SUBVOL_SETFLAGS_FAILED,
    "BTRFS_IOC_SUBVOL_CREATE_V2": ERROR_SUBVOL_CREATE_FAILED,
    "BTRFS_IOC_SNAP_CREATE_V2": ERROR_SNAP_CREATE_FAILED,
    "BTRFS_IOC_SNAP_DESTROY": ERROR_SNAP_DESTROY_FAILED,
    "BTRFS_IOC_DEFAULT_SUBVOL": ERROR_DEFAULT_SUBVOL_FAILED,
    "BTRFS_IOC_SYNC": ERROR_SYNC_FAILED,
    "BTRFS_IOC_START_SYNC": ERROR_START_SYNC_FAILED,
    "BTRFS_IOC_WAIT_SYNC": ERROR_WAIT_SYNC_FAILED,
    "BTRFS_IOC_GET_SUBVOL_INFO": ERROR_GET_SUBVOL_INFO_FAILED,
    "BTRFS_IOC_GET_SUBVOL_ROOTREF": ERROR_GET_SUBVOL_ROOTREF_FAILED,
    "BTRFS_IOC_INO_LOOKUP_USER": ERROR_INO_LOOKUP_USER_FAILED,
}

_CREATE_NAME_MAX = 4039  # bytes
_DESTROY_NAME_MAX = 4087  # bytes
_INT_MAX = (1 << 31) - 1
_FEW = 64  # searches for the children of one subvolume

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path to create or remove."""


class BtrfsUtilError(OSError):
    """
    The error of a failed call. It is never an instance of FileNotFoundError or another subclass of OSError.

    Attributes:
        btrfsutilerror: The step that failed: one of ``ERROR_*``.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args[:5])
        self.btrfsutilerror: int | None = args[5] if len(args) == 6 else None

    def __reduce__(self) -> tuple[Any, ...]:
        names = self.filename, None, self.filename2
        return type(self), (self.errno, self.strerror, *names, self.btrfsutilerror), self.__dict__

    def __str__(self) -> str:
        if self.btrfsutilerror is None:
            return super().__str__()
        text = f"[BtrfsUtilError {self.btrfsutilerror} Errno {self.errno}] {self.strerror}"
        if self.filename is not None:
            text += f": {self.filename!r}"
            if self.filename2 is not None:
                text += f" -> {self.filename2!r}"
        return text


class _SubvolumeInfoFields(NamedTuple):
    id: int
    parent_id: int
    dir_id: int
    flags: int
    uuid: bytes
    parent_uuid: bytes
    received_uuid: bytes
    generation: int
    ctransid: int
    otransid: int
    stransid: int
    rtransid: int
    ctime: float
    otime: float


class SubvolumeInfo(_SubvolumeInfoFields):
    """
    A subvolume: a tuple of 14 fields, with *stime* and *rtime* as further attributes.

    Times are in seconds since 1970, UTC.
    """

    n_fields = 16
    n_sequence_fields = 14
    n_unnamed_fields = 0

    stime: float
    rtime: float

    def __new__(cls, sequence: tuple[Any, ...]) -> Self:
        *fields, stime, rtime = sequence
        self = super().__new__(cls, *fields)
        self.stime = stime
        self.rtime = rtime
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ((*self, self.stime, self.rtime),)


_Entry: TypeAlias = "tuple[str, int | SubvolumeInfo]"
_Entries: TypeAlias = "Generator[_Entry, None, None]"
_Children: TypeAlias = "Iterator[tuple[str, int]]"


class QgroupInherit:
    """
    A list of qgroups for a new subvolume to join.
    """

    def __init__(self) -> None:
        self._groups: list[int] = []

    @property
    def groups(self) -> list[int]:
        """
        The ids of the qgroups.
        """
        return list(self._groups)

    def add_group(self, qgroupid: SupportsIndex) -> None:
        """
        Add a qgroup.
        """
        self._groups.append(_u64(qgroupid))


def sync(path: Path | int) -> None:
    """
    Write all data of the filesystem to disk, and commit.
    """
    with _opened(path) as fd:
        ioctl.sync(fd)


def start_sync(path: Path | int) -> int:
    """
    Start a commit, and return the id of its transaction. See the warning at `pybtrfs.filesystem.wait_sync`.
    """
    with _opened(path) as fd:
        return ioctl.start_sync(fd)


def wait_sync(path: Path | int, transid: SupportsIndex = 0) -> None:
    """
    Wait until the transaction *transid* is durable; 0 means the transaction that is being committed.
    """
    path, transid = _converted(path), _u64(transid)
    with _opened(path) as fd:
        ioctl.wait_sync(fd, transid)


def is_subvolume(path: Path | int) -> bool:
    """
    Return whether *path* is the root of a subvolume. The file need not be readable.
    """
    # libbtrfsutil calls statfs(2) on the path first, so that every error has its code.
    with _opened(path, syscall.O_PATH, failed=ERROR_STATFS_FAILED) as fd:
        return syscall.fstatfs_type(fd) == syscall.BTRFS_SUPER_MAGIC and is_root(fd)


def subvolume_id(path: Path | int) -> int:
    """
    Return the id of the subvolume that contains *path*.
    """
    with _opened(path) as fd:
        return ioctl.ino_lookup_treeid(fd)


def subvolume_path(path: Path | int, id: SupportsIndex = 0) -> str:
    """
    Return the path of a subvolume from the top level. Needs ``CAP_SYS_ADMIN``.

    Args:
        id: 0 means the subvolume at *path*.
    """
    path, id = _converted(path), _u64(id)
    with _opened(path) as fd:
        return subvolume.get_path(fd, id or _own_id(fd))


def subvolume_info(path: Path | int, id: SupportsIndex = 0) -> SubvolumeInfo:
    """
    Return a subvolume, also if it is deleted and not cleaned yet. Any subvolume but *path* needs ``CAP_SYS_ADMIN``.

    Args:
        id: 0 means the subvolume at *path*.
    """
    path, id = _converted(path), _u64(id)
    with _opened(path) as fd:
        if id == 0:
            id = _own_id(fd)
            try:
                return _own_info(fd)
            except FileNotFoundError:
                pass  # deleted, but perhaps not cleaned yet
        elif id != FS_TREE_OBJECTID and not items.FIRST_FREE_OBJECTID <= id <= items.LAST_FREE_OBJECTID:
            raise missing(id)
        return _info_by_id(fd, id)


def get_subvolume_read_only(path: Path | int) -> bool:
    """
    Return whether the subvolume is read-only.
    """
    with _opened(path) as fd:
        return bool(ioctl.subvol_getflags(fd) & ioctl.SUBVOL_RDONLY)


def set_subvolume_read_only(path: Path | int, read_only: object = True) -> None:
    """
    Make the subvolume read-only or writable. A received subvolume that becomes writable loses its received uuid.
    """
    with _opened(path) as fd:
        flags = ioctl.subvol_getflags(fd)
        if read_only:
            ioctl.subvol_setflags(fd, flags | ioctl.SUBVOL_RDONLY)
        else:
            subvolume.set_read_only(fd, read_only=False, clear_received=True)


def get_default_subvolume(path: Path | int) -> int:
    """
    Return the id of the default subvolume. Needs ``CAP_SYS_ADMIN``.
    """
    with _opened(path) as fd:
        return subvolume.get_default(fd)


def set_default_subvolume(path: Path | int, id: SupportsIndex = 0) -> None:
    """
    Make a subvolume the default subvolume. Needs ``CAP_SYS_ADMIN``.

    Args:
        id: 0 means the subvolume at *path*.
    """
    path, id = _converted(path), _u64(id)
    with _opened(path) as fd:
        ioctl.default_subvol(fd, id or _own_id(fd))


def create_subvolume(path: Path, async_: object = False, qgroup_inherit: QgroupInherit | None = None) -> int | None:
    """
    Create a subvolume.

    Args:
        async_: Start a commit, and return the id of its transaction for `wait_sync`.
    """
    path, inherit = _converted(path, allow_fd=False), _inherit(qgroup_inherit)
    with _placed(path, _CREATE_NAME_MAX) as (dirfd, name):
        ioctl.subvol_create_v2(dirfd, name, inherit)
        return ioctl.start_sync(dirfd) if async_ else None


def create_snapshot(
    source: Path | int,
    path: Path,
    recursive: object = False,
    read_only: object = False,
    async_: object = False,
    qgroup_inherit: QgroupInherit | None = None,
) -> int | None:
    """
    Create a snapshot of the subvolume *source*.

    Args:
        recursive: Snapshot all nested subvolumes too. This is not atomic, and cannot be combined with *read_only*.
        async_: As in `create_subvolume`.
    """
    source, path, inherit = _converted(source), _converted(path, allow_fd=False), _inherit(qgroup_inherit)
    try:
        with _opened(source) as source_fd, _placed(path, _CREATE_NAME_MAX) as (dirfd, name):
            if recursive and read_only:
                raise _refused(ERROR_INVALID_ARGUMENT)
            ioctl.snap_create_v2(source_fd, dirfd, name, ioctl.SUBVOL_RDONLY if read_only else 0, inherit)
            if recursive:
                _snapshot_below(source_fd, dirfd, name, inherit)
            return ioctl.start_sync(dirfd) if async_ else None
    except BtrfsUtilError as error:
        error.filename, error.filename2 = source, path
        raise


def delete_subvolume(path: Path, recursive: object = False) -> None:
    """
    Delete the subvolume.

    Args:
        recursive: Delete all nested subvolumes first. This is not atomic.
    """
    with _placed(path, _DESTROY_NAME_MAX) as (dirfd, name):
        if recursive:
            # `open_beneath` refuses a filesystem that is mounted on the name, because that is not the subvolume to
            # delete.
            if not name:
                raise _refused(ERROR_OPEN_FAILED, errno.ENOENT)  # `open_beneath` would open the directory itself
            try:
                fd = open_beneath(dirfd, name)
            except NotADirectoryError:
                raise _refused(ERROR_NOT_SUBVOLUME) from None
            with owned(fd):
                _check_subvolume(fd)
                _delete_below(fd)
        ioctl.snap_destroy(dirfd, name)


def deleted_subvolumes(path: Path | int) -> list[int]:
    """
    Return the ids of the deleted subvolumes that the kernel has not cleaned yet. Needs ``CAP_SYS_ADMIN``.
    """
    with _opened(path) as fd:
        return [deleted.id for deleted in subvolume.iterate_deleted(fd)]


class SubvolumeIterator:
    """
    An iterator over the subvolumes below the subvolume *top*: their paths from *top*, and their ids.

    Listing below *path* itself needs no privilege, but without ``CAP_SYS_ADMIN`` skips subvolumes that the caller
    cannot open.

    Args:
        top: The id of a subvolume; 0 means the subvolume at *path*.
        info: Yield a `SubvolumeInfo` instead of the id.
        post_order: Yield each subvolume after its children instead of before them.
    """

    _fd = -1
    _owned = False

    def __init__(
        self, path: Path | int, top: SupportsIndex = 0, info: object = False, post_order: object = False
    ) -> None:
        self.close()
        filename, top = _converted(path), _u64(top)
        with _errors(filename):
            owned = not isinstance(filename, int)
            fd = _open(filename) if owned else filename
            try:
                top = top or _own_id(fd)
            except BaseException:
                if owned:
                    os.close(fd)
                raise
        self._fd, self._owned = fd, owned
        self._entries = _iterate(fd, top, info=bool(info), post_order=bool(post_order))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Entry:
        self.fileno()
        with _errors(None):
            return next(self._entries)

    def fileno(self) -> int:
        """
        Return the file descriptor of *path*.
        """
        if self._fd < 0:
            raise ValueError("operation on closed iterator")
        return self._fd

    def close(self) -> None:
        """
        End the iteration and close the file descriptor, if the iterator opened it; a second call does nothing.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._entries.close()
            if self._owned:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


fs_sync = sync
fs_start_sync = start_sync
fs_wait_sync = wait_sync
subvolume_is_valid = is_subvolume
subvolume_get_id = subvolume_id
subvolume_get_path = subvolume_path
subvolume_get_info = subvolume_info
subvolume_get_read_only = get_subvolume_read_only
subvolume_set_read_only = set_subvolume_read_only
subvolume_get_default = get_default_subvolume
subvolume_set_default = set_default_subvolume
subvolume_create = create_subvolume
subvolume_snapshot = create_snapshot
subvolume_delete = delete_subvolume
subvolume_list_deleted = deleted_subvolumes


class _StepError(OSError):
    """
    The error of a step outside of pybtrfs, with its code.
    """

    code: int


def _refused(code: int, number: int = errno.EINVAL) -> _StepError:
    error = _StepError(number, os.strerror(number))
    error.code = code
    return error


@contextmanager
def _errors(name: str | bytes | int | None) -> Iterator[None]:
    try:
        yield
    except BtrfsUtilError:
        raise
    except OSError as error:
        cause: OSError = error
        if isinstance(error, _StepError):
            code = error.code
        else:
            # If pybtrfs has explained the error, its cause has the errno of the kernel.
            if isinstance(error.__cause__, OSError):
                cause = error.__cause__
            notes = _notes(cause)
            code = _CODES[notes[0]] if notes else ERROR_SUBVOLUME_NOT_FOUND
        number = cause.errno or 0
        strerror = _WORDS[code]
        if strerror != os.strerror(number):
            strerror += f": {os.strerror(number)}"
        raised = BtrfsUtilError(number, strerror, name, None, None, code)
        for note in _notes(error):
            raised.add_note(note)
        raise raised from error


def _notes(error: OSError) -> list[str]:
    return getattr(error, "__notes__", [])


@contextmanager
def _opened(path: Path | int, flags: int = os.O_RDONLY, *, failed: int = ERROR_OPEN_FAILED) -> Iterator[int]:
    filename = _converted(path)
    with _errors(filename):
        if isinstance(filename, int):
            yield filename
            return
        with owned(_open(filename, flags, failed)) as fd:
            yield fd


def _open(path: str | bytes, flags: int = os.O_RDONLY, failed: int = ERROR_OPEN_FAILED) -> int:
    try:
        # O_NONBLOCK, because opening a FIFO would block.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(failed, error.errno or 0) from error


@contextmanager
def _placed(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    converted = _converted(path, allow_fd=False)
    with _errors(converted):
        text = os.fsencode(converted)
        head, slash, tail = (text.rstrip(b"/") or text[:1]).rpartition(b"/")
        if len(tail) > longest:
            raise _refused(ERROR_INVALID_ARGUMENT, errno.ENAMETOOLONG)
        with owned(_open(head or slash or b".", os.O_RDONLY | os.O_DIRECTORY)) as dirfd:
            yield dirfd, tail


def _converted(path: Any, *, allow_fd: bool = True) -> Any:
    """
    Return *path* as str, bytes or, if *allow_fd* is true, a file descriptor.
    """
    if allow_fd and hasattr(path, "__index__"):
        fd = operator.index(path)
        if fd < 0:
            raise ValueError("fd is negative")
        if fd > _INT_MAX:
            raise OverflowError("fd is greater than maximum")
        return fd
    try:
        converted = os.fspath(path)
    except TypeError:
        expected = "string, bytes, os.PathLike, or integer" if allow_fd else "string, bytes, or os.PathLike"
        raise TypeError(f"expected {expected}, not {type(path).__name__}") from None
    if isinstance(converted, str) and "\0" in converted:
        raise ValueError("embedded null byte")
    if isinstance(converted, bytes) and b"\0" in converted:
        raise TypeError("path has embedded nul character")
    return converted


def _u64(value: SupportsIndex) -> int:
    return operator.index(value) & MAX


def _inherit(value: QgroupInherit | None) -> ioctl.Inherit | None:
    if value is None:
        return None
    if not isinstance(value, QgroupInherit):
        raise TypeError(f"qgroup_inherit must be QgroupInherit, not {type(value).__name__}")
    return value.groups, None


def _check_subvolume(fd: int) -> None:
    if syscall.fstatfs_type(fd) != syscall.BTRFS_SUPER_MAGIC:
        raise _refused(ERROR_NOT_BTRFS)
    if not is_root(fd):
        raise _refused(ERROR_NOT_SUBVOLUME)


def _own_id(fd: int) -> int:
    _check_subvolume(fd)
    return ioctl.ino_lookup_treeid(fd)


def _own_info(fd: int) -> SubvolumeInfo:
    return _info(ioctl.get_subvol_info(fd))


def _info(info: ioctl.SubvolInfo) -> SubvolumeInfo:
    return SubvolumeInfo(
        (
            info.treeid,
            info.parent_id,
            info.dirid,
            info.flags,
            info.uuid,
            info.parent_uuid,
            info.received_uuid,
            info.generation,
            info.ctransid,
            info.otransid,
            info.stransid,
            info.rtransid,
            info.ctime / 1e9,
            info.otime / 1e9,
            info.stime / 1e9,
            info.rtime / 1e9,
        )
    )


def _info_by_id(fd: int, subvolid: int) -> SubvolumeInfo:
    """
    Return a subvolume, also if it is deleted and not cleaned yet.
    """
    try:
        found = lookup_root(fd, subvolid)
    except PermissionError:
        if ioctl.ino_lookup_treeid(fd) == subvolid:
            return _own_info(fd)
        raise
    if found is None:
        raise missing(subvolid)
    return _info(found)


def _snapshot_below(source_fd: int, dirfd: int, name: bytes, inherit: ioctl.Inherit | None) -> None:
    with owned(open_beneath(dirfd, name)) as fd:
        try:
            snapshot_below(source_fd, fd, ioctl.ino_lookup_treeid(fd), inherit)
        except OSError as error:
            # rmdir(2) is the only call without a note.
            if _notes(error):
                raise
            raise _refused(ERROR_RMDIR_FAILED, error.errno or 0) from error


def _delete_below(fd: int) -> None:
    for path in reversed([path for _, path, _ in walk(fd)]):
        head, tail = os.path.split(path)
        with owned(open_in_pieces(fd, head)) as directory:
            ioctl.snap_destroy(directory, os.fsencode(tail))


def _iterate(fd: int, top: int, *, info: bool, post_order: bool) -> _Entries:
    key = Key(top, items.ROOT_REF_KEY, 0)
    try:
        next(search(fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=key, buffer_size=4096), None)
    except PermissionError:
        if not is_root(fd) or ioctl.ino_lookup_treeid(fd) != top:
            raise
        entries = _walk(fd, info=info)
    else:
        entries = _descend(_Tree(fd), top, info=info)
    with closing(entries):
        yield from _post_order(entries) if post_order else entries


def _post_order(entries: _Entries) -> _Entries:
    """
    Yield *entries*, each of which comes before its children, in the order in which each comes after its children.
    """
    pending: list[_Entry] = []
    for entry in entries:
        while pending and not entry[0].startswith(pending[-1][0] + "/"):
            yield pending.pop()
        pending.append(entry)
    yield from reversed(pending)


def _walk(fd: int, *, info: bool) -> _Entries:
    """
    Yield the subvolumes below the subvolume *fd*. Needs no privilege.
    """
    with closing(walk(fd)) as found:
        for child, path, child_fd in found:
            with suppress(FileNotFoundError):  # cleaned concurrently
                entry: _Entry = path, _own_info(child_fd) if info else child.id
                yield entry


def _descend(tree: _Tree, top: int, *, info: bool) -> _Entries:
    """
    Yield the subvolumes below the subvolume with the id *top*.
    """
    levels = [("", tree.children(top))]
    while levels:
        above, left = levels[-1]
        child = next(left, None)
        if child is None:
            levels.pop()
            continue
        path, subvolid = above + child[0], child[1]
        with suppress(FileNotFoundError):  # cleaned concurrently
            yield path, tree.info(subvolid) if info else subvolid
            levels.append((path + "/", tree.children(subvolid)))


class _Tree:
    """
    The children of subvolumes, by tree search: one search for each subvolume, and after many of them one search for
    all.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._asked = 0
        self._all: dict[int, list[ioctl.SubvolInfo]] | None = None
        self._found: dict[int, ioctl.SubvolInfo] = {}

    def children(self, subvolid: int) -> _Children:
        """
        Yield path and id of each child of a subvolume.
        """
        self._asked += 1
        if self._asked == _FEW:
            self._sweep()
        known, directory = 0, b""
        for child, dirid, name in self._below(subvolid):
            if dirid != known:
                try:
                    known, directory = dirid, directory_path(self._fd, subvolid, dirid)
                except FileNotFoundError:
                    continue  # deleted concurrently
            yield os.fsdecode(directory + name), child

    def info(self, subvolid: int) -> SubvolumeInfo:
        """
        Return the info of a subvolume.
        """
        found = self._found.get(subvolid)
        return _info_by_id(self._fd, subvolid) if found is None else _info(found)

    def _below(self, subvolid: int) -> Iterator[tuple[int, int, bytes]]:
        """
        Yield id, directory and name of each child of a subvolume.
        """
        if self._all is not None:
            for found in self._all.get(subvolid, ()):
                yield found.treeid, found.dirid, found.name
            return
        key = Key(subvolid, items.ROOT_REF_KEY, 0)
        last = key._replace(offset=MAX)
        for item in search(self._fd, tree_id=ROOT_TREE_OBJECTID, min_key=key, max_key=last, buffer_size=4096):
            ref = items.root_ref(item.data)
            yield item.offset, ref.dirid, ref.name

    def _sweep(self) -> None:
        self._all = {}
        for found in search_subvolumes(self._fd, ioctl.SubvolInfo):
            self._all.setdefault(found.parent_id, []).append(found)
            self._found[found.treeid] = found
