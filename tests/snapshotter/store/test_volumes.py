"""
Volumes: the operations that the contract needs, on plain directories and on btrfs, and the cases that only btrfs has.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, filesystem, ioctl, space, subvolume, syscall
from pybtrfs.errors import NotSubvolumeError
from pybtrfs.mountinfo import MountTable
from pybtrfs.path import owned
from snapshotter import Mount
from snapshotter.errors import FailedPreconditionError
from snapshotter.mounting import mounted
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.counters import Counters
from snapshotter.store.layout import FS, LAYER, Directory, Place
from snapshotter.store.volumes import Contents, MountMode, Volumes
from snapshotter.testing import DirectoryVolumes
from tests import multidevice
from tests.namespaces import held_namespace, other_namespace, source, thread_namespace
from tests.snapshotter.conftest import entries

NONE = MountTable()
Make = Callable[[str], Directory]
Copy = Callable[[Place, str], Directory]


PATIENCE = 10


@contextmanager
def opened(volumes: type[Volumes], root: Path, mode: MountMode = "btrfs") -> Iterator[Volumes]:
    made = volumes(str(root), mode)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def volumes(backend: str, work: Path) -> Iterator[Volumes]:
    """
    Volumes in the work directory.
    """
    with opened(BtrfsVolumes if backend == "btrfs" else DirectoryVolumes, work) as made:
        yield made


@pytest.fixture
def make(work: Path) -> Iterator[Make]:
    """
    A function that makes the directory of a snapshot.
    """
    with ExitStack() as stack:

        def make(name: str) -> Directory:
            path = work / name
            path.mkdir(exist_ok=True)
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            return Directory(fd, str(path))

        yield make


@pytest.fixture
def copy(volumes: Volumes, make: Make, work: Path) -> Iterator[Copy]:
    """
    A function that makes the directory of a snapshot with a copy of a layer.
    """
    with open_directory(work) as fd:

        def copy(layer: Place, name: str) -> Directory:
            volumes.snapshot(layer, Place(fd, name, str(work / name)), b"record")
            return make(name)

        yield copy


def at(directory: Directory, name: str) -> Place:
    return Place(directory.fd, name, os.path.join(directory.path, name))


def found(volumes: Volumes, directory: Directory) -> Contents:
    return volumes.inspect(at(directory, "."))[1]


def fs(directory: Directory) -> Path:
    return Path(directory.path, FS)


def layer(directory: Directory) -> Path:
    return Path(directory.path, LAYER)


def set_flags(path: Path, flags: int) -> None:
    """
    Replace the flags of a file, also in a read-only subvolume.
    """
    root = next(parent for parent in (path, *path.parents) if subvolume.is_subvolume(parent))
    read_only = subvolume.get_read_only(root)
    subvolume.set_read_only(root, read_only=False)
    with owned(os.open(path, os.O_RDONLY)) as fd:
        ioctl.setflags(fd, flags)
    subvolume.set_read_only(root, read_only=read_only)


def fill(root: Path) -> None:
    """
    Put a file of every type into a directory.
    """
    (root / "directory").mkdir(0o711)
    (root / "directory" / "file").write_bytes(os.urandom(10_000))
    (root / "empty").touch(0o640)
    os.setxattr(root / "empty", "user.a", b"b")
    os.link(root / "empty", root / "directory" / "link")
    (root / "symlink").symlink_to("nowhere")
    os.mkfifo(root / "fifo", 0o600)
    (root / os.fsdecode(b"\xff")).touch()
    root.chmod(0o750)


@pytest.mark.parametrize("umask", [0, 0o077])
def test_create(umask: int, volumes: Volumes, make: Make) -> None:
    """
    A new subvolume is empty and has mode 0755, with any umask.
    """
    directory = make("1")
    assert found(volumes, directory) == Contents(False, False, False)
    before = os.umask(umask)
    try:
        volumes.create(directory)
    finally:
        os.umask(before)
    assert found(volumes, directory) == Contents(True, False, True)
    assert stat.S_IMODE(fs(directory).stat().st_mode) == 0o755
    assert os.listdir(fs(directory)) == []
    with pytest.raises(FileExistsError):
        volumes.create(directory)


def test_freeze(volumes: Volumes, make: Make) -> None:
    """
    A layer has all files of the active subvolume, and does not follow its changes; a second freeze replaces the layer.
    """
    directory = make("1")
    volumes.create(directory)
    fill(fs(directory))
    volumes.freeze(directory)
    assert found(volumes, directory) == Contents(True, True, True)
    first = entries(fs(directory))
    assert entries(layer(directory)) == first
    (fs(directory) / "new").touch()
    (fs(directory) / "empty").write_text("not any more")
    assert entries(layer(directory)) == first
    volumes.freeze(directory)
    assert entries(layer(directory)) == entries(fs(directory)) != first


def test_snapshot(volumes: Volumes, make: Make, copy: Copy) -> None:
    """
    A snapshot of a layer or of an active subvolume is writable and independent.
    """
    parent, fork = make("1"), make("3")
    volumes.create(parent)
    fill(fs(parent))
    volumes.freeze(parent)
    before = entries(layer(parent))
    child = copy(at(parent, LAYER), "2")
    assert volumes.record_storage.read(child.fd) == b"record"
    assert entries(fs(child)) == before
    (fs(child) / "of child").touch()
    volumes.fork(at(child, FS), fork)
    (fs(fork) / "of fork").touch()
    assert entries(layer(parent)) == before
    assert entries(fs(child)).keys() == before.keys() | {"of child"}
    assert entries(fs(fork)).keys() == before.keys() | {"of child", "of fork"}
    with pytest.raises(FileExistsError):
        copy(at(fork, FS), "2")
    assert entries(fs(child)).keys() == before.keys() | {"of child"}
    with pytest.raises(FileNotFoundError):
        copy(at(parent, "nothing"), "4")


def test_destroy(volumes: Volumes, make: Make) -> None:
    """
    A subvolume is destroyed with its files, a missing subvolume is no error, and other subvolumes stay.
    """
    directory = make("1")
    volumes.destroy(directory, FS, NONE)
    volumes.create(directory)
    fill(fs(directory))
    volumes.freeze(directory)
    volumes.destroy(directory, FS, NONE)
    assert found(volumes, directory) == Contents(False, True, True)
    volumes.destroy(directory, FS, NONE)
    volumes.destroy(directory, LAYER, NONE)
    assert found(volumes, directory) == Contents(False, False, False)


def test_identity(volumes: Volumes, make: Make, work: Path) -> None:
    """
    The identity is the same for the same directory, and differs for another directory.
    """
    other = Path(make("other").path)
    with opened(type(volumes), work) as again, opened(type(volumes), other) as another:
        assert again.identity() == volumes.identity() != another.identity()
        assert all(isinstance(value, str) for value in volumes.identity().values())


@pytest.mark.btrfs
def test_identity_of_btrfs(btrfs: Path) -> None:
    """
    The identity has UUIDs in their usual text form.
    """
    with opened(BtrfsVolumes, btrfs) as volumes:
        identity = volumes.identity()
    assert identity["fsid"] == str(filesystem.get_info(btrfs).fsid)
    assert identity["subvolume"] == str(subvolume.get_info(btrfs).uuid)


def test_quiet_disk(volumes: Volumes, make: Make) -> None:
    """
    A disk without errors has no write errors.
    """
    directory = make("1")
    volumes.barrier(directory.fd)
    volumes.verify()
    assert volumes.write_errors().total == 0
    assert volumes.write_errors(recent=True) == volumes.write_errors()
    volumes.reclaim(0)
    assert volumes.record_limit >= 1024


def test_not_btrfs(tmp_path: Path) -> None:
    """
    On another filesystem the error names the path and the cures.
    """
    with pytest.raises(FailedPreconditionError, match="is not on btrfs: choose a directory on btrfs, or make an image"):
        BtrfsVolumes(str(tmp_path), "btrfs")


@pytest.mark.btrfs
def test_failed_opening(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the filesystem cannot be read, no descriptor stays open.
    """

    def get_info(target: int) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "get_info", get_info)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            BtrfsVolumes(str(btrfs), "btrfs")
    assert os.listdir("/proc/self/fd") == before


