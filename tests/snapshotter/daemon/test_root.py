"""
The root of the daemon: the stores that it creates, serves and refuses.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pybtrfs import image, subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.mounting import mounted
from tests.snapshotter.daemon.running import Daemon, mode, names, ping, tree

pytestmark = pytest.mark.btrfs


class TestRoot:
    @pytest.mark.parametrize("kind", ["missing", "empty", "subvolume"])
    def test_initialised(self, daemon: Daemon, kind: str) -> None:
        """
        A missing or empty root becomes a store, which is served, also after a restart.
        """
        if kind == "empty":
            daemon.root.mkdir()
        elif kind == "subvolume":
            subvolume.create(daemon.root)
        daemon.ready()
        assert subvolume.is_subvolume(daemon.root) == (kind != "empty")
        with daemon.client() as client:
            client.prepare("a")
        assert daemon.stop() == 0
        daemon.ready()
        with daemon.client() as client:
            assert names(client) == {"a"}
        assert daemon.stop() == 0

    def test_odd_names(self, make_daemon: Callable[..., Daemon], btrfs: Path) -> None:
        """
        Root and socket may have any name, and no name can forge a line to the manager.
        """
        daemon = make_daemon(btrfs / os.fsdecode(b"\xff\nREADY=1\xc3\xa9"))
        daemon.address = daemon.work / os.fsdecode(b"\xff\n.sock")
        daemon.start()
        daemon.notified(f"STATUS=opening {btrfs}/\\udcff\\nREADY=1é")
        daemon.notified("READY=1")
        with daemon.client() as client:
            client.prepare("a")
        assert ping(daemon)[0] == 0
        assert daemon.stop() == 0
        assert all(" info " in line for line in daemon.log.read_text().splitlines())

    def test_mount_point(self, make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
        """
        The root can be the mount point of its own filesystem, which can be unmounted afterwards without force.
        """
        root = tmp_path / "root"
        root.mkdir()
        image.create(tmp_path / "image", 256 << 20, sparse=True)
        with image.mount(tmp_path / "image", root) as mount:
            daemon = make_daemon(root).ready()
            with daemon.client() as client, mounted(client.prepare("a")) as path:
                Path(path, "file").write_text("content")
            assert daemon.stop() == 0
            mount.unmount()

    def test_tightened(self, daemon: Daemon) -> None:
        """
        The root of an existing store is closed to other users, and the log says so.
        """
        Snapshotter.create(daemon.root).close()
        daemon.root.chmod(0o755)
        daemon.ready()
        assert mode(daemon.root) == 0o700
        assert 'error="its mode was 0755"' in daemon.log.read_text()

    def test_held(self, daemon: Daemon, make_daemon: Callable[..., Daemon]) -> None:
        """
        A second daemon on the root names the first and leaves nothing behind; the first keeps serving.
        """
        daemon.ready()
        second = make_daemon()
        code, line = second.refused()
        assert daemon.process
        assert (code, line.partition("(")[0]) == (3, f"store '{daemon.root}' is held by process {daemon.process.pid} ")
        assert not second.address.parent.exists()
        assert json.loads((daemon.root / "lock").read_text())["socket"] == str(daemon.address)
        with daemon.client() as client:
            assert client.serving()

    def test_no_btrfs(self, make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
        """
        A root that is not on btrfs, missing or empty, is refused with the cure, and is neither created nor changed.
        """
        daemon = make_daemon(tmp_path / "root")
        for _ in range(2):
            before = tree(tmp_path / "root") if daemon.root.exists() else {}
            code, line = daemon.refused()
            assert code == 1
            assert line.endswith(
                "is not on btrfs: choose a directory on btrfs, or make an image with `snapshotter init --image SIZE`"
            )
            assert (tree(daemon.root) if daemon.root.exists() else {}) == before
            assert not daemon.address.parent.exists()
            daemon.root.mkdir(exist_ok=True, mode=0o755)

    def test_something_else(self, daemon: Daemon) -> None:
        """
        A root that holds other files is refused and unchanged.
        """
        daemon.root.mkdir()
        (daemon.root / "file").touch()
        before = tree(daemon.root)
        assert daemon.refused() == (1, f"'{daemon.root}' is not empty: it holds 'file'")
        assert tree(daemon.root) == before

    def test_copy(self, make_daemon: Callable[..., Daemon], btrfs: Path) -> None:
        """
        A copy of a store is refused with the cure and unchanged.
        """
        with Snapshotter.create(btrfs / "original") as store:
            store.prepare("a")
        subvolume.snapshot(btrfs / "original", btrfs / "root")
        (btrfs / "root").chmod(0o755)
        before = tree(btrfs / "root")
        code, line = make_daemon().refused()
        assert (code, line) == (
            1,
            f"store '{btrfs / 'root'}' cannot be served: it is a copy of a store: make it a store with "
            "`snapshotter init --adopt`",
        )
        assert tree(btrfs / "root") == before

    @pytest.mark.parametrize("made", [False, True])
    def test_inherited(self, make_daemon: Callable[..., Daemon], btrfs: Path, tmp_path: Path, made: bool) -> None:
        """
        A mount with options that containers would inherit is refused in the bind mode, and served in the btrfs mode.
        """
        point = tmp_path / "point"
        point.mkdir()
        syscall.mount(btrfs, point, "", syscall.MS_BIND)
        try:
            flags = syscall.MS_NOSUID | syscall.MS_NODEV
            syscall.mount("", point, "", syscall.MS_REMOUNT | syscall.MS_BIND | flags)
            if made:
                Snapshotter.create(point / "root").close()
            before = tree(point)
            daemon = make_daemon(point / "root")
            code, line = daemon.refused("--mount-mode", "bind")
            assert code == 1
            assert line.startswith(f"'{daemon.root}' is mounted nosuid,nodev, which containers would inherit: ")
            assert tree(point) == before
            assert daemon.ready("--mount-mode", "btrfs").stop() == 0
        finally:
            syscall.umount2(point)
