import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.archive import tar
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from snapshotter.mounting import mounted
from tests.snapshotter.archive.trees import ESCAPES, FILE, made, pack

pytestmark = pytest.mark.btrfs


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return file.getnames()


@pytest.fixture
def store(btrfs: Path) -> Iterator[Snapshotter]:
    with Snapshotter.create(btrfs / "store") as store:
        yield store


def saved(store: Snapshotter, key: str) -> bytes:
    stream = io.BytesIO()
    tar.save(store, key, stream)
    return stream.getvalue()


def load(store: Snapshotter, key: str, data: bytes, *rest: Any) -> None:
    tar.load(store, key, io.BytesIO(data), *rest)


def test_kinds(store: Snapshotter, tree: Path) -> None:
    """
    A loaded snapshot is committed with its labels. It, a view of it and an active child are all saved as the same tar.
    """
    data = pack(tree)
    load(store, "base", data, "", {"a": "b"})
    info = store.stat("base")
    assert (str(info.kind), info.parent, info.labels) == ("Committed", "", {"a": "b"})
    store.view("v", "base")
    store.prepare("a", "base")
    assert saved(store, "base") == saved(store, "v") == saved(store, "a") == data
    assert len(saved(store, "a")) - tar.estimate_size(store, "a") < 20_000
    with mounted(store.mounts("a")) as path:
        Path(path, "new").write_text("new")
    assert b"new" in saved(store, "a")


def test_nothing(store: Snapshotter) -> None:
    """
    A view without a parent is saved as the root alone.
    """
    store.view("v")
    assert names(saved(store, "v")) == ["."]


def test_on_a_parent(store: Snapshotter, tree: Path) -> None:
    """
    The files of a parent stay, unless a member replaces them.
    """
    load(store, "base", made(("kept", FILE, b"kept"), ("changed", FILE, b"old"), ("d/f", FILE, b"x")))
    load(store, "top", made(("changed", FILE, b"new"), ("d", FILE, b"file now")), "base")
    assert store.stat("top").parent == "base"
    with mounted(store.view("v", "top")) as path:
        content = {name: Path(path, name).read_bytes() for name in os.listdir(path)}
    assert content == {"kept": b"kept", "changed": b"new", "d": b"file now"}


def test_refused(store: Snapshotter, tree: Path) -> None:
    """
    A failed import leaves nothing.
    """
    load(store, "base", pack(tree))
    for error, arguments in (
        (AlreadyExistsError, ("base", pack(tree))),
        (NotFoundError, ("x", pack(tree), "none")),
        (InvalidArgumentError, ("x", b"damaged")),
        (InvalidArgumentError, ("x", ESCAPES["up"])),
        (InvalidArgumentError, ("x", made(("a", FILE, b"x")), "", {"": "no key"})),
        (FailedPreconditionError, ("x", made(("n" * 256, FILE, b"x")))),
    ):
        with pytest.raises(error):
            load(store, *arguments)
        assert [info.name for info in store.walk()] == ["base"]
        assert len(os.listdir(f"{store.root}/snapshots")) == 1


def test_full(btrfs_mount: Callable[..., Path]) -> None:
    """
    An import that fills the disk leaves nothing.
    """
    mount = btrfs_mount(200 << 20)
    with open(mount / "filler", "xb") as filler:
        os.posix_fallocate(filler.fileno(), 0, 100 << 20)
    with Snapshotter.create(mount / "store") as store:
        with pytest.raises(ResourceExhaustedError):
            load(store, "x", made(("random", FILE, os.urandom(90 << 20))))
        assert list(store.walk()) == []
        assert os.listdir(f"{store.root}/snapshots") == []


def test_removed_meanwhile(store: Snapshotter, tree: Path) -> None:
    """
    An export fails if the snapshot is destroyed during it, instead of ending early.
    """
    load(store, "base", pack(tree))

    class Removing(io.BytesIO):
        def write(self, data: Any) -> int:
            if "base" in (info.name for info in store.walk()):
                store.remove("base")
                store.cleanup()
            return super().write(data)

    with Snapshotter(store.root, read_only=True) as reading, pytest.raises(DataLossError):
        tar.save(reading, "base", Removing())


def test_changed_meanwhile(store: Snapshotter) -> None:
    """
    If a file of an active snapshot is deleted or truncated during the export, it fails with the cure.
    """
    with mounted(store.prepare("a")) as path:
        for name in "ab":
            Path(path, name).write_bytes(os.urandom(10_000))

        class Changing(io.BytesIO):
            def __init__(self, change: Callable[[], None]) -> None:
                super().__init__()
                self.change = change

            def write(self, data: Any) -> int:
                if b"a\0\0\0" in data:
                    self.change()
                return super().write(data)

        for change in (lambda: os.truncate(Path(path, "a"), 10), lambda: os.unlink(Path(path, "b"))):
            with pytest.raises(FailedPreconditionError, match="export a fork of the snapshot"):
                tar.save(store, "a", Changing(change))


def test_mounted_inside(store: Snapshotter) -> None:
    """
    Files of another filesystem mounted in the snapshot are not exported.
    """
    with mounted(store.prepare("a")) as path:
        os.mkdir(f"{path}/inside")
    inside = f"{store.subvolume('a')}/inside"
    syscall.mount("none", inside, "tmpfs")
    try:
        with pytest.raises(FailedPreconditionError, match="something is mounted inside the subvolume"):
            saved(store, "a")
    finally:
        syscall.umount2(inside)


def test_nested(store: Snapshotter) -> None:
    """
    A nested subvolume is exported as a directory.
    """
    with mounted(store.prepare("a")) as path:
        subvolume.create(f"{path}/nested")
        Path(path, "nested", "file").write_text("x")
    assert "nested/file" in names(saved(store, "a"))
