"""
A store's directory: made anywhere it can be, owned by one process, told from its copies.
"""

import errno
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StoreHeldError,
)
from snapshotter.maintenance import doctor
from snapshotter.store import records, store
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.record_storage import XATTR
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.store.stores import holder, works

pytestmark = pytest.mark.btrfs


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    syscall.mount("none", path, "tmpfs")
    yield path
    syscall.umount2(path)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


# Making one


def test_missing(btrfs: Path) -> None:
    """
    A root that does not exist is made as a subvolume, also through a symlink to where it shall be.
    """
    works(Snapshotter.create(btrfs / "root"))
    (btrfs / "link").symlink_to("target")
    works(Snapshotter.create(btrfs / "link"))
    assert subvolume.is_subvolume(btrfs / "root")
    assert subvolume.is_subvolume(btrfs / "target")
    works(Snapshotter.create(btrfs / os.fsdecode(b"\xff")))


def test_missing_directory(btrfs: Path) -> None:
    """
    Nothing above the root is made.
    """
    with pytest.raises(NotFoundError, match=r"missing' does not exist: make it first"):
        Snapshotter.create(btrfs / "missing" / "root")
    assert os.listdir(btrfs) == []


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_empty_directory(umask: int, btrfs: Path) -> None:
    """
    An empty directory is used as it is, and closed to everybody else; the modes are the same whatever the umask.
    """
    root = btrfs / "root"
    root.mkdir(0o755)
    before = os.umask(umask)
    try:
        works(Snapshotter.create(root))
    finally:
        os.umask(before)
    assert not subvolume.is_subvolume(root)
    modes = {str(path.relative_to(root)): mode(path) for path in (root, *root.rglob("*"))}
    if umask == 0o777:  # the directories below the root are closed even to their owner, which root does not notice
        modes |= dict.fromkeys(("store", "snapshots", *(f"snapshots/{id}" for id in (1, 3, 4))), 0o700)
        modes["lock"] = 0o600
    assert modes == {
        ".": 0o700,
        "store": 0o700,
        "lock": 0o600,
        "empty": 0o755,
        "snapshots": 0o700,
        "snapshots/1": 0o700,
        "snapshots/1/layer": 0o755,
        "snapshots/3": 0o700,
        "snapshots/4": 0o700,
    }
    assert subvolume.get_read_only(root / "empty")


def test_mount_point(btrfs_mount: Callable[..., Path]) -> None:
    """
    The root of a filesystem can be the root of a store.
    """
    root = btrfs_mount()
    works(Snapshotter.create(root))
    works_again = Snapshotter(root)
    works_again.remove("view")
    works_again.close()


def test_refused(btrfs: Path, tmpfs: Path) -> None:
    """
    A path to something else, or not on btrfs, is refused by name and not changed.
    """
    (btrfs / "file").write_text("content")
    (btrfs / "full").mkdir(0o755)
    (btrfs / "full" / "content").touch()
    (tmpfs / "empty").mkdir(0o755)
    for root, text in [
        (btrfs / "file", "Not a directory"),
        (btrfs / "full", "full' is not empty: it holds 'content'"),
        (tmpfs / "empty", "empty' is not on btrfs"),
        (tmpfs / "missing", "missing' is not on btrfs"),
        (Path("/proc/root"), "is not on btrfs"),
    ]:
        with pytest.raises(FailedPreconditionError, match=text):
            Snapshotter.create(root)
    assert (btrfs / "file").read_text() == "content"
    assert mode(btrfs / "full") == mode(tmpfs / "empty") == 0o755
    assert os.listdir(btrfs / "full") == ["content"]
    assert os.listdir(tmpfs) == ["empty"]


@pytest.mark.parametrize("options", [{"client": ""}, {"usage": "du"}, {"mount_mode": "overlay"}])
def test_bad_options(options: dict[str, Any], btrfs: Path) -> None:
    """
    Wrong options are refused before anything is made.
    """
    with pytest.raises(InvalidArgumentError):
        Snapshotter.create(btrfs / "root", **options)
    assert os.listdir(btrfs) == []


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 256, "é" * 128, "x/" * 2048, "a\0" + "x" * 5000, "\ud800"], ids=lambda name: ascii(name[:4])
)
@pytest.mark.parametrize("call", [Snapshotter, Snapshotter.create, Snapshotter.adopt, doctor.examine])
def test_impossible_path(call: Callable[[str], object], name: str, btrfs: Path) -> None:
    """
    A root that no file can have is named, shortened, and nothing is made.
    """
    with pytest.raises(
        InvalidArgumentError, match=r"is not a path|has more than 4095 bytes, or a name in it"
    ) as caught:
        call(f"{btrfs}/{name}")
    assert len(str(caught.value)) < 500
    assert os.listdir(btrfs) == []


