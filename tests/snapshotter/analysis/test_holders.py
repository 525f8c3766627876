import subprocess
import sys
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import Snapshotter
from snapshotter.analysis import holders
from snapshotter.analysis.holders import Holders
from snapshotter.errors import NotFoundError
from snapshotter.mounting import mounted
from tests.namespaces import other_namespace

pytestmark = pytest.mark.btrfs


def test_find(btrfs: Path, tmp_path: Path) -> None:
    """
    Children, mounts in this and in other namespaces, and the processes in them are found, and nothing else is.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        store.commit("base", "build")
        store.prepare("a", "base")
        store.prepare("b", "base")
        store.view("v", "base")
        assert holders.find(store, "base") == Holders(("a", "b", "v"), (), ())
        assert holders.find(store, "a") == Holders((), (), ())
        (mount,) = store.mounts("b")
        command = 'mount -t btrfs -o "$2" "$1" "$3" && cd "$3"'
        with (
            other_namespace(command, mount.source, ",".join(mount.options), tmp_path),
            mounted(store.mounts("a")) as path,
            subprocess.Popen(
                [sys.executable, "-c", "file = open('file', 'w'); print(flush=True); input()"],
                cwd=path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as process,
        ):
            assert process.stdout
            process.stdout.readline()
            here, there = holders.find(store, "a"), holders.find(store, "b")
            process.communicate(b"\n")
        assert [(point.path, point.read_only) for point in here.mounts] == [(path, False)]
        assert [(found.pid, found.uses, found.open_files) for found in here.processes] == [(process.pid, ("cwd",), 1)]
        assert here.processes[0].command.startswith(sys.executable)
        assert [point.path for point in there.mounts] == [str(tmp_path)]
        assert [found.uses for found in there.processes] == [("cwd",)]
        assert there.mounts[0].pid == there.processes[0].pid
        assert holders.find(store, "a") == Holders((), (), ())


def test_views(btrfs: Path) -> None:
    """
    A view and its parent are both held by the mounts of the parent's layer.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        store.commit("base", "build")
        store.view("v", "base")
        with mounted(store.mounts("v")) as path:
            for key in ("v", "base"):
                assert [(point.path, point.read_only) for point in holders.find(store, key).mounts] == [(path, True)]


def test_nested(btrfs: Path, tmp_path: Path) -> None:
    """
    A mount of a nested subvolume holds the snapshot too.
    """
    with Snapshotter.create(btrfs / "store") as store:
        (mount,) = store.prepare("a")
        nested = f"{store.subvolume('a')}/nested"
        subvolume.create(nested)
        options = f"subvolid={subvolume.get_id(nested)}"
        with other_namespace('mount -t btrfs -o "$2" "$1" "$3"', mount.source, options, tmp_path):
            assert [point.path for point in holders.find(store, "a").mounts] == [str(tmp_path)]


def test_lost(btrfs: Path) -> None:
    """
    A snapshot without its subvolume is held by its children. A missing snapshot is an error.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("a")
        store.commit("base", "a")
        store.prepare("b", "base")
        store.cleanup()
        subvolume.delete(store.subvolume("base"))
        with Snapshotter(store.root, read_only=True) as reading:
            assert holders.find(reading, "base") == Holders(("b",), (), ())
            with pytest.raises(NotFoundError):
                holders.find(reading, "none")
