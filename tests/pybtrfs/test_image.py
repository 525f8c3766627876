"""
Images: created, attached, mounted and grown, and checked by btrfs-progs.
"""

import errno
import gc
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import time
import uuid
import zlib
from base64 import b85decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pybtrfs import image, ioctl, kernel, syscall
from pybtrfs.path import opened

ROOT = Path(__file__).parent.parent.parent
SIZE = image.MINIMUM_SIZE
MIB = 1 << 20


def progs(command: str, *arguments: str | Path) -> str:
    """
    Return the output of a command of btrfs-progs, which must succeed; it is the second opinion here.
    """
    if not (found := shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")):
        pytest.skip("needs btrfs-progs")
    result = subprocess.run([found, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def identity(mount: Path | str) -> tuple[bytes, bytes, bytes]:
    """
    Return the uuids of the mounted filesystem, its device and its top level.
    """
    with opened(mount) as fd:
        return ioctl.fs_info(fd).fsid, ioctl.dev_info(fd, 1).uuid, ioctl.get_subvol_info(fd).uuid


def device_size(mount: Path | str) -> int:
    with opened(mount) as fd:
        return ioctl.dev_info(fd, 1).total_bytes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "mount"
    target.mkdir()
    return target


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """
    A function that lets an ioctl fail a number of times.
    """
    real = kernel.current.ioctl

    def refuse(name: str, number: int, times: int) -> None:
        left = [number] * times

        def fail_first(fd: int, called: str, *arguments: Any) -> int:
            if called == name and left:
                raise OSError(left.pop(), "injected")
            return real(fd, called, *arguments)

        monkeypatch.setattr(kernel.current, "ioctl", fail_first)

    return refuse


class TestCreate:
    @pytest.mark.parametrize("size", [SIZE, SIZE + 5000, 1 << 30])
    def test_valid(self, path: Path, size: int) -> None:
        """
        A new image is a valid filesystem of its size, with the returned fsid.
        """
        fsid = image.create(path, size, sparse=True)
        assert path.stat().st_size == size // 4096 * 4096
        assert path.stat().st_mode & 0o777 == 0o600
        progs("btrfs", "check", "--readonly", path)
        superblock = progs("btrfs", "inspect-internal", "dump-super", path)
        assert f"fsid\t\t\t{fsid}" in superblock
        assert f"total_bytes\t\t{size // 4096 * 4096}" in superblock

    def test_allocation(self, tmp_path: Path) -> None:
        """
        An image reserves all its space, unless it is sparse.
        """
        image.create(tmp_path / "full", SIZE)
        image.create(tmp_path / "sparse", SIZE, sparse=True)
        assert (tmp_path / "full").stat().st_blocks * 512 >= SIZE
        assert (tmp_path / "sparse").stat().st_blocks * 512 < MIB

    def test_too_small(self, path: Path) -> None:
        """
        A size below the minimum is refused with the minimum, and creates no file.
        """
        with pytest.raises(ValueError, match=f"the minimum is {SIZE}"):
            image.create(path, SIZE - 1)
        assert not path.exists()

    def test_exists(self, path: Path) -> None:
        """
        An existing file stays as it is.
        """
        path.write_text("precious")
        with pytest.raises(FileExistsError):
            image.create(path, SIZE)
        assert path.read_text() == "precious"

    @pytest.mark.btrfs
    def test_no_space(self, target: Path) -> None:
        """
        If the space does not suffice, create raises ENOSPC and leaves no file.
        """
        syscall.mount("tmpfs", target, "tmpfs", 0, "size=64m")
        try:
            with pytest.raises(OSError) as caught:
                image.create(target / "image", SIZE)
            assert caught.value.errno == errno.ENOSPC
            assert list(target.iterdir()) == []
        finally:
            syscall.umount2(target)

    @pytest.mark.parametrize("kind", [os.fspath, os.fsencode, Path])
    def test_paths(self, path: Path, kind: Callable[[Path], Any]) -> None:
        """
        A path may be str, bytes or PathLike.
        """
        image.create(kind(path), SIZE, sparse=True)
        assert path.exists()


@pytest.mark.btrfs
class TestMount:
    def test_again(self, path: Path, target: Path) -> None:
        """
        Written data is there at the next mount, and the filesystem stays valid.
        """
        fsid = image.create(path, SIZE, sparse=True)
        with image.mount(path, target) as mounted:
            assert mounted.target == str(target)
            assert identity(target)[0] == fsid.bytes
            (target / "file").write_bytes(b"x" * 100_000)
        progs("btrfs", "check", "--readonly", path)
        with image.mount(path, target):
            assert (target / "file").read_bytes() == b"x" * 100_000

    def test_options(self, path: Path, target: Path) -> None:
        """
        By default, no discard releases reserved space, users may delete their subvolumes, and no fsync sleeps.

        Options override the defaults.
        """
        image.create(path, SIZE, sparse=True)
        with image.mount(path, target):
            options = mount_options(target)
            assert {"ssd", "user_subvol_rm_allowed"} <= options
            assert not any(option.startswith("discard") for option in options)
        with image.mount(path, target, options="discard=async,compress=zstd:1,nossd"):
            options = mount_options(target)
            assert {"user_subvol_rm_allowed", "discard=async", "compress=zstd:1"} <= options
            assert "ssd" not in options

    def test_unmount(self, path: Path, target: Path) -> None:
        """
        Unmounting frees the device. An open file makes it EBUSY, and a second call does nothing.
        """
        image.create(path, SIZE, sparse=True)
        mounted = image.mount(path, target)
        with (target / "file").open("w"), pytest.raises(OSError) as caught:
            mounted.unmount()
        assert caught.value.errno == errno.EBUSY
        mounted.unmount()
        mounted.unmount()
        assert not target.is_mount()

    def test_exception_is_kept(self, path: Path, target: Path) -> None:
        """
        If unmounting fails after an exception, the exception propagates, with a note.
        """
        image.create(path, SIZE, sparse=True)
        with pytest.raises(RuntimeError, match="the first") as caught, image.mount(path, target) as mounted:
            file = (target / "file").open("w")
            raise RuntimeError("the first")
        assert "is still mounted" in caught.value.__notes__[0]
        file.close()
        mounted.unmount()

    def test_three(self, btrfs_mount: Callable[..., Path]) -> None:
        """
        Three images can be mounted together, because they share no uuid.
        """
        found = [uuid for _ in range(3) for uuid in identity(btrfs_mount())]
        assert len(set(found)) == 9

    def test_uuid_tree(self, path: Path) -> None:
        """
        The uuid tree has the uuid of the top level.
        """
        image.create(path, SIZE, sparse=True)
        roots = progs("btrfs", "inspect-internal", "dump-tree", "-t", "root", path)
        keys = progs("btrfs", "inspect-internal", "dump-tree", "-t", "uuid", path)
        [found] = re.findall(r"key \(0x(\w+) UUID_KEY_SUBVOL 0x(\w+)\)", keys)
        key = struct.pack("<QQ", *(int(half, 16) for half in found))
        assert f"uuid {uuid.UUID(bytes=key)}" in roots

    @pytest.mark.parametrize("bad", [{"options": "nonsense"}, {"target": "/nonexistent"}])
    def test_refused(self, path: Path, target: Path, bad: dict[str, str]) -> None:
        """
        If the mount is refused, the image is detached.
        """
        image.create(path, SIZE, sparse=True)
        with pytest.raises(OSError, match=r"Invalid argument|No such file"):
            image.mount(path, **{"target": target} | bad)

    def test_resize_refused(self, path: Path, target: Path, refuse: Callable[..., None]) -> None:
        """
        If the filesystem cannot grow to the size of its image, the image is unmounted.
        """
        image.create(path, SIZE, sparse=True)
        os.truncate(path, 2 * SIZE)
        refuse("BTRFS_IOC_RESIZE", errno.EIO, 1)
        with pytest.raises(OSError, match="injected"):
            image.mount(path, target)
        assert not target.is_mount()


@pytest.mark.btrfs
class TestAttach:
    def test_detach(self, path: Path) -> None:
        """
        An attached device has the image as its backing file, until detached; a second detach does nothing.
        """
        image.create(path, SIZE, sparse=True)
        with image.attach(path) as device:
            backing = Path(f"/sys/block/{Path(device.path).name}/loop/backing_file")
            assert backing.read_text().rstrip() == str(path)
        device.detach()
        with pytest.raises(ValueError, match="detached"):
            device.fileno()

    def test_a_forgotten_device(self, path: Path) -> None:
        """
        A device that nobody detaches is detached with a warning that names it.
        """

        def forget() -> None:
            image.attach(path)
            gc.collect()

        image.create(path, SIZE, sparse=True)
        with pytest.warns(ResourceWarning, match="unclosed <LoopDevice /dev/loop"):
            forget()

    @pytest.mark.parametrize("blind", ["fcntl.flock", "_devices"])
    def test_twice(self, path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, blind: str) -> None:
        """
        An attached image is refused, by its lock and by its device: two devices would destroy the filesystem.
        """
        monkeypatch.setattr(image, "_PATIENCE", 0)
        monkeypatch.setattr(f"pybtrfs.image.{blind}", lambda *arguments: ())
        image.create(path, SIZE, sparse=True)
        with image.mount(path, target), pytest.raises(OSError, match="already attached to a loop device") as caught:
            image.attach(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, path)

    def test_given_back_late(self, path: Path) -> None:
        """
        Attaching waits for another process that keeps the old device open for a moment.
        """
        image.create(path, SIZE, sparse=True)
        device = image.attach(path)
        held = os.open(device.path, os.O_RDONLY)
        device.detach()
        with ThreadPoolExecutor(1) as pool:
            again = pool.submit(image.attach, path)
            os.close(held)
            again.result().detach()

    def test_missing(self, path: Path) -> None:
        """
        The error for a missing image has its name.
        """
        with pytest.raises(FileNotFoundError, match="image"):
            image.attach(path)

    def test_taken(self, path: Path, refuse: Callable[..., None]) -> None:
        """
        If another process takes the free device first, the next free device is used.
        """
        image.create(path, SIZE, sparse=True)
        refuse("LOOP_CONFIGURE", errno.EBUSY, 3)
        image.attach(path).detach()

    def test_at_once(self) -> None:
        """
        Concurrent threads get a device each.
        """

        def use(_: int) -> bytes:
            with image.temporary(SIZE) as mount:
                return identity(mount)[0]

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(use, range(16)))) == 16

    def test_old_kernel(self, path: Path, target: Path, refuse: Callable[..., None]) -> None:
        """
        Without LOOP_CONFIGURE an image is attached in two steps, and the kernel still frees the device.
        """
        image.create(path, SIZE, sparse=True)
        refuse("LOOP_CONFIGURE", errno.EINVAL, 1)
        with image.mount(path, target):
            (target / "file").write_text("text")

    def test_unprivileged(self, btrfs: Path, unprivileged: Callable[..., Any]) -> None:
        """
        A caller who cannot open the loop devices gets their names.
        """
        image.create(btrfs / "image", SIZE, sparse=True)
        (btrfs / "image").chmod(0o666)
        with pytest.raises(PermissionError, match="loop-control"):
            unprivileged(image.attach, btrfs / "image")


@pytest.mark.btrfs
class TestGrow:
    def test_mounted(self, path: Path, target: Path) -> None:
        """
        A mounted filesystem grows at once, also at a mount point whose name mountinfo escapes.
        """
        odd = target / "with space\n\\and \udcff"
        odd.mkdir()
        image.create(path, SIZE, sparse=True)
        with image.mount(path, odd):
            image.grow(path, 2 * SIZE + 5000, sparse=True)
            assert device_size(odd) == 2 * SIZE + 4096
            image.grow(path, 2 * SIZE + 4096)
            assert path.stat().st_blocks * 512 >= 2 * SIZE
        progs("btrfs", "check", "--readonly", path)

    def test_attached(self, path: Path) -> None:
        """
        A device that is not mounted gets the new size.
        """
        image.create(path, SIZE, sparse=True)
        with image.attach(path) as device:
            image.grow(path, 2 * SIZE, sparse=True)
            assert os.lseek(device.fileno(), 0, os.SEEK_END) == 2 * SIZE

    def test_offline(self, path: Path, target: Path) -> None:
        """
        If the image grew while unmounted, the filesystem grows at the next mount.
        """
        image.create(path, SIZE, sparse=True)
        image.grow(path, 3 * SIZE, sparse=True)
        with image.mount(path, target):
            assert device_size(target) == 3 * SIZE
        progs("btrfs", "check", "--readonly", path)

    @pytest.mark.parametrize(
        ("size", "wanted", "minimum"), [(SIZE, 2 * SIZE - 1, 2 * SIZE), (3 * SIZE, 2 * SIZE, 3 * SIZE)]
    )
    def test_too_small(self, path: Path, size: int, wanted: int, minimum: int) -> None:
        """
        An image never shrinks, and never gets a size that the kernel does not grow a filesystem to.
        """
        image.create(path, size, sparse=True)
        with pytest.raises(ValueError, match=f"the minimum is {minimum}"):
            image.grow(path, wanted)
        assert path.stat().st_size == size


@pytest.mark.btrfs
class TestTemporary:
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_exception(self, tmp_path: Path, error: type[BaseException]) -> None:
        """
        After an exception nothing is left, even if a file is still open.
        """
        with pytest.raises(error), image.temporary(SIZE, directory=tmp_path) as mount:
            file = (mount / "file").open("w")
            raise error
        assert list(tmp_path.iterdir()) == []
        file.close()

    def test_sparse(self, tmp_path: Path) -> None:
        """
        A temporary image reserves no space by default.
        """
        for sparse, least in [(True, 0), (False, SIZE)]:
            with image.temporary(SIZE, sparse=sparse, directory=tmp_path) as mount:
                used = (mount.parent / "image").stat().st_blocks * 512
            assert least <= used < least + MIB


def mount_options(target: Path) -> set[str]:
    [line] = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {target} " in line]
    return set(line.split()[-1].split(","))


class TestTemplate:
    def test_regenerated(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        The script reproduces the template: a valid filesystem with the same trees, features and placeholders.
        """
        progs("mkfs.btrfs", "--version")
        tool = load(ROOT / "tools/make_image_template.py")
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        before = int(time.time())
        packed = tool.pack(tool.make(), range(before, int(time.time()) + 1))
        module: dict[str, Any] = {}
        exec(tool.render(packed), module)
        assert module.keys() >= {name for name in vars(image.template) if name.isupper()}
        assert structure(module["TEMPLATE"]) == structure(image.template.TEMPLATE)
        monkeypatch.setattr(image, "template", ModuleType("template"))
        vars(image.template).update(module)
        image.create(path, SIZE, sparse=True)
        progs("btrfs", "check", "--readonly", path)


def structure(text: str) -> list[tuple[Any, ...]]:
    """
    Return the kind of each block of a template: a superblock with its features, or the root of a tree.
    """
    return sorted(
        ("superblock", offset, *struct.unpack_from("<3Q", block, 172))
        if block[64:72] == b"_BHRfS_M"
        else ("tree", *struct.unpack_from("<Q", block, 88))
        for offset, block in blocks(zlib.decompress(b85decode("".join(text.split()))))
    )


def blocks(packed: bytes) -> Iterator[tuple[int, bytes]]:
    while packed:
        offset, length = struct.unpack_from("<QI", packed)
        yield offset, packed[12 : 12 + length]
        packed = packed[12 + length :]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
