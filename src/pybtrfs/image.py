"""
Image files that hold a btrfs: create, attach to a loop device, mount and grow them.

No ``mkfs.btrfs`` is needed. The live blocks of an empty filesystem take about 2 kB when compressed, and differ between
two filesystems only in uuids, size and time.
"""

import base64
import contextlib
import errno
import fcntl
import os
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from pybtrfs import _image_template as template
from pybtrfs import filesystem, ioctl, mountinfo, syscall
from pybtrfs._ffi import lib
from pybtrfs.path import Owner, opened, owned

MINIMUM_SIZE = 128 << 20
"""The minimum size of an image, in bytes."""

DEFAULT_OPTIONS = "nodiscard,ssd,user_subvol_rm_allowed"
"""
Mount options of images.

``nodiscard``, because discards would release the space that a preallocated image reserves. ``ssd``, because otherwise
concurrent fsyncs sleep wherever the disk below calls itself rotational, as disks of virtual machines do.
"""

_MINIMUM_GROWN = 256 << 20  # bytes; BTRFS_IOC_RESIZE refuses a smaller size
_SECTOR = 4096
_CHECKSUM = 32  # bytes at the start of each block that are reserved for its checksum
_READ_WRITE = os.O_RDWR | os.O_CLOEXEC

_PATIENCE = 2  # seconds; udev, for example, can keep a device open a moment longer than its last user

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def create(path: _Path, size: int, *, sparse: bool = False) -> uuid.UUID:
    """
    Create the image file *path*, mode 0600, with an empty btrfs of *size* bytes, and return its fsid.

    The filesystem has uuids of its own, single metadata, 16 KiB nodes and 4 KiB sectors. It needs Linux 4.5. The
    content of the file is durable when this returns; the file is removed on an error.

    Args:
        size: In bytes; rounded down to a multiple of 4096.
        sparse: Do not reserve the space. If the filesystem below fills up, btrfs then loses data that write(2)
            accepted.

    Raises:
        ValueError: *size* is below `MINIMUM_SIZE`.
        FileExistsError: *path* exists.
        OSError: ENOSPC: the filesystem below has less than *size* bytes free.
    """
    if size < MINIMUM_SIZE:
        raise ValueError(f"cannot create an image of {size} bytes: the minimum is {MINIMUM_SIZE}")
    size -= size % _SECTOR
    fsid = uuid.uuid4()
    with owned(os.open(path, _READ_WRITE | os.O_CREAT | os.O_EXCL, 0o600), path) as fd:
        try:
            _extend(fd, size, sparse=sparse)
            for offset, block in _blocks(fsid, size):
                os.pwrite(fd, block, offset)
            os.fsync(fd)
        except BaseException:
            os.unlink(path)
            raise
    return fsid


def _extend(fd: int, size: int, *, sparse: bool) -> None:
    if sparse:
        os.ftruncate(fd, size)
    else:
        # PyPy returns the error instead of raising it.
        if error := os.posix_fallocate(fd, 0, size):  # type: ignore[func-returns-value]
            raise OSError(error, os.strerror(error))


def _blocks(fsid: uuid.UUID, size: int) -> Iterator[tuple[int, bytes]]:
    """
    Yield the blocks of a new filesystem, each with its offset in the image.
    """
    top_level = uuid.uuid4().bytes
    packed = zlib.decompress(base64.b85decode("".join(template.TEMPLATE.split())))
    for placeholder, value in [
        (template.FSID, fsid.bytes),
        (template.DEVICE_UUID, uuid.uuid4().bytes),
        (template.CHUNK_TREE_UUID, uuid.uuid4().bytes),
        (template.TOP_LEVEL_UUID, top_level),
        (template.TOP_LEVEL_UUID_KEY, top_level[:8] + template.TOP_LEVEL_UUID_KEY[8:9] + top_level[8:]),
        (template.SIZE, struct.pack("<Q", size)),
        (template.TIME, struct.pack("<Q", int(time.time()))),
    ]:
        packed = packed.replace(placeholder, value)
    at = 0
    while at < len(packed):
        offset, length = struct.unpack_from("<QI", packed, at)
        body = packed[at + 12 + _CHECKSUM : at + 12 + length]
        yield offset, _crc32c(body).to_bytes(_CHECKSUM, "little") + body
        at += 12 + length


