"""
A btrfs in a file, from nothing: made, attached to a loop device, mounted, grown.

Making one needs no ``mkfs.btrfs``: the live blocks of an empty filesystem
are some 2 kB when compressed, and only identity and size differ between two.
"""

import base64
import contextlib
import errno
import fcntl
import functools
import os
import re
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pybtrfs import _image_template as template
from pybtrfs import ioctl, syscall
from pybtrfs.path import opened

MINIMUM_SIZE = 128 << 20
"""The least size of an image, in bytes."""

DEFAULT_OPTIONS = "nodiscard,user_subvol_rm_allowed"
"""How images are mounted; a discard would give back the space that a preallocated one has reserved."""

_MINIMUM_GROWN = 256 << 20  # the kernel resizes to no less
_SECTOR = 4096
_CHECKSUM = 32  # bytes in front of each block that its checksum may use

_PATIENCE = 2  # seconds; udev, for example, can hold a device a moment longer than its last user

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def create(path: _Path, size: int, *, sparse: bool = False) -> uuid.UUID:
    """
    Make the file *path*, mode 0600, that holds an empty btrfs of *size* bytes.

    The filesystem has an identity of its own, single metadata, 16 KiB nodes
    and 4 KiB sectors, and needs Linux 4.5 or later. The file's content is
    durable when this returns; the file is gone when this raises.

    Args:
        size: In bytes; rounded down to a multiple of 4096.
        sparse: Take space from the filesystem below only as data comes.
            When that is full, btrfs loses data that ``write`` has accepted.

    Returns:
        The filesystem's fsid.

    Raises:
        ValueError: *size* is below `MINIMUM_SIZE`.
        FileExistsError: *path* exists.
        OSError: With ``ENOSPC``, there is no space for *size* bytes.
    """
    if size < MINIMUM_SIZE:
        raise ValueError(f"an image of {size} bytes is too small: the least is {MINIMUM_SIZE}")
    size -= size % _SECTOR
    fsid = uuid.uuid4()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _extend(fd, size, sparse)
        for offset, block in _blocks(fsid, size):
            os.pwrite(fd, block, offset)
        os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return fsid


def _extend(fd: int, size: int, sparse: bool) -> None:
    if sparse:
        os.ftruncate(fd, size)
    else:
        # PyPy returns the error instead of raising it.
        if error := os.posix_fallocate(fd, 0, size):  # type: ignore[func-returns-value]
            raise OSError(error, os.strerror(error))


def _blocks(fsid: uuid.UUID, size: int) -> Iterator[tuple[int, bytes]]:
    """
    The offset and bytes of each block of a new filesystem.
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
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@functools.cache
def _crc32c_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


class LoopDevice:
    """
    A loop device, which the kernel frees once it is neither held here nor mounted.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()

    def fileno(self) -> int:
        """
        The device's fd, open for reading and writing.
        """
        if self._fd < 0:
            raise ValueError("the loop device is detached")
        return self._fd

    def detach(self) -> None:
        """
        Let go of the device; again is no error.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def attach(path: _Path) -> LoopDevice:
    """
    Attach the image *path* to a free loop device, without caching its data twice where direct I/O allows.

    Issues ``LOOP_CTL_GET_FREE`` and ``LOOP_CONFIGURE``, before Linux 5.8
    ``LOOP_SET_FD`` and ``LOOP_SET_STATUS64``. The caller must be able to
    open the loop devices, as root is.

    Raises:
        FileNotFoundError: There is no *path*, or no ``/dev/loop-control``.
        OSError: With ``EBUSY``, *path* is attached already.
    """
    with _opened(path) as backing, _opened("/dev/loop-control") as control:
        deadline = time.monotonic() + _PATIENCE
        _claim(backing, path, deadline)
        while True:
            name = f"/dev/loop{ioctl.loop_ctl_get_free(control)}"
            with contextlib.ExitStack() as undo:
                device = undo.enter_context(LoopDevice(name, os.open(name, os.O_RDWR | os.O_CLOEXEC)))
                try:
                    _configure(device.fileno(), backing)
                except OSError as error:
                    # EBUSY: somebody else was told the same device, and was faster.
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                else:
                    undo.pop_all()
                    return device


def _claim(backing: int, path: _Path, deadline: float) -> None:
    """
    Refuse an image in use: two devices with one filesystem would destroy it.

    The lock lasts as long as the kernel has the file *backing* open. Others than `attach` do not take it, but their
    devices are seen.
    """
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(backing, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not any(_devices(path)):
                return
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "the image is attached already", path)
        time.sleep(0.01)


def _configure(device: int, backing: int) -> None:
    try:
        # Without direct I/O the kernel caches everything twice; where the file cannot have it, it goes on without.
        ioctl.loop_configure(device, backing, flags=ioctl.LO_FLAGS_AUTOCLEAR | ioctl.LO_FLAGS_DIRECT_IO)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # LOOP_CONFIGURE came with Linux kernel commit 3448914e8cc5 ("loop: Add LOOP_CONFIGURE ioctl") (in v5.8).
        ioctl.loop_set_fd(device, backing)
        ioctl.loop_set_status64(device, ioctl.LO_FLAGS_AUTOCLEAR)


@contextlib.contextmanager
def _opened(path: _Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class MountedImage:
    """
    An image mounted at *target* by its loop *device*, until unmounted.
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
            error.add_note(f"{self.target!r} stays mounted: {refusal}")

    def unmount(self) -> None:
        """
        Unmount, which frees the loop device; again is no error.

        Issues umount2(2), which needs ``CAP_SYS_ADMIN``.

        Raises:
            OSError: With ``EBUSY``, something below *target* is open.
        """
        if self._mounted:
            syscall.umount2(self.target)
            self._mounted = False


