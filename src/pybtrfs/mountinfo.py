"""
Mounts of btrfs subvolumes, in every mount namespace that the caller can see.

The kernel lists all mount namespaces, also those without a process (Linux 6.12). Where the kernel, a sandbox or a
missing privilege refuses that, ``/proc`` has the namespaces of processes and of their threads.
"""

import errno
import os
import re
from collections.abc import Collection, Generator, Iterable, Iterator
from typing import NamedTuple

from pybtrfs import processes, syscall

# ENOSYS and ENOTTY: the kernel is too old. EPERM, EACCES and ENOSYS: a sandbox. EINVAL: Linux 6.8 to 6.10.
_REFUSED = {errno.ENOSYS, errno.ENOTTY, errno.EPERM, errno.EACCES, errno.EINVAL}
# Flags of statvfs(2). `os` has them as well, but not all of them on PyPy.
_INHERITED = {syscall.MS_NOSUID: "nosuid", syscall.MS_NODEV: "nodev", syscall.MS_NOEXEC: "noexec"}
_SUBVOLID = re.compile(rb"(?:^|,)subvolid=(\d+)")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_EFFECTIVE = re.compile(rb"^CapEff:\t([0-9a-f]+)$", re.MULTILINE)
_CAP_SYS_ADMIN = 1 << 21
_INITIAL_USER_NAMESPACE = "user:[4026531837]"  # the same on every Linux


class MountPoint(NamedTuple):
    """
    A mount of a subvolume, of a directory in it, or of something else on one of its directories.

    Attributes:
        subvolid: The mounted subvolume; None if another filesystem is mounted on a directory of this one.
        path: The mount point, as the processes of its mount namespace see it.
        namespace: The inode number of the mount namespace, as ``/proc/PID/ns/mnt`` shows it.
        covers: The path of the directory below the mount, if that is below the root given to `read`; else empty.
    """

    subvolid: int | None
    path: str
    read_only: bool
    namespace: int
    covers: str = ""


class Keeper(NamedTuple):
    """
    A file that leads to a mount namespace, for ``nsenter --mount=FILE``.

    Attributes:
        path: ``/proc/PID/ns/mnt`` of a process or thread in the namespace, or ``/proc/PID/fd/N`` of a process that has
            the namespace open. For a file of nsfs, its mount point.
        pid: The process or thread; None for a file of nsfs.
    """

    path: str
    pid: int | None


class MountTable(NamedTuple):
    """
    The mounts of one filesystem at one moment, in any mount namespace.

    Attributes:
        subvolids: The mounted subvolumes.
        points: The paths below a directory at which something is mounted, through whichever mount of the filesystem.
        mounts: All of these mounts.
    """

    subvolids: frozenset[int] = frozenset()
    points: tuple[str, ...] = ()
    mounts: tuple[MountPoint, ...] = ()

    def has_mount_below(self, path: str) -> bool:
        """
        Return whether something is mounted at *path* or below it.
        """
        return any(point == path or point.startswith(path + "/") for point in self.points)

    def of(self, subvolids: Collection[int], path: str) -> tuple[MountPoint, ...]:
        """
        Return the mounts of the subvolumes *subvolids*, and all mounts at *path* or below it.
        """
        return tuple(
            mount
            for mount in self.mounts
            if mount.subvolid in subvolids or mount.covers == path or mount.covers.startswith(path + "/")
        )


class OwnMount(NamedTuple):
    """
    The mount through which a descriptor was opened.

    Attributes:
        point: The mount point.
        options: The options of the filesystem, such as ``"ssd"`` or ``"subvolid=5"``.
    """

    point: str
    options: frozenset[str]


class _Mount(NamedTuple):
    """
    A mount of the filesystem, or on it.

    Attributes:
        ours: The mount shows the filesystem itself.
        root: The mounted directory, from the top of its filesystem.
    """

    id: int
    parent_id: int
    ours: bool
    subvolid: int | None
    root: bytes
    point: bytes
    read_only: bool


class _Own(NamedTuple):
    """
    The mount through which a descriptor was opened.

    Attributes:
        device: The device number of the filesystem; None if the mount is not visible.
        path: The path of the descriptor from the top of the filesystem; None if it is unknown.
        points: All mount points in the mount namespace of the caller.
    """

    device: tuple[int, int] | None
    path: bytes | None
    points: tuple[bytes, ...]