# Mounts


@pytest.mark.btrfs
@pytest.mark.parametrize("mode", ["btrfs", "bind"])
def test_mount(mode: MountMode, btrfs: Path) -> None:
    """
    Both modes mount the subvolume itself, read-only on request, also with spaces in its path.

    In mode btrfs, an entry that is not a subvolume is an error.
    """
    root = btrfs / "with a space"
    root.mkdir()
    subvolume.create(root / FS)
    (root / FS / "file").write_text("content")
    (root / LAYER).symlink_to(FS)
    with opened(BtrfsVolumes, root, mode) as volumes, open_directory(root) as fd:
        directory = Directory(fd, str(root))
        writable = volumes.mount(at(directory, FS), read_only=False)
        read_only = volumes.mount(at(directory, FS), read_only=True)
        if mode == "btrfs":
            with pytest.raises(NotSubvolumeError):
                volumes.mount(at(directory, LAYER), read_only=True)
    subvolid = subvolume.get_id(root / FS)
    if mode == "btrfs":
        assert writable == Mount("btrfs", source(btrfs), options=(f"subvolid={subvolid}",))
        assert read_only == Mount("btrfs", source(btrfs), options=(f"subvolid={subvolid}", "ro"))
    else:
        assert writable == Mount("bind", str(root / FS), options=("rbind", "rw"))
        assert read_only == Mount("bind", str(root / FS), options=("rbind", "ro"))
    with mounted((writable,)) as path:
        assert subvolume.get_id(path) == subvolid
        Path(path, "new").write_text("from outside")
    with mounted((read_only,)) as path:
        assert Path(path, "new").read_text() == "from outside"
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            Path(path, "file").write_text("changed")
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            os.utime(Path(path, "file"))
    assert (root / FS / "file").read_text() == "content"


