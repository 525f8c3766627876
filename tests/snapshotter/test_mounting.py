"""
Mounting of snapshots: all mounts or none, only where nothing is hidden, and only snapshots of the store are unmounted.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybtrfs import subvolume, syscall
from snapshotter import Mount, Snapshotter
from snapshotter.errors import FailedPreconditionError, NotFoundError
from snapshotter.mounting import check_target, mount, mounted, unmount


@pytest.fixture
def store(btrfs: Path) -> Iterator[Snapshotter]:
    with Snapshotter.create(btrfs / "root") as store:
        yield store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.mark.btrfs
def test_mounted(store: Snapshotter, target: Path) -> None:
    """
    The mounts exist at the given target until the end of the ``with``.
    """
    with mounted(store.prepare("k"), target) as path:
        assert path == str(target)
        (target / "file").touch()
        assert os.path.ismount(target)
    assert os.listdir(target) == []


@pytest.mark.btrfs
def test_all_or_none(store: Snapshotter, target: Path) -> None:
    """
    If one mount fails, the mounts before it are undone.
    """
    mounts = (*store.prepare("k"), Mount("bind", str(target / "missing"), options=("rbind",)))
    with pytest.raises(FileNotFoundError):
        mount(mounts, target)
    assert not os.path.ismount(target)


@pytest.mark.btrfs
@pytest.mark.parametrize("kind", ["bind", "btrfs"])
def test_missing_source(kind: str, target: Path) -> None:
    """
    If the source is missing, the error names the source, and if the mount point is missing, the mount point.
    """
    source = str(target / "missing")
    with pytest.raises(FileNotFoundError, match="the source of the mount does not exist") as caught:
        mount([Mount(kind, source, options=("rbind",) if kind == "bind" else ())], target)
    assert caught.value.filename == source
    with pytest.raises(FileNotFoundError) as caught:
        mount([Mount("bind", str(target), options=("rbind",))], target / "point")
    assert caught.value.filename == str(target / "point")


@pytest.mark.btrfs
def test_mapped_ids(store: Snapshotter, target: Path) -> None:
    """
    A mount with maps shows the ids of the host, and the files on disk have the ids of the container.
    """
    with mounted(store.prepare("work"), target):
        (target / "file").touch()
        os.chown(target / "file", 1000, 5)
    store.commit("layer", "work")
    labels = {
        "containerd.io/snapshot/uidmapping": "0:100000:1000,1000:5000:10",
        "containerd.io/snapshot/gidmapping": "0:200000:65536",
    }
    with mounted(store.prepare("container", "layer", labels), target):
        status = (target / "file").stat()
        assert (status.st_uid, status.st_gid) == (5000, 200005)
        os.chown(target / "file", 100007, 200000)
    assert not os.path.ismount(target)
    status = os.stat(os.path.join(store.subvolume("container"), "file"))
    assert (status.st_uid, status.st_gid) == (7, 0)
    with mounted(store.view("view", "layer", labels), target):
        assert (target / "file").stat().st_uid == 5000
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()


@pytest.mark.btrfs
def test_failed_map(store: Snapshotter, target: Path) -> None:
    """
    If the kernel refuses a map, nothing stays mounted.
    """
    (mapped,) = store.prepare("key")
    with pytest.raises(OSError, match="Invalid argument"):
        mount([mapped._replace(options=(*mapped.options, "uidmap=0:1:0", "gidmap=0:1:1"))], target)
    assert not os.path.ismount(target)


@pytest.mark.btrfs
def test_mount_in_a_mount(store: Snapshotter, target: Path) -> None:
    """
    A mount with a target of its own is made below the mounts before it, and unmounted first.
    """
    mounts = store.prepare("k")
    with mounted(mounts, target):
        (target / "inner").mkdir()
    with mounted((*mounts, Mount("tmpfs", "none", target="inner")), target):
        assert os.path.ismount(target / "inner")
    assert not os.path.ismount(target)


def test_check_target(tmp_path: Path, target: Path) -> None:
    """
    A target is refused if a mount there would hide files or the store, and the error says why.
    """
    root = tmp_path / "root"
    (root / "snapshots").mkdir(parents=True)
    (tmp_path / "file").touch()
    check_target(str(root), str(target))
    cases: list[tuple[Path, type[Exception], str]] = [
        (root, FailedPreconditionError, "is in the store: choose a directory elsewhere"),
        (root / "snapshots", FailedPreconditionError, "is in the store: choose a directory elsewhere"),
        (tmp_path, FailedPreconditionError, "is not empty: a mount would hide 'file'"),
        (tmp_path / "file", FailedPreconditionError, "is not a directory"),
        (tmp_path / "missing", NotFoundError, "does not exist: make it first"),
        (Path("/proc"), FailedPreconditionError, "something is mounted at '/proc' already: choose another directory"),
    ]
    for path, kind, text in cases:
        with pytest.raises(kind, match=text):
            check_target(str(root), str(path))


@pytest.mark.btrfs
def test_unmount(store: Snapshotter, target: Path) -> None:
    """
    Active snapshots and views are unmounted, also a view without parent.
    """
    store.prepare("k")
    store.commit("base", "k")
    for mounts in (store.prepare("k", "base"), store.view("view", "base"), store.view("empty")):
        mount(mounts, target)
        unmount(store.root, str(target))
        assert not os.path.ismount(target)


@pytest.mark.btrfs
def test_unmount_refused(store: Snapshotter, target: Path, btrfs: Path, tmp_path: Path) -> None:
    """
    Anything but a mount of a snapshot of the store is refused and left alone.
    """
    mounts = store.prepare("k")
    subvolume.create(btrfs / "other")
    subvolume.create(btrfs / "root" / "other")
    (btrfs / "root" / "other" / "inner").mkdir()
    subvolume.create(btrfs / "root" / "other" / "inner" / "other")
    own = btrfs / "root" / "snapshots" / "1" / "fs"
    cases: list[tuple[str | Path, type[Exception], str]] = [
        (target, FailedPreconditionError, "no snapshot of store '.*/root' is mounted at '.*/target'"),
        (btrfs / "root" / "snapshots", FailedPreconditionError, "no snapshot of store"),
        (btrfs / "other", FailedPreconditionError, "no snapshot of store"),
        (btrfs / "root" / "other" / "inner" / "other", FailedPreconditionError, "no snapshot of store"),
        (own, FailedPreconditionError, "nothing is mounted at '.*/fs'"),
        (tmp_path / "missing", NotFoundError, "'.*/missing' does not exist"),
    ]
    for path, kind, text in cases:
        with pytest.raises(kind, match=text):
            unmount(store.root, str(path))
    with mounted(mounts, target), open(target / "file", "w"):
        with pytest.raises(FailedPreconditionError, match="is in use: `snapshotter why KEY` lists the processes"):
            unmount(store.root, str(target))
        assert os.path.ismount(target)


@pytest.mark.btrfs
def test_unmount_forbidden(store: Snapshotter, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Another error of the kernel passes through unchanged.
    """

    def umount2(path: str) -> None:
        raise PermissionError(path)

    with mounted(store.prepare("k"), target), monkeypatch.context() as patch:
        patch.setattr(syscall, "umount2", umount2)
        with pytest.raises(PermissionError):
            unmount(store.root, str(target))