def _crc32c(data: bytes) -> int:
    return lib.pybtrfs_crc32c(0xFFFFFFFF, data, len(data)) ^ 0xFFFFFFFF


class LoopDevice(Owner):
    """
    An attached loop device. The kernel frees the device when it is neither open here nor mounted.

    Detach it, or use it in a ``with``: one that is forgotten is detached with a ResourceWarning.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def __repr__(self) -> str:
        return f"<LoopDevice {self.path} fd={self._fd}>"

    def fileno(self) -> int:
        """
        Return a file descriptor of the device, open for reading and writing.
        """
        if self._fd < 0:
            raise ValueError("the loop device is detached")
        return self._fd

    def detach(self) -> None:
        """
        Close the device; a second call does nothing.
        """
        self._close()


def attach(path: _Path) -> LoopDevice:
    """
    Attach the image *path* to a free loop device, with direct I/O if the filesystem below supports it.

    Issues ``LOOP_CTL_GET_FREE`` and ``LOOP_CONFIGURE``; before Linux 5.8 ``LOOP_SET_FD`` and ``LOOP_SET_STATUS64``. The
    caller must be able to open the loop devices, which only root can by default.

    Raises:
        FileNotFoundError: *path* or ``/dev/loop-control`` does not exist.
        OSError: EBUSY: *path* is attached already.
    """
    with (
        owned(os.open(path, _READ_WRITE), path) as backing,
        owned(os.open("/dev/loop-control", _READ_WRITE)) as control,
    ):
        deadline = time.monotonic() + _PATIENCE
        _claim(backing, path, deadline)
        while True:
            name = f"/dev/loop{ioctl.loop_ctl_get_free(control)}"
            with contextlib.ExitStack() as undo:
                device = undo.enter_context(LoopDevice(name, os.open(name, _READ_WRITE)))
                try:
                    _configure(device.fileno(), backing)
                except OSError as error:
                    # EBUSY: LOOP_CTL_GET_FREE gave the same device to another process, which was faster.
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                else:
                    undo.pop_all()
                    return device


def _claim(backing: int, path: _Path, deadline: float) -> None:
    """
    Lock an image, or refuse it if it is attached: two loop devices on one image would destroy the filesystem.

    The lock lasts as long as the kernel has the file *backing* open. Other programs, such as losetup, do not take the
    lock, so the loop devices are checked as well.
    """
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(backing, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not any(_devices(path)):
                return
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "the image is already attached to a loop device", path)
        time.sleep(0.01)


def _configure(device: int, backing: int) -> None:
    try:
        # Without direct I/O the kernel caches all data twice. It ignores the flag if the file does not support direct
        # I/O.
        ioctl.loop_configure(device, backing, flags=ioctl.LO_FLAGS_AUTOCLEAR | ioctl.LO_FLAGS_DIRECT_IO)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # LOOP_CONFIGURE came with Linux kernel commit 3448914e8cc5 ("loop: Add LOOP_CONFIGURE ioctl") (in v5.8).
        ioctl.loop_set_fd(device, backing)
        ioctl.loop_set_status64(device, ioctl.LO_FLAGS_AUTOCLEAR)


class MountedImage:
    """
    An image that is mounted at *target* through the loop *device*.
    """

    def __init__(self, device: str, target: str) -> None:
        self.device = device
        self.target = target
        self._mounted = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.unmount()
        except OSError as refusal:
            if error is None:
                raise
            error.add_note(f"{self.target!r} is still mounted: {refusal}")

    def unmount(self) -> None:
        """
        Unmount the image and free its loop device; a second call does nothing.

        Issues umount2(2), which needs ``CAP_SYS_ADMIN``.

        Raises:
            OSError: EBUSY: a file below *target* is open.
        """
        if self._mounted:
            syscall.umount2(self.target)
            self._mounted = False


def mount(path: _Path, target: _Path, *, options: str = "") -> MountedImage:
    """
    Mount the image *path* on the directory *target*. If the image has grown, grow the filesystem to its size.

    Issues mount(2) and ``BTRFS_IOC_RESIZE``, which need ``CAP_SYS_ADMIN``, after the ioctls of `attach`.

    Args:
        options: Mount options of btrfs, separated by commas; they follow and override `DEFAULT_OPTIONS`.
    """
    data = f"{DEFAULT_OPTIONS},{options}" if options else DEFAULT_OPTIONS
    with attach(path) as device:
        try:
            syscall.mount(device.path, target, "btrfs", 0, data)
        except OSError as error:
            error.filename, error.filename2 = path, target
            raise
        with contextlib.ExitStack() as undo:
            mounted = undo.enter_context(MountedImage(device.path, os.fsdecode(target)))
            with opened(target) as fd:
                found = list(filesystem.dev_infos(fd))
                for info in found if len(found) == 1 else _at(found, device.path):
                    _fill(fd, device.fileno(), info)
            undo.pop_all()
        return mounted


def _at(devices: Iterable[ioctl.DevInfo], path: str) -> list[ioctl.DevInfo]:
    return [info for info in devices if info.path == os.fsencode(path)]


def _fill(fd: int, device: int, info: ioctl.DevInfo) -> None:
    """
    Grow the filesystem of *fd* to the size of its *device*, which *info* describes.
    """
    size = os.lseek(device, 0, os.SEEK_END)
    # If the size fits already, skip the ioctl: the kernel refuses sizes below 256 MiB.
    if info.total_bytes < size - size % _SECTOR:
        ioctl.resize(fd, b"%d:max" % info.devid)


def grow(path: _Path, size: int, *, sparse: bool = False) -> None:
    """
    Grow the image *path*, mounted or not, to *size* bytes.

    If the image is mounted in this mount namespace, its filesystem grows at once, otherwise at its next `mount`. This
    is not atomic: if an error leaves the file larger than the filesystem, a second call or `mount` completes the
    growth.

    Issues ``LOOP_SET_CAPACITY`` for an attached image and ``BTRFS_IOC_RESIZE`` for a mounted one; both need
    ``CAP_SYS_ADMIN``.

    Args:
        size: In bytes; rounded down to a multiple of 4096.
        sparse: As in `create`.

    Raises:
        ValueError: *size* is below the size of the image, or below 256 MiB, which the kernel does not grow a btrfs to.
        OSError: ENOSPC: the filesystem below has too little space.
    """
    with owned(os.open(path, _READ_WRITE), path) as fd:
        size -= size % _SECTOR
        least = max(os.fstat(fd).st_size, _MINIMUM_GROWN)
        if size < least:
            raise ValueError(f"cannot grow {path!r} to {size} bytes: the minimum is {least}")
        _extend(fd, size, sparse=sparse)
        os.fsync(fd)
    for name in _devices(path):
        with owned(os.open(name, _READ_WRITE), path) as device:
            ioctl.loop_set_capacity(device)
            for target in mountinfo.mounted_from(name):
                with owned(os.open(target, os.O_RDONLY | os.O_CLOEXEC), path) as fd:
                    # If something else is mounted over it, the path leads there, and has another device.
                    for info in _at(filesystem.dev_infos(fd), name):
                        _fill(fd, device, info)


def _devices(path: _Path) -> Iterator[str]:
    """
    Yield the loop devices that the image *path* is attached to.
    """
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached since it was listed, or its file is deleted
            if os.path.samefile(backing.read_bytes().removesuffix(b"\n"), path):
                yield f"/dev/{backing.parts[3]}"


@contextlib.contextmanager
def temporary(
    size: int, *, sparse: bool = True, directory: str | os.PathLike[str] | None = None, options: str = ""
) -> Iterator[Path]:
    """
    Mount a new image, and yield its mount point; at the end unmount and remove both, also after an exception.

    A file that is still open at the end stays usable, and keeps the space of the image, until it is closed.

    Args:
        size: In bytes, as in `create`.
        sparse: As in `create`, but true by default, because the data is temporary.
        directory: The directory for a new directory, mode 0700, with image and mount point. By default it is that of
            `tempfile`.
        options: As in `mount`.
    """
    with tempfile.TemporaryDirectory(prefix="pybtrfs-", dir=directory) as own:
        path, target = Path(own, "image"), Path(own, "mount")
        target.mkdir()
        create(path, size, sparse=sparse)
        try:
            mount(path, target, options=options)
            yield target
        finally:
            if target.is_mount():
                syscall.umount2(target, syscall.MNT_DETACH)