def inherited(path: str | int) -> list[str]:
    """
    Return the mount options of *path*, a path or an fd, that a bind mount inherits and that break containers: nosuid,
    nodev, noexec.
    """
    flags = os.statvfs(path).f_flag
    return [name for flag, name in _INHERITED.items() if flags & flag]


def own(fd: int) -> OwnMount | None:
    """
    Return the mount through which *fd* was opened, or None if this process cannot see it, such as from a chroot.

    `os.path.ismount` takes a subvolume for a mount point; this function does not.
    """
    mount_id = _mount_id(fd)
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            if fields[0] == mount_id:
                return OwnMount(os.fsdecode(_unescape(fields[4])), frozenset(os.fsdecode(fields[-1]).split(",")))
    return None


def read(fd: int, root: str) -> MountTable:
    """
    Return the mounts of the filesystem of *fd*, and all mounts on its directories, in every mount namespace.

    Directories are compared by their path in the filesystem, so it does not matter through which of its mounts
    something is mounted on them.

    Args:
        fd: The directory *root*.
        root: An absolute path, for the paths in the table.
    """
    own = _own(fd)
    prefix = root.rstrip("/") + "/"
    points = dict.fromkeys(point for point in map(os.fsdecode, own.points) if point.startswith(prefix))
    mounts = []
    for namespace, found in _namespaces(own.device):
        ours = {mount.id: mount for mount in found if mount.ours}
        for mount in found:
            covers = ""
            if own.path is not None and (parent := ours.get(mount.parent_id)):
                covers = _below(_join(parent.root, mount.point, parent.point), own.path, prefix)
                if covers:
                    points[covers] = None
            if mount.ours or covers:
                mounts.append(MountPoint(mount.subvolid, os.fsdecode(mount.point), mount.read_only, namespace, covers))
    subvolids = frozenset(mount.subvolid for mount in mounts if mount.subvolid is not None)
    return MountTable(subvolids, tuple(points), tuple(mounts))


def keepers(namespaces: Collection[int]) -> dict[int, Keeper]:
    """
    Return a file that leads to each of the mount namespaces, as far as the caller can see one.

    A process in the namespace comes before a thread, a descriptor and a bind mount of the namespace.

    Args:
        namespaces: Inode numbers, as in `MountPoint`.
    """
    wanted = {f"mnt:[{namespace}]": namespace for namespace in namespaces}
    found: dict[int, Keeper] = {}
    for keeper in _keepers():
        if len(found) == len(wanted):
            return found
        namespace = wanted.get(_link(keeper.path))
        if namespace is not None:
            found.setdefault(namespace, keeper)
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(None, 5)
            namespace = wanted.get(os.fsdecode(fields[3]))
            if namespace is not None:
                found.setdefault(namespace, Keeper(os.fsdecode(_unescape(fields[4])), None))
    return found


def _keepers() -> Iterator[Keeper]:
    pids = processes.pids()
    for pid in pids:
        yield Keeper(f"/proc/{pid}/ns/mnt", int(pid))
    for pid in pids:
        for thread in processes.listed(f"/proc/{pid}/task"):
            yield Keeper(f"/proc/{thread}/ns/mnt", int(thread))
    for pid in pids:
        for fd in processes.listed(f"/proc/{pid}/fd"):
            yield Keeper(f"/proc/{pid}/fd/{fd}", int(pid))


