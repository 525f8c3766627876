import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import subvolume, syscall
from pybtrfs.path import owned
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


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("n" * 256, {}, "a name has at most 255 bytes"),
        ("/".join(["directory"] * 420), {}, "a path has at most 4,095 bytes"),
        (
            "link",
            {"type": tarfile.SYMTYPE, "linkname": "a/" * 2048},
            "the target of a symbolic link has at most 4,095 b",
        ),
        ("a", {"pax_headers": {"SCHILY.xattr.user.a": "x" * 16_300}}, "'user.a' has 16,306 bytes .* takes 16,228"),
        ("a", {"pax_headers": {"SCHILY.xattr.user.a": "x" * 70_000}}, "'user.a' has 70,006 bytes .* takes 16,228"),
        ("d", {"type": tarfile.DIRTYPE, "pax_headers": {"SCHILY.xattr.user.a": "x" * 16_300}}, "'user.a' has 16,306 b"),
        ("a", {"pax_headers": {f"SCHILY.xattr.user.{'b' * 251}": "x"}}, "has 256 bytes, not 1 to 255"),
    ],
)
def test_limits(name: str, options: dict[str, Any], reason: str, store: Snapshotter) -> None:
    """
    The error for a member that btrfs cannot hold names the member and the limit; the largest possible one is held.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo(name)
        for option, value in options.items():
            setattr(member, option, value)
        file.addfile(member)
    with pytest.raises(FailedPreconditionError, match=f"btrfs cannot hold member '{name[:3]}.*: .*{reason}"):
        load(store, "x", stream.getvalue())
    assert not list(store.walk())


def test_largest_attribute(store: Snapshotter) -> None:
    """
    An attribute as large as the limit is imported.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"SCHILY.xattr.user.a": "x" * (16_228 - len("user.a"))}
        file.addfile(member)
    load(store, "x", stream.getvalue())


def test_too_many_links(store: Snapshotter) -> None:
    """
    The error for the 65,536th hard link to a file names the member and the limit.
    """
    store.prepare("build")
    root = store.subvolume("build")
    with owned(os.open(root, os.O_RDONLY)) as fd:
        os.mknod("0", dir_fd=fd)
        for number in range(1, 65_535):
            os.link("0", str(number), src_dir_fd=fd, dst_dir_fd=fd)
    store.commit("base", "build")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        member = tarfile.TarInfo("one more")
        member.type, member.linkname = tarfile.LNKTYPE, "0"
        file.addfile(member)
    with pytest.raises(
        FailedPreconditionError, match="cannot hold member 'one more': a file has at most 65,535 hard l"
    ):
        load(store, "x", stream.getvalue(), "base")


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
