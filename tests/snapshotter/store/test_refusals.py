"""
Refusals of the kernel that a disk rarely makes: each is passed on, tolerated or retried, as its place demands.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from pybtrfs import device, filesystem, subvolume, syscall
from pybtrfs.errors import NotSubvolumeError, not_subvolume
from pybtrfs.subvolume import listing
from snapshotter import Snapshotter
from snapshotter.errors import DataLossError, Error, FailedPreconditionError
from snapshotter.store import btrfs as btrfs_module
from snapshotter.store import nested, worker
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.layout import Directory, Place
from snapshotter.store.records import DamagedError
from snapshotter.store.volumes import Contents
from snapshotter.testing import DirectoryVolumes, settle


def refusing(number: int) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.btrfs
def test_root_that_is_no_subvolume(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A refused root leaves no descriptor open.
    """

    def get_info(target: object) -> NoReturn:
        raise not_subvolume(target)

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(filesystem, "get_info", get_info)
    with pytest.raises(NotSubvolumeError):
        BtrfsVolumes(str(btrfs), "btrfs")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.btrfs
def test_inspecting_a_damaged_directory(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A layer beside damage is judged like any other; a refusal that is no damage is passed on.
    """
    (btrfs / "1").mkdir()
    subvolume.create(btrfs / "1/layer")
    volumes = BtrfsVolumes(str(btrfs), "btrfs")
    fd = os.open(btrfs, os.O_RDONLY)
    place = Place(fd, "1", str(btrfs / "1"))
    try:
        monkeypatch.setattr(syscall, "read_directory", refusing(errno.EIO))
        assert volumes.inspect(place)[1] == Contents(anything=True, writable=True)
        subvolume.set_read_only(btrfs / "1/layer")
        assert volumes.inspect(place)[1] == Contents(layer=True, anything=True)
        monkeypatch.setattr(btrfs_module, "is_subvolume", refusing(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            volumes.inspect(place)
    finally:
        os.close(fd)
        volumes.close()


@pytest.mark.btrfs
def test_counters_of_a_device_that_is_gone(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A device that is removed while the devices are listed does not count; another refusal is passed on.
    """
    volumes = BtrfsVolumes(str(btrfs), "btrfs")
    try:
        monkeypatch.setattr(device, "get_stats", refusing(errno.ENODEV))
        assert not volumes.write_errors().devices
        monkeypatch.setattr(device, "get_stats", refusing(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            volumes.write_errors()
    finally:
        volumes.close()


@pytest.mark.btrfs
def test_nested_subvolumes_that_cannot_be_opened(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A nested subvolume that cannot be opened may have changed; one that cannot be opened by inode is opened by path.
    """
    with Snapshotter.create(btrfs / "root") as store:
        store.prepare("k")
        path = Path(store.subvolume("k"))
        subvolume.create(path / "nested")
        directory = path.parent
        fd = os.open(directory, os.O_RDONLY)
        try:
            volumes = store.opened.volumes
            with monkeypatch.context() as patch:
                patch.setattr(listing, "open_child", refusing(errno.EACCES))
                first = volumes.change_counter(Directory(fd, str(directory)))
                assert volumes.change_counter(Directory(fd, str(directory))) != first
        finally:
            os.close(fd)
        with monkeypatch.context() as patch:
            patch.setattr(nested, "open_inode", refusing(errno.EPERM))
            store.commit("base", "k")
        assert os.listdir(store.subvolume("base")) == ["nested"]
        store.prepare("k")
        path = Path(store.subvolume("k"))
        subvolume.create(path / "nested")
        (path / "nested/file").touch()
        with monkeypatch.context() as patch:
            patch.setattr(subvolume, "get_child_path", refusing(errno.EACCES))
            with pytest.raises(FailedPreconditionError, match="Permission denied"):
                store.commit("next", "k")


def test_loss_that_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A loss that the disk refuses to record is known until the store is closed.
    """
    caplog.set_level(logging.INFO)
    with Snapshotter.create(tmp_path / "root", volumes=DirectoryVolumes) as store:
        store.prepare("k")
        settle(store)
        monkeypatch.setattr(store.opened.write_errors, "unreported", lambda actives: actives)
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryVolumes, "barrier", refusing(errno.EIO))
            store.opened.operations.record_losses()
        assert "unsettled" in caplog.text
        with pytest.raises(DataLossError):
            store.commit("base", "k")


class Inspecting(DirectoryVolumes):
    number = 0

    def inspect(self, place: Place) -> tuple[bytes | None, Contents]:
        if Inspecting.number:
            refusing(Inspecting.number)()
        return super().inspect(place)


def test_open_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A refusal that is no damage of a directory ends the opening: the store is opened again when it can be read.
    """
    root = tmp_path / "root"
    with Snapshotter.create(root, volumes=Inspecting) as store:
        store.prepare("k")
    monkeypatch.setattr(Inspecting, "number", errno.EMFILE)
    with pytest.raises(Error, match="Too many open files"):
        Snapshotter(root, volumes=Inspecting)
    monkeypatch.setattr(Inspecting, "number", 0)
    with Snapshotter(root, volumes=Inspecting) as store:
        assert store.mounts("k")


def test_root_that_stays_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Only a full disk may refuse to close the root to other users.
    """
    root = tmp_path / "root"
    Snapshotter.create(root, volumes=DirectoryVolumes).close()
    root.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", refusing(errno.EPERM))
        with pytest.raises(FailedPreconditionError, match="Operation not permitted"):
            Snapshotter(root, volumes=DirectoryVolumes)
    Snapshotter(root, volumes=DirectoryVolumes).close()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


class Broken(DirectoryVolumes):
    """
    Volumes whose barriers and checks can be refused.
    """

    barriers = 0
    lasting = True
    checks = 0

    def barrier(self, fd: int) -> None:
        if number := Broken.barriers:
            if not Broken.lasting:
                Broken.barriers = 0
            refusing(number)()

    def check_readable(self, directory: Directory, name: str, base_transid: int) -> None:
        if number := Broken.checks:
            if number == errno.ENOMEM:
                Broken.checks = 0
            refusing(number)()


def test_filesystem_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A filesystem that statfs shows as read-only is dead, after the first change that it refuses.
    """
    with Snapshotter.create(tmp_path / "root", volumes=Broken) as store:
        monkeypatch.setattr(Broken, "barriers", errno.EROFS)
        monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_flag=os.ST_RDONLY))
        with pytest.raises(Error, match="Read-only file system"):
            store.prepare("k")
        assert store.failure


def test_passing_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A single EROFS or EIO fails its call alone, because the filesystem takes the next write.
    """
    monkeypatch.setattr(Broken, "lasting", False)
    with Snapshotter.create(tmp_path / "root", volumes=Broken) as store:
        for number in (errno.EROFS, errno.EIO):
            monkeypatch.setattr(Broken, "barriers", number)
            with pytest.raises(Error, match=os.strerror(number)):
                store.prepare("k")
            assert not store.failure
            assert list(store.walk()) == []
        store.prepare("k")


def test_destroy_that_cannot_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The worker tries again where a check fails for another reason than damage, and keeps a damaged former subvolume.
    """
    caplog.set_level(logging.INFO)
    root = tmp_path / "root"
    with Snapshotter.create(root, volumes=Broken) as store:
        store.prepare("k")
        monkeypatch.setattr(Broken, "checks", errno.ENOMEM)
        store.remove("k")
        settle(store)
        store.cleanup()
        assert os.listdir(root / "snapshots") == []
        store.prepare("k")
        with monkeypatch.context() as patch:
            patch.setattr(worker.records, "decode", damaged)
            store.remove("k")
            settle(store)
        assert os.listdir(root / "snapshots") == []
        store.prepare("k")
        store.commit("base", "k")
        monkeypatch.setattr(Broken, "checks", errno.EIO)
        settle(store)
        [snapshot] = os.listdir(root / "snapshots")
        assert sorted(set(os.listdir(root / "snapshots" / snapshot)) & {"fs", "layer"}) == ["fs", "layer"]
        assert "kept" in caplog.text
        monkeypatch.setattr(Broken, "checks", 0)


def damaged(*_: object) -> NoReturn:
    raise DamagedError("its content is not a record")