def test_longest_name(btrfs: Path) -> None:
    """
    A name may be as long as the filesystem takes it.
    """
    works(Snapshotter.create(btrfs / ("é" * 127 + "x")))


def test_is_one_already(btrfs: Path) -> None:
    """
    A store is not made again, and not touched, also where somebody has it.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    with Snapshotter(root) as held:
        root.chmod(0o750)
        lock = (root / "lock").read_text()
        os.utime(root / "lock", (0, 0))
        with pytest.raises(AlreadyExistsError, match="root' is already a store"):
            Snapshotter.create(root)
        assert held.stat("base")
    assert (mode(root), (root / "lock").read_text(), (root / "lock").stat().st_mtime) == (0o750, lock, 0)


def test_lost_record(btrfs: Path) -> None:
    """
    Snapshots whose store lost its record, as in a copy without attributes, are not taken into a new store.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    os.removexattr(root / "store", "user.snapshotter")
    with pytest.raises(FailedPreconditionError, match="holds snapshots, and the record of their store is gone"):
        Snapshotter.create(root)


@pytest.mark.parametrize("step", range(7))
def test_half_made(step: int, btrfs: Path) -> None:
    """
    A store that a killed maker left incomplete is refused, and the next maker completes it.
    """
    root = btrfs / "root"
    subvolume.create(root)
    for made in [
        lambda: root.chmod(0o700),
        lambda: (root / "lock").touch(0o600),
        lambda: (root / "store").mkdir(),
        lambda: (root / "snapshots").mkdir(),
        lambda: subvolume.create(root / "empty"),
        lambda: subvolume.set_read_only(root / "empty"),
    ][:step]:
        made()
    if step < 6:
        (root / "empty").exists() and (root / "empty").chmod(0o700)
    with pytest.raises(FailedPreconditionError, match="root' is not a store: make one with"):
        Snapshotter(root)
    works(Snapshotter.create(root))
    assert subvolume.get_read_only(root / "empty")
    assert mode(root / "empty") == 0o755


def test_two_makers(btrfs: Path) -> None:
    """
    A second concurrent maker of a store is refused, and harms neither the store nor the first maker.
    """
    inside, go_on = threading.Event(), threading.Event()

    class Slow(BtrfsVolumes):
        def make_empty(self, root_fd: int) -> None:
            inside.set()
            assert go_on.wait(10)
            super().make_empty(root_fd)

    stores: list[Snapshotter] = []
    first = threading.Thread(target=lambda: stores.append(Snapshotter.create(btrfs / "root", volumes=Slow)))
    first.start()
    assert inside.wait(10)
    with pytest.raises(StoreHeldError, match=f"held by process {os.getpid()}"):
        Snapshotter.create(btrfs / "root")
    go_on.set()
    first.join()
    works(stores[0])


def test_overtaken_maker(btrfs: Path) -> None:
    """
    Who made the root, but was overtaken in making the store, leaves it to the other.
    """

    class Overtaken(BtrfsVolumes):
        @staticmethod
        def make_root(path: str) -> None:
            BtrfsVolumes.make_root(path)
            works(Snapshotter.create(path))

    with pytest.raises(AlreadyExistsError):
        Snapshotter.create(btrfs / "root", volumes=Overtaken)
    with Snapshotter(btrfs / "root") as opened:
        assert opened.stat("base")


# Opening one


def test_not_a_store(btrfs: Path, tmpfs: Path) -> None:
    """
    A path without a store is refused with its state and the cure.
    """
    (btrfs / "file").touch()
    (btrfs / "odd").mkdir()
    (btrfs / "odd" / "store").touch()
    (btrfs / "link").mkdir()
    (btrfs / "link" / "store").symlink_to("/")
    for root, error, text in [
        (btrfs, FailedPreconditionError, "is not a store: make one with `snapshotter init`"),
        (btrfs / "missing", NotFoundError, "missing' does not exist: make it with `snapshotter init`"),
        (btrfs / "file", FailedPreconditionError, "file'.*: Not a directory"),
        (btrfs / "odd", FailedPreconditionError, "odd'.*: Not a directory"),
        (btrfs / "link", FailedPreconditionError, "link'.*: Not a directory"),
        (tmpfs, FailedPreconditionError, "is not on btrfs"),
    ]:
        with pytest.raises(error, match=text):
            Snapshotter(root)