def mount(path: _Path, target: _Path, *, options: str = "") -> MountedImage:
    """
    Mount the image *path* on the directory *target*, and let the filesystem fill the image if that has grown.

    Issues what `attach` does, mount(2), which needs ``CAP_SYS_ADMIN``, and ``BTRFS_IOC_RESIZE``.

    Args:
        options: btrfs's own, separated by commas; they go behind and override `DEFAULT_OPTIONS`.
    """
    data = f"{DEFAULT_OPTIONS},{options}" if options else DEFAULT_OPTIONS
    with attach(path) as device:
        syscall.mount(device.path, target, "btrfs", 0, data)
        with contextlib.ExitStack() as undo:
            mounted = undo.enter_context(MountedImage(device.path, os.fsdecode(target)))
            with opened(target) as fd:
                _fill(fd, device.fileno())
            undo.pop_all()
        return mounted


def _fill(fd: int, device: int) -> None:
    """
    Let the filesystem of *fd* take all of its *device*.
    """
    size = os.lseek(device, 0, os.SEEK_END)
    # Not when it fits already: the kernel may refuse that, for being below 256 MiB.
    if ioctl.dev_info(fd, 1).total_bytes < size - size % _SECTOR:
        ioctl.resize(fd, b"max")


def grow(path: _Path, size: int, *, sparse: bool = False) -> None:
    """
    Make the image *path*, mounted or not, *size* bytes large.

    A filesystem mounted in this mount namespace takes the new space at once,
    another one with its next `mount`. Not atomic: when an error leaves the
    file larger than the filesystem, calling this or `mount` completes it.

    Issues ``LOOP_SET_CAPACITY`` and ``BTRFS_IOC_RESIZE`` where the image is
    attached and mounted; both need ``CAP_SYS_ADMIN``.

    Args:
        size: In bytes; rounded down to a multiple of 4096.
        sparse: As in `create`.

    Raises:
        ValueError: *size* is less than the image has, or than the kernel grows a btrfs to.
        OSError: With ``ENOSPC``, there is no space for *size* bytes.
    """
    with _opened(path) as fd:
        size -= size % _SECTOR
        least = max(os.fstat(fd).st_size, _MINIMUM_GROWN)
        if size < least:
            raise ValueError(f"{path!r} cannot grow to {size} bytes: the least is {least}")
        _extend(fd, size, sparse)
        os.fsync(fd)
    for name in _devices(path):
        with _opened(name) as device:
            ioctl.loop_set_capacity(device)
            for target in _mounts(name):
                with opened(target) as fd:
                    if ioctl.dev_info(fd, 1).path == name.encode():  # and not what is mounted over it
                        _fill(fd, device)


def _devices(path: _Path) -> Iterator[str]:
    """
    The loop devices that *path* is attached to.
    """
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached since it was listed, or its file has no name any longer
            if os.path.samefile(backing.read_bytes().removesuffix(b"\n"), path):
                yield f"/dev/{backing.parts[3]}"


def _mounts(device: str) -> Iterator[bytes]:
    """
    Where *device* is mounted.
    """
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount, _, filesystem = line.partition(b" - ")
        if filesystem.split()[1] == device.encode():
            yield re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), mount.split()[4])


@contextlib.contextmanager
def temporary(
    size: int, *, sparse: bool = True, directory: str | os.PathLike[str] | None = None, options: str = ""
) -> Iterator[Path]:
    """
    Mount a new image, and yield the mount point; both are gone afterwards, whatever happens.

    What is still open then can be used until it is closed, and keeps its
    space until then.

    Args:
        size: In bytes, as in `create`.
        sparse: As in `create`, but by default: what is temporary may be lost.
        directory: Where to make the directory, mode 0700, that holds image
            and mount point; by default where temporary files go.
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
