"""
``snapshotter init``.
"""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from pybtrfs import image, subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.errors import FailedPreconditionError
from snapshotter.setup import image_store
from tests.snapshotter.cli.commands import Run, names, settle

pytestmark = pytest.mark.btrfs


def test_on_btrfs(btrfs: Path, run: Run) -> None:
    """
    init makes a store of what is missing or empty, and of nothing else.
    """
    root = str(btrfs / "new")
    assert run("init", "--root", root) == (0, f"created a store in {root}\n", "")
    assert run("init", "--root", root).code == 1
    assert run("ls", "--root", root).code == 0
    (btrfs / "empty").mkdir()
    assert run("init", "--root", str(btrfs / "empty")).code == 0
    assert "is not empty" in run("init", "--root", str(btrfs)).err
    assert run("init", "--root", str(btrfs / "no" / "where")).code == 4


def test_elsewhere(tmp_path: Path, run: Run) -> None:
    """
    Where there is no btrfs, init says what to do.
    """
    assert "--image" in run("init", "--root", str(tmp_path / "s")).err


def test_on_a_mount_point(tmp_path: Path, run: Run) -> None:
    """
    A btrfs mounted on a directory of another filesystem can be a store itself.
    """
    image.create(tmp_path / "i", 200 << 20, sparse=True)
    (tmp_path / "s").mkdir()
    with image.mount(tmp_path / "i", tmp_path / "s"):
        assert run("init", "--root", str(tmp_path / "s")).code == 0


def test_in_an_image(tmp_path: Path, run: Run) -> None:
    """
    init --image makes a preallocated btrfs, mounts it, and prints the unit that mounts it again.
    """
    root, file = tmp_path / "s", tmp_path / "s.img"
    made = run("init", "--root", str(root), "--image", "200M")
    try:
        assert made.code == 0
        assert os.stat(file).st_blocks * 512 >= 200 << 20
        assert (
            f"\nWhat={file}\nWhere={root}\nType=btrfs\nOptions=loop,nodiscard,ssd,user_subvol_rm_allowed\n" in made.out
        )
        assert run("prepare", "a", "--root", str(root)).code == 0
        assert run("doctor", "--root", str(root)) == (0, "nothing is wrong\n", "")
    finally:
        syscall.umount2(root)
    # As the unit does.
    subprocess.run(["mount", "-o", "loop,nodiscard,ssd,user_subvol_rm_allowed", file, root], check=True)
    try:
        assert names(run, "--root", str(root)) == ["a"]
    finally:
        syscall.umount2(root)


def test_image_options(tmp_path: Path, run: Run) -> None:
    """
    The image may be elsewhere, and sparse, which doctor tells.
    """
    root, file = str(tmp_path / "s"), str(tmp_path / "elsewhere")
    assert run("init", "--root", root, "--image", "1G", "--sparse", "--image-file", file).code == 0
    try:
        assert os.stat(file).st_size == 1 << 30
        assert os.stat(file).st_blocks * 512 < 100 << 20
        assert run("doctor", "--root", root).code == 5
    finally:
        syscall.umount2(root)


@pytest.mark.parametrize("exists", [False, True])
def test_image_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, exists: bool) -> None:
    """
    When the last step fails, the image, its mount and a new root are gone.
    """

    def fail(root: str) -> None:
        assert os.path.ismount(root)
        raise OSError(errno.EIO, os.strerror(errno.EIO), root)

    root = tmp_path / "s"
    if exists:
        root.mkdir()
    monkeypatch.setattr(image_store.Snapshotter, "create", fail)
    assert run("init", "--root", str(root), "--image", "200M", "--sparse").code == 1
    assert os.listdir(tmp_path) == (["s"] if exists else [])