def test_damaged_header(btrfs: Path) -> None:
    """
    A store whose own record is damaged, or another's, is not opened.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    header = os.getxattr(root / "store", XATTR)
    damages = [header[:-1], header.replace(b"local", b"lokal"), b"", records.seal({"id": 1}), records.seal({})]
    for damage in damages:
        os.setxattr(root / "store", XATTR, damage)
        with pytest.raises(DataLossError, match=r"the record of store .*root' is damaged"):
            Snapshotter(root)
    os.setxattr(root / "store", XATTR, header)
    Snapshotter(root).close()


def test_newer_store(btrfs: Path) -> None:
    """
    A newer release's store is refused with both numbers, and not changed.
    """
    root = btrfs / "root"
    works(Snapshotter.create(root))
    newer = records.seal({"format": 7, "place": "elsewhere"})
    os.setxattr(root / "store", XATTR, newer)
    with pytest.raises(
        FailedPreconditionError, match="format 7 was written by a newer release; this one reads up to 2"
    ):
        Snapshotter(root)
    assert os.getxattr(root / "store", XATTR) == newer


def test_read_only_filesystem(btrfs_mount: Callable[..., Path]) -> None:
    """
    On a filesystem mounted read-only a store can be read, and says why it cannot be opened otherwise.
    """
    root = btrfs_mount()
    works(Snapshotter.create(root))
    syscall.mount("", root, "", syscall.MS_REMOUNT | syscall.MS_RDONLY)
    with pytest.raises(Exception, match=r"cannot open store .*: Read-only file system"):
        Snapshotter(root)
    with Snapshotter(root, read_only=True) as reader:
        assert reader.stat("base")


def test_loosened(btrfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    A root that somebody opened to others is closed, and that is said, by who opens it for changes only.
    """
    root = btrfs / "root"
    Snapshotter.create(root).close()
    root.chmod(0o2755)
    Snapshotter(root, read_only=True).close()
    assert (mode(root), caplog.text) == (0o2755, "")
    Snapshotter(root).close()
    assert mode(root) == 0o700
    assert f'tightened root={root} error="its mode was 2755"' in caplog.text
    caplog.clear()
    Snapshotter(root).close()
    assert caplog.text == ""


# Ids


def ids(root: Path) -> set[int]:
    return {int(name) for name in os.listdir(root / "snapshots")}


def test_ids_are_never_used_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    No id is given out twice: not after a removal, a failure, another opening, nor when the process was killed.
    """
    monkeypatch.setattr(store, "ID_BLOCK", 3)
    seen = ids(root)
    for number in range(4):
        with Snapshotter(root) as opened:
            for repetition in range(5):
                opened.prepare("k", "base" if repetition % 2 else "")
                new = ids(root) - seen
                assert len(new) == 1
                assert min(new) > max(seen)
                seen |= new
                opened.remove("k")
                with pytest.raises(InvalidArgumentError):
                    opened.prepare("k", labels={f"{key}": "x" * 4000 for key in range(270)})
            opened.cleanup()
        with holder(root) as ask:
            ask(f"store.prepare('{number}')")
            new = ids(root) - seen
            assert min(new) > max(seen)
            seen |= new
            os.kill(int(ask("os.getpid()")), signal.SIGKILL)


def test_header_is_complete(root: Path) -> None:
    """
    The store's header has every field that the next release reads.
    """
    header = json.loads(os.getxattr(root / "store", XATTR))
    assert set(header) == {"crc", "format", "uuid", "identity", "client", "id_limit", "suspect"}
    assert (header["client"], header["id_limit"], header["suspect"]) == ("local", 1025, 0)
    assert set(header["identity"]) == {"fsid", "subvolume", "inode"}


def test_unprivileged(btrfs: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user gets a plain refusal where he has no access.
    """
    works(Snapshotter.create(btrfs / "root"))

    def attempt(call: Callable[[Path], object], name: str) -> str:
        try:
            call(btrfs / name)
        except FailedPreconditionError as error:
            return str(error)
        return "no error"

    assert "Permission denied" in unprivileged(attempt, Snapshotter, "root")
    assert "Permission denied" in unprivileged(attempt, Snapshotter.create, "new")
    assert not shutil.which("snapshotter", path=btrfs)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_opening_needs_no_space(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A root that a full disk does not let be closed to others is opened all the same, and closed the next time.
    """
    root = tmp_path / "root"
    Snapshotter.create(root, volumes=DirectoryVolumes).close()
    root.chmod(0o755)

    def full(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", full)
        Snapshotter(root, volumes=DirectoryVolumes).close()
    Snapshotter(root, volumes=DirectoryVolumes).close()
    assert root.stat().st_mode & 0o777 == 0o700