def mounted_from(source: str) -> Generator[str, None, None]:
    """
    Yield the mount points of the block device *source*, such as ``/dev/loop0``, in this mount namespace.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            mount, _, filesystem = line.partition(b" - ")
            if os.fsdecode(_unescape(filesystem.split()[1])) == source:
                yield os.fsdecode(_unescape(mount.split()[4]))


def _mount_id(fd: int) -> bytes:
    # Not st_dev of stat(2), which is the number of the subvolume.
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))


def _own(fd: int) -> _Own:
    mount_id = _mount_id(fd)
    path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
    device = within = None
    points = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(None, 5)
            points.append(_unescape(fields[4]))
            if fields[0] == mount_id:
                device = _device(fields[2])
                if (path + b"/").startswith(points[-1].rstrip(b"/") + b"/"):
                    within = _join(_unescape(fields[3]), path, points[-1])
    return _Own(device, within, tuple(points))


def _namespaces(device: tuple[int, int] | None) -> Iterator[tuple[int, list[_Mount]]]:
    """
    Yield the inode number of each mount namespace, with its mounts of the filesystem *device*, or of any btrfs, and the
    mounts on them. A namespace can come several times.
    """
    complete = False
    try:
        for namespace in syscall.mount_namespaces():
            yield namespace.inode, [_of_statmount(mount, device) for mount in syscall.read_mounts(namespace.id, device)]
        complete = _sees_every_namespace()
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    if not complete:
        for inode, data in _tables():
            yield inode, _of_mountinfo(data, device)


def _sees_every_namespace() -> bool:
    """
    Return whether the caller has CAP_SYS_ADMIN in the initial user namespace, which owns all others.
    """
    with open("/proc/thread-self/status", "rb") as file:
        effective = _EFFECTIVE.search(file.read())
    admin = effective is not None and int(effective[1], 16) & _CAP_SYS_ADMIN
    return bool(admin) and _link("/proc/thread-self/ns/user") == _INITIAL_USER_NAMESPACE


def _of_statmount(mount: syscall.StatMount, device: tuple[int, int] | None) -> _Mount:
    ours = mount.sb_dev == device if device else mount.sb_magic == syscall.BTRFS_SUPER_MAGIC
    subvolid = _subvolid(mount.mnt_opts) if ours else None
    return _Mount(mount.mnt_id, mount.mnt_parent_id, ours, subvolid, mount.mnt_root, mount.mnt_point, mount.read_only)


def _of_mountinfo(data: bytes, device: tuple[int, int] | None) -> list[_Mount]:
    lines = data.splitlines()
    number = f"{device[0]}:{device[1]}".encode() if device else b""
    ours = {
        line.split(None, 1)[0]
        for line in lines
        if b" - btrfs " in line and (not device or line.split(None, 3)[2] == number)
    }
    return [_of_line(line, ours) for line in lines if ours and not ours.isdisjoint(line.split(None, 2)[:2])]


def _of_line(line: bytes, all_ours: Collection[bytes]) -> _Mount:
    fields = line.split()
    ours = fields[0] in all_ours
    subvolid = _subvolid(fields[-1]) if ours else None
    read_only = b"ro" in fields[5].split(b",")
    return _Mount(int(fields[0]), int(fields[1]), ours, subvolid, _unescape(fields[3]), _unescape(fields[4]), read_only)


def _subvolid(options: bytes) -> int | None:
    found = _SUBVOLID.search(options)
    return int(found[1]) if found else None


def _tables() -> Iterator[tuple[int, bytes]]:
    """
    Yield the mountinfo of each mount namespace with a process or thread, with the inode number of the namespace.

    Comes several times for a namespace in which processes have different root directories, because each sees only the
    mounts below its own.
    """
    seen: set[tuple[str, int, int]] = set()
    for pid in processes.pids():
        for path in _with_threads(pid):
            try:
                namespace = os.readlink(f"{path}/ns/mnt")
                root = os.stat(f"{path}/root")
                key = (namespace, root.st_dev, root.st_ino)
                if key in seen:
                    continue
                with open(f"{path}/mountinfo", "rb") as file:
                    yield int(namespace[5:-1]), file.read()
            except OSError as error:
                if error.errno in processes.OUT_OF_RESOURCES:
                    raise  # skipping this table could hide a mount
                continue  # the process ended or is not readable; another process of the same namespace may be
            seen.add(key)


def _with_threads(pid: str) -> Iterable[str]:
    """
    Return the directories in ``/proc`` of a process and of its other threads.
    """
    process, tasks = f"/proc/{pid}", f"/proc/{pid}/task"
    try:
        alone = os.stat(tasks).st_nlink == 3  # ".", ".." and a link for each thread
    except OSError as error:
        if error.errno in processes.OUT_OF_RESOURCES:
            raise
        return ()
    if alone:
        return (process,)
    return (process, *(f"{tasks}/{thread}" for thread in processes.listed(tasks) if thread != pid))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""  # the process ended, or is not readable


def _device(text: bytes) -> tuple[int, int]:
    major, minor = text.split(b":")
    return int(major), int(minor)


def _join(root: bytes, path: bytes, point: bytes) -> bytes:
    """
    Return *path* from the top of the filesystem, if *root* of the filesystem is mounted at *point*.
    """
    return root.rstrip(b"/") + (path if point == b"/" else path[len(point) :]).rstrip(b"/") or b"/"


def _below(path: bytes, base: bytes, prefix: str) -> str:
    """
    Return *path* with *prefix* in place of *base*, or "" if *path* is not below *base*.
    """
    base = base.rstrip(b"/") + b"/"
    return prefix + os.fsdecode(path[len(base) :]) if path.startswith(base) else ""


def _unescape(path: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), path)