@pytest.mark.btrfs
def test_device(btrfs_mount: Callable[..., Path]) -> None:
    """
    The device is a device of this filesystem, not of another.
    """
    roots = [btrfs_mount() for _ in range(3)]
    for root in roots:
        subvolume.create(root / FS)
        with opened(BtrfsVolumes, root) as volumes, open_directory(root) as fd:
            assert volumes.mount(at(Directory(fd, str(root)), FS), read_only=False).source == source(root)


def source_of(volumes: Volumes, root: Path) -> str:
    with open_directory(root) as fd:
        return volumes.mount(at(Directory(fd, str(root)), FS), read_only=False).source


@pytest.mark.btrfs
@pytest.mark.parametrize("lost", [1, 2])
def test_device_of_a_degraded_filesystem(tmp_path: Path, lost: int) -> None:
    """
    Mounts name a device that is present, and are possible, also while another device is missing.
    """
    with multidevice.degraded(tmp_path, lost) as root:
        subvolume.create(root / FS)
        with opened(BtrfsVolumes, root) as volumes, open_directory(root) as fd:
            assert source_of(volumes, root) == source(root)
            with mounted((volumes.mount(at(Directory(fd, str(root)), FS), read_only=False),)) as path:
                assert subvolume.get_id(path) == subvolume.get_id(root / FS)
            assert volumes.write_errors() == Counters(0, {1: 0, 2: 0}, 1, frozenset({lost}))


@pytest.mark.btrfs
def test_device_of_a_sprouted_filesystem(tmp_path: Path) -> None:
    """
    Mounts do not name the seed, and the seed has no counters.
    """
    with multidevice.sprouted(tmp_path) as root:
        subvolume.create(root / FS)
        with opened(BtrfsVolumes, root) as volumes:
            assert source_of(volumes, root) == device.get_info(root, 2).path
            assert volumes.write_errors().devices == {2: 0}


