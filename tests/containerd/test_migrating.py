"""
The ways of docs/migrating.md from containerd's own snapshotters and from Docker's storage driver for btrfs.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from . import images
from .engine import Engine, programs
from .needed import needed
from .processes import PLUGIN, Containerd, Daemon, wait_until

pytestmark = pytest.mark.btrfs


@pytest.fixture
def containerd_options(filesystem: Path) -> dict[str, Any]:
    """
    Return the options of a containerd on btrfs, which its own btrfs snapshotter needs.
    """
    return {"root": filesystem / "containerd"}


def test_from_containerd(emptied: Containerd, daemon: Daemon, directory: Path) -> None:
    """
    A container on the former snapshotter runs on, its image is unpacked again without a pull, and the former layers go.
    """
    loaded = re.findall(r"snapshotter\.v1 +(btrfs|overlayfs) .* ok", emptied.ctr("plugins", "ls"))
    assert "overlayfs" in loaded  # the builds of these tests lack btrfs, for which Go needs a C compiler
    local = (
        ["--local"] if emptied.maps_ids else []
    )  # containerd 2 unpacks for the snapshotters of its configuration only
    for former in loaded:
        image = images.small(f"example.org/{former}:1")
        archive = image.write(directory / "image.tar")
        emptied.ctr("images", "import", *local, "--snapshotter", former, archive)
        archive.unlink()
        command = ("sh", "-ec", "echo kept > /kept; sleep infinity")
        emptied.ctr("run", "--detach", "--null-io", "--snapshotter", former, image.name, former, *command)
        emptied.run(image.name, "new", f"test $(cat /name) = {image.name}")
        assert set(image.chain_ids) <= {key.rpartition("/")[2] for key in daemon.snapshots()}
        emptied.shell(former, "test $(cat /kept) = kept")
        emptied.ctr("tasks", "kill", "--signal", "KILL", former)
        wait_until(lambda former=former: former not in emptied.tasks(), "the container to end")  # type: ignore[misc]
        emptied.ctr("containers", "rm", former)
        label = f"containerd.io/gc.ref.snapshot.{former}"
        [config] = [line.split()[0] for line in emptied.ctr("content", "ls").splitlines() if label in line]
        emptied.ctr("content", "label", config, f"{label}=")
        emptied.collect_garbage()
        assert emptied.listed("snapshots", "--snapshotter", former) == []
        emptied.run(image.name, "later", "true")


def test_from_docker(emptied: Containerd, daemon: Daemon, filesystem: Path, directory: Path) -> None:
    """
    Images move by save and load, and with the former settings the former containers are back.
    """
    engine = Engine(needed(programs, "sid"), emptied, daemon, directory, data=filesystem / "docker")
    former = json.loads(engine.config.read_text()) | {"storage-driver": "btrfs", "live-restore": False}
    engine.config.write_text(json.dumps(former))
    (directory / "files.tar").write_bytes(images.layer(*images.base()))
    name = "example.org/busybox:1"
    try:
        engine.start()
        engine.docker("import", directory / "files.tar", name)
        engine.run(name, "echo kept > /kept; sleep infinity", "--name", "old", "--detach")
        assert engine.docker("info", "--format", "{{.Driver}}") == "btrfs"
        engine.docker("save", "--output", directory / "saved.tar", name)
        engine.docker("commit", "old", "example.org/old:1")
        engine.docker("save", "--output", directory / "old.tar", "example.org/old:1")
        engine.docker("stop", "--time", "0", "old")
        written = engine.setup("--write")
        assert written.returncode == 0, written.stderr
        for process in (engine, emptied):
            process.stop()
        for process in (emptied, engine):
            process.start()

        assert engine.docker("info", "--format", "{{.Driver}}") == PLUGIN
        assert engine.docker("ps", "--all", "--quiet") == ""
        for archive in ("saved.tar", "old.tar"):
            engine.docker("load", "--input", directory / archive)
        assert engine.run(name, "echo works", "--rm") == "works"
        assert engine.run("example.org/old:1", "cat /kept", "--rm") == "kept"
        engine.prune()
        wait_until(lambda: not daemon.snapshots(), "garbage collection to remove every snapshot")
        engine.stop()

        [copy] = directory.glob("daemon.json.*")
        shutil.copy(copy, engine.config)
        engine.start()
        engine.docker("start", "old")
        assert engine.docker("exec", "old", "cat", "/kept") == "kept"
        engine.prune()
        assert engine.stop() == 0
    finally:
        engine.kill()
        engine.clear()
        print(engine.log.read_text())