def test_image_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """
    Ctrl-C while it works undoes it all.
    """

    def interrupt(root: str) -> Snapshotter:
        os.kill(os.getpid(), signal.SIGINT)
        return make(root)

    make = Snapshotter.create
    monkeypatch.setattr(image_store.Snapshotter, "create", interrupt)
    ran = run("init", "--root", str(tmp_path / "s"), "--image", "200M", "--sparse")
    assert ran == (130, "", "snapshotter: interrupted\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        ("--image 1M", 2, "too small"),
        ("--image 20X", 2, "'20X' is not a size"),
        ("--image-file x", 2, "need --image"),
        ("--sparse", 2, "need --image"),
        ("--adopt --image 1G", 2, "--adopt"),
        ("--image 900T", 1, "No space left|File too large"),
    ],
)
def test_image_refused(tmp_path: Path, run: Run, argv: str, code: int, text: str) -> None:
    """
    A refused init says the reason, and leaves nothing.
    """
    ran = run("init", "--root", str(tmp_path / "s"), *argv.split())
    assert ran.code == code
    assert any(part in ran.err for part in text.split("|"))
    assert os.listdir(tmp_path) == []


def test_image_in_the_way(tmp_path: Path, run: Run) -> None:
    """
    Nothing that is there already is touched.
    """
    root = str(tmp_path / "s")
    (tmp_path / "s.img").write_text("mine")
    assert "exists" in run("init", "--root", root, "--image", "200M").err
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine").touch()
    assert "is not empty" in run("init", "--root", root, "--image", "200M").err
    assert "is not a directory" in run("init", "--root", f"{root}/mine", "--image", "200M").err
    assert "already" in run("init", "--root", "/proc", "--image", "200M").err
    assert (tmp_path / "s.img").read_text() == "mine"


def test_adopt(btrfs: Path, run: Run) -> None:
    """
    A store that was moved is one again; a copy without subvolumes is not.
    """
    old, new, copy = btrfs / "old", btrfs / "new", btrfs / "copy"
    subvolume.create(copy)
    old.mkdir()
    with Snapshotter.create(old) as store:
        store.prepare("a")
        settle(store)
    subprocess.run(["cp", "--archive", *old.iterdir(), copy], check=True)
    assert "copy of a store" in run("prepare", "b", "--root", str(copy)).err
    assert "none of the 1 subvolumes" in run("init", "--adopt", "--root", str(copy)).err
    new.mkdir()
    subvolume.set_read_only(old / "empty", read_only=False)  # or it cannot be renamed
    for name in os.listdir(old):
        (old / name).rename(new / name)
    subvolume.set_read_only(new / "empty")
    assert "copy of a store" in run("prepare", "b", "--root", str(new)).err
    assert run("init", "--adopt", "--root", str(new)) == (0, f"adopted {new}\n", "")
    assert run("prepare", "b", "--root", str(new)).code == 0
    assert names(run, "--root", str(new)) == ["a", "b"]


def test_client(btrfs: Path, run: Run) -> None:
    """
    init --client says whose the snapshots are, of a new store and of one with snapshots.
    """
    root = str(btrfs / "s")
    assert run("init", "--client", "btrfs", "--root", root) == (0, f"created a store in {root}\n", "")
    with Snapshotter(root, client="btrfs") as store:
        store.prepare("a")
    assert run("prepare", "b", "--root", root).code == 1
    argv = ["init", "--client", "local", "--root", root, "--containerd", f"{root}/none"]
    refused = run(*argv)
    assert refused.code == 1
    assert "cannot be asked for its needs: no answer from containerd at" in refused.err
    assert "give --yes" in run(*argv, "--containerd-is-gone").err
    said = f"{root} is now bound to client local\n"
    assert run(*argv, "--containerd-is-gone", "--yes") == (0, said, "")
    assert run("prepare", "b", "--root", root).code == 0
    with Snapshotter(root, client="btrfs") as store, pytest.raises(FailedPreconditionError, match="client 'local'"):
        store.prepare("c")
    assert run("init", "--client", "", "--root", str(btrfs / "none")).code == 2
    assert not (btrfs / "none").exists()


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/var/lib/snap", "var-lib-snap.mount"),
        ("/srv/.x/a-b", "srv-.x-a\\x2db.mount"),
        ("/.x", "\\x2ex.mount"),
        ("/srv/ü 5%", "srv-\\xc3\\xbc\\x205\\x25.mount"),
    ],
)
def test_unit_name(root: str, name: str) -> None:
    """
    A mount unit is named as systemd-escape says.
    """
    assert f"systemctl enable '{name}'\n" in image_store.mount_unit(root, "/i")
    assert f"\nWhere={root.replace('%', '%%')}\n" in image_store.mount_unit(root, "/i")