@pytest.mark.btrfs
def test_removed_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A device that was removed is not named any more, not even for a second. Otherwise devices are read once a second.
    """
    paths = multidevice.make(tmp_path, 2, "single")
    with multidevice.attached(*paths) as disks, multidevice.mounted(tmp_path / "m", *(d.path for d in disks)) as root:
        subvolume.create(root / FS)
        with opened(BtrfsVolumes, root) as volumes:
            found = []
            find_node = device.find_node
            monkeypatch.setattr(device, "find_node", lambda fd: found.append(fd) or find_node(fd))
            assert source_of(volumes, root) == source_of(volumes, root) == disks[0].path
            assert len(found) == 1
            multidevice.progs("btrfs", "device", "remove", disks[0].path, root)
            assert source_of(volumes, root) == disks[1].path
            assert volumes.write_errors().devices == {2: 0}


@contextmanager
def mount(*arguments: Any) -> Iterator[None]:
    syscall.mount(*arguments)
    try:
        yield
    finally:
        syscall.umount2(arguments[1])


def refused(volumes: Volumes, directory: Directory) -> None:
    """
    Check that destroying the active subvolume is refused with EBUSY and changes nothing.
    """
    before = entries(fs(directory)).keys()
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)) as caught:
        volumes.destroy(directory, FS, volumes.mounts())
    assert caught.value.errno == errno.EBUSY
    assert entries(fs(directory)).keys() == before


@pytest.fixture
def active(make: Make, btrfs: Path) -> Directory:
    """
    The directory of an active snapshot with a file, on btrfs.
    """
    directory = make("1")
    subvolume.create(fs(directory))
    (fs(directory) / "file").write_text("precious")
    return directory


@pytest.mark.parametrize("backend", [pytest.param("btrfs", marks=pytest.mark.btrfs)], indirect=True)
class TestBtrfs:
    """
    The cases that only subvolumes have.
    """

    def test_mounted(self, volumes: Volumes, active: Directory, make: Make, btrfs: Path) -> None:
        """
        A subvolume is not destroyed while it is mounted, in any way and any namespace, or has a mount inside.
        """
        point = make("point").path
        options = f"subvolid={subvolume.get_id(fs(active))}"
        with mount(source(btrfs), point, "btrfs", 0, options):
            refused(volumes, active)
        with other_namespace('mount -t btrfs -o "$1" "$2" /mnt', options, source(btrfs)):
            refused(volumes, active)
        with mount(fs(active), point, "", syscall.MS_BIND):
            refused(volumes, active)
        (fs(active) / "inside").mkdir()
        with mount("none", fs(active) / "inside", "tmpfs"):
            (fs(active) / "inside" / "canary").touch()
            with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
                volumes.destroy(active, FS, volumes.mounts())
            assert (fs(active) / "inside" / "canary").exists()
        with mount(btrfs / "point", fs(active) / "inside", "", syscall.MS_BIND):
            refused(volumes, active)
        volumes.destroy(active, FS, volumes.mounts())
        assert not fs(active).exists()

    def test_mounted_out_of_sight(self, volumes: Volumes, active: Directory, btrfs: Path, tmp_path: Path) -> None:
        """
        A subvolume is not destroyed under a mount of a single thread, of a mount namespace without a process, or on a
        directory that was reached by another path; the refusal names the mount.
        """
        options = f"subvolid={subvolume.get_id(fs(active))}"
        (fs(active) / "inside").mkdir()
        with (
            thread_namespace(lambda: syscall.mount(source(btrfs), "/mnt", "btrfs", 0, options)) as thread,
            pytest.raises(OSError, match=rf"mounted at /mnt in the mount namespace of process {thread} \("),
        ):
            volumes.destroy(active, FS, volumes.mounts())
        with (
            held_namespace('mount -t btrfs -o "$1" "$2" /mnt', options, source(btrfs)) as fd,
            pytest.raises(
                OSError, match=rf"/mnt in the mount namespace of process {os.getpid()} \(/proc/\d+/fd/{fd}\)"
            ),
        ):
            volumes.destroy(active, FS, volumes.mounts())
        with mount(btrfs, tmp_path, "", syscall.MS_BIND), mount("none", tmp_path / "1" / FS / "inside", "tmpfs"):
            refused(volumes, active)
        with other_namespace('mount --bind "$1" /mnt; mount -t tmpfs none /mnt/1/fs/inside', btrfs):
            refused(volumes, active)
        volumes.destroy(active, FS, volumes.mounts())
        assert not fs(active).exists()

    def test_nested_mounted(self, volumes: Volumes, active: Directory, make: Make, btrfs: Path) -> None:
        """
        A subvolume is not destroyed while a nested subvolume is mounted, at any depth.
        """
        for path in ("nested", "nested/directory/inner"):
            (fs(active) / path).parent.mkdir(exist_ok=True)
            subvolume.create(fs(active) / path)
        inner = fs(active) / "nested" / "directory" / "inner"
        (inner / "file").touch()
        with mount(source(btrfs), make("point").path, "btrfs", 0, f"subvolid={subvolume.get_id(inner)}"):
            refused(volumes, active)
        subvolume.create(btrfs / "1" / "other")
        volumes.destroy(active, FS, volumes.mounts())
        assert os.listdir(active.path) == ["other"]

    @pytest.mark.parametrize("flag", [ioctl.FS_IMMUTABLE_FL, ioctl.FS_APPEND_FL])
    @pytest.mark.parametrize("read_only", [False, True])
    def test_frozen_root(self, flag: int, read_only: bool, volumes: Volumes, active: Directory, copy: Copy) -> None:
        """
        The flags +i and +a of a root directory, even a read-only one, prevent no commit, child or removal.
        """
        with open_directory(fs(active)) as fd:
            ioctl.setflags(fd, flag)
            if read_only:
                subvolume.set_read_only(fd)
        volumes.freeze(active)
        with open_directory(layer(active)) as fd:
            assert not ioctl.getflags(fd) & flag
        child = copy(at(active, LAYER), "child")
        (fs(child) / "new").touch()
        with open_directory(fs(child)) as fd:
            ioctl.setflags(fd, flag)
        subvolume.snapshot(fs(child), layer(child), read_only=True)
        for directory in (child, active):
            for name in (FS, LAYER):
                volumes.destroy(directory, name, NONE)
            assert os.listdir(directory.path) == []

    def test_default_subvolume(self, volumes: Volumes, active: Directory, btrfs: Path) -> None:
        """
        The default subvolume cannot be destroyed until another subvolume is the default.
        """
        before = subvolume.get_default(btrfs)
        subvolume.set_default(btrfs, subvolume.get_id(fs(active)))
        try:
            with pytest.raises(PermissionError):
                volumes.destroy(active, FS, NONE)
            assert (fs(active) / "file").read_text() == "precious"
        finally:
            subvolume.set_default(btrfs, before)
        volumes.destroy(active, FS, NONE)

    def test_lost_name(self, volumes: Volumes, active: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A subvolume that the kernel does not find by its name is destroyed by its id.
        """

        def delete(*arguments: Any, **options: Any) -> None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

        monkeypatch.setattr(subvolume, "delete", delete)
        volumes.destroy(active, FS, NONE)
        assert not fs(active).exists()

    def test_plain_directory(self, volumes: Volumes, make: Make, btrfs: Path) -> None:
        """
        A plain directory or a symlink in place of a subvolume is not destroyed, nor is the target of the symlink.
        """
        subvolume.create(btrfs / "other")
        directory = make("1")
        fs(directory).mkdir()
        (fs(directory) / "file").touch()
        layer(directory).symlink_to(btrfs / "other")
        for name in (FS, LAYER):
            with pytest.raises(OSError, match=r"not the root of a subvolume|Not a directory"):
                volumes.destroy(directory, name, NONE)
        assert (fs(directory) / "file").exists()
        assert (btrfs / "other").exists()

    def test_nested_with_content(self, volumes: Volumes, active: Directory, make: Make) -> None:
        """
        A nested subvolume with content is refused, the error names its path, and nothing changes.
        """
        fork = make("fork")
        nested = fs(active) / "var" / "lib" / os.fsdecode(b"caf\xe9 and more")
        nested.parent.mkdir(parents=True)
        subvolume.create(fs(active) / "empty")
        subvolume.create(nested)
        (nested / "file").write_text("precious")
        text = (
            r"the content of the nested subvolume 'var/lib/caf\udce9 and more' would be lost: "
            "delete the subvolume, or copy it to a directory"
        )
        for _ in range(2):
            with pytest.raises(FailedPreconditionError, match=re.escape(text)):
                volumes.freeze(active)
            with pytest.raises(FailedPreconditionError, match=re.escape(text)):
                volumes.fork(at(active, FS), fork)
            assert found(volumes, fork) == Contents(False, False, False)
            assert found(volumes, active) == Contents(True, False, True)
        assert (nested / "file").read_text() == "precious"
        (nested / "file").unlink()
        subvolume.create(nested / "inner")
        with pytest.raises(FailedPreconditionError, match="nested subvolume 'var/lib/caf"):
            volumes.freeze(active)
        subvolume.delete(nested, recursive=True)
        volumes.freeze(active)

    def test_nested_empty(self, volumes: Volumes, active: Directory, make: Make, copy: Copy) -> None:
        """
        An empty nested subvolume becomes an ordinary directory in layers and forks, with its metadata.

        The directories that contain it keep their times.
        """
        nested = fs(active) / "var" / "lib" / "machines"
        nested.parent.mkdir(parents=True)
        subvolume.create(nested)
        nested.chmod(0o2700)
        os.chown(nested, 1, 2)
        nested.chmod(0o2700)
        os.setxattr(nested, "user.a", b"b")
        os.setxattr(nested, "trusted.c", b"d")
        for path in (nested, nested.parent):
            os.utime(path, ns=(1_000_000_001, 2_000_000_002))
        subvolume.create(fs(active) / "read-only")
        subvolume.set_read_only(fs(active) / "read-only")
        volumes.freeze(active)
        assert subvolume.get_read_only(layer(active))
        child, fork = copy(at(active, LAYER), "child"), make("fork")
        volumes.fork(at(active, FS), fork)
        # Roots of subvolumes share an inode number, and seem to be links of each other.
        before, *after = (
            {name: entry._replace(links=()) for name, entry in entries(root).items()}
            for root in (fs(active), layer(active), fs(child), fs(fork))
        )
        assert after == [before] * 3
        for root in (layer(active), fs(child), fs(fork)):
            for name in ("var/lib/machines", "var/lib"):
                assert (root / name).stat().st_mtime_ns == 2_000_000_002
        assert subvolume.is_subvolume(nested)
        for root in (fs(child), fs(fork)):
            (root / "var" / "lib" / "machines" / "new").mkdir()
            (root / "read-only" / "new").mkdir()

    @pytest.mark.parametrize("flag", [ioctl.FS_IMMUTABLE_FL, ioctl.FS_APPEND_FL])
    def test_nested_in_frozen_directory(self, flag: int, volumes: Volumes, active: Directory, make: Make) -> None:
        """
        An empty nested subvolume in an immutable or append-only directory becomes a directory; the flag is copied.
        """
        directory, fork = fs(active) / "var", make("fork")
        directory.mkdir()
        subvolume.create(directory / "nested")
        roots = [fs(active)]
        with ExitStack() as stack:
            stack.callback(lambda: [set_flags(root / "var", 0) for root in roots])
            set_flags(directory, flag)
            volumes.freeze(active)
            volumes.fork(at(active, FS), fork)
            roots.append(fs(fork))
            for root in (layer(active), fs(fork)):
                assert (root / "var" / "nested").stat().st_ino > 256
                with owned(os.open(root / "var", os.O_RDONLY)) as fd:
                    assert ioctl.getflags(fd) & flag
        for name in (FS, LAYER):
            volumes.destroy(active, name, NONE)

    def test_nested_deep(self, volumes: Volumes, active: Directory, make: Make) -> None:
        """
        An empty nested subvolume may be deeper than PATH_MAX. The error for a full one names its whole path.
        """
        name = "n" * 250
        with ExitStack() as stack:
            fd = stack.enter_context(owned(os.open(fs(active), os.O_RDONLY)))
            for _ in range(20):
                os.mkdir(name, dir_fd=fd)
                fd = stack.enter_context(owned(os.open(name, os.O_RDONLY, dir_fd=fd)))
            subvolume.create((fd, "nested"))
            volumes.freeze(active)
            volumes.fork(at(active, FS), make("fork"))
            assert not any(subvolume.children(layer(active)))
            with owned(os.open("nested", os.O_RDONLY, dir_fd=fd)) as nested_fd:
                os.mkdir("content", dir_fd=nested_fd)
            with pytest.raises(FailedPreconditionError, match=f"'{name}/{name}.*/nested' would be lost"):
                volumes.freeze(active)

    def test_many_nested(self, volumes: Volumes, active: Directory) -> None:
        """
        All nested subvolumes are found, even if there are more than the kernel lists at once.
        """
        for number in range(260):
            subvolume.create(fs(active) / str(number))
        volumes.freeze(active)
        assert not any(subvolume.children(layer(active)))
        for number in range(260):
            assert (layer(active) / str(number)).stat().st_ino > 256
        volumes.destroy(active, FS, NONE)
        assert not fs(active).exists()

    @pytest.mark.parametrize("content", ["", "content"])
    def test_nested_concurrently(
        self, content: str, volumes: Volumes, active: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        A nested subvolume that is created, or filled, during the commit makes it fail.
        """
        subvolume.create(fs(active) / "nested")
        snapshot = subvolume.snapshot

        def changing(*arguments: Any, **options: Any) -> None:
            if content:
                (fs(active) / "nested" / content).touch()
            else:
                subvolume.create(fs(active) / "another")
            snapshot(*arguments, **options)

        monkeypatch.setattr(subvolume, "snapshot", changing)
        text = "content of the nested subvolume 'nested' would" if content else "created concurrently: try again"
        with pytest.raises(FailedPreconditionError, match=text):
            volumes.freeze(active)
        assert found(volumes, active) == Contents(True, False, True)

    def test_layer_is_read_only(self, volumes: Volumes, active: Directory) -> None:
        """
        A layer cannot be changed through its path.
        """
        volumes.freeze(active)
        for change in (
            lambda: (layer(active) / "new").touch(),
            lambda: (layer(active) / "file").write_text("changed"),
            lambda: (layer(active) / "file").chmod(0o600),
            lambda: (layer(active) / "file").unlink(),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                change()


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.btrfs
def test_reclaim(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The space of many destroyed subvolumes is free afterwards, even if the first wake-up of the cleaner is lost.
    """
    mount = btrfs_mount()
    filesystem.sync(mount)
    before = used(mount)
    for number in range(500):
        subvolume.create(mount / str(number))
        (mount / str(number) / "file").write_bytes(os.urandom(50_000))
    filesystem.sync(mount)
    for number in range(500):
        subvolume.delete(mount / str(number))
    sync, lost = filesystem.sync, [mount]

    def losing_sync(target: int) -> None:
        if lost:
            lost.pop()
        else:
            sync(target)

    monkeypatch.setattr(filesystem, "sync", losing_sync)
    with closing(BtrfsVolumes(str(mount), "btrfs", wake_seconds=0.1)) as volumes:
        volumes.reclaim(PATIENCE)
    assert subvolume.count_deleted(mount) == 0
    assert used(mount) < before + (2 << 20)


@pytest.mark.btrfs
def test_reclaim_open_files(btrfs_mount: Callable[..., Path]) -> None:
    """
    The space of a subvolume with open files is waited for, also after they are closed, until the time is up.
    """
    mount = btrfs_mount()
    subvolume.create(mount / "a")
    with closing(BtrfsVolumes(str(mount), "btrfs")) as volumes:
        with open(mount / "a" / "file", "wb") as file:
            file.write(os.urandom(1 << 20))
            subvolume.delete(mount / "a")
            before = time.monotonic()
            volumes.reclaim(0.5)
            assert time.monotonic() - before >= 0.5
            assert [deleted.id for deleted in subvolume.iterate_deleted(mount)] != []
        volumes.reclaim(PATIENCE)
        assert list(subvolume.iterate_deleted(mount)) == []


@pytest.mark.btrfs
def test_reclaim_without_privilege(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without the privilege to list deleted subvolumes, the count of the kernel is waited for.
    """
    mount = btrfs_mount()

    def denied(_: int) -> Iterator[Any]:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(subvolume, "iterate_deleted", denied)
    subvolume.create(mount / "a")
    subvolume.delete(mount / "a")
    with closing(BtrfsVolumes(str(mount), "btrfs")) as volumes:
        volumes.reclaim(PATIENCE)
    assert subvolume.count_deleted(mount) == 0


@pytest.mark.btrfs
def test_reclaim_of_a_full_disk(btrfs_mount: Callable[..., Path]) -> None:
    """
    On a disk that was full, nothing fails after the space is reclaimed. Without the wait for the kernel's cleaner, half
    of the writes do, because it deletes empty block groups, whose space is then neither in them nor on the disk.
    """
    mount = btrfs_mount()
    with closing(BtrfsVolumes(str(mount), "btrfs")) as volumes:
        for _ in range(4):
            for name in "abcd":
                subvolume.create(mount / name)
            names = [mount / "abcd"[number % 4] / str(number) for number in range(10_000)]
            with suppress(OSError):
                for path in names:
                    path.write_bytes(os.urandom(1 << 18))
            for name in "abcd":
                subvolume.delete(mount / name)
            volumes.reclaim(PATIENCE)
            (mount / "new").write_bytes(bytes(4 << 20))
            (mount / "new").unlink()


def used(mount: Path) -> int:
    return sum(space.used_bytes for space in space.get(mount))
