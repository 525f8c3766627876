"""
Deletions by hand on a store that containerd uses.
"""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import cli
from snapshotter.store.record_storage import XATTR

from . import images
from .images import Image
from .processes import Containerd, CtrError, Daemon, wait_until

pytestmark = pytest.mark.btrfs


@pytest.fixture
def small(emptied: Containerd, directory: Path) -> Image:
    """
    Import an image, and return it.
    """
    small = images.small("example.org/small:1")
    emptied.ctr("images", "import", small.write(directory / "image.tar"))
    return small


def test_rm(
    emptied: Containerd, daemon: Daemon, small: Image, capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    """
    rm refuses every snapshot that containerd knows, with the object that needs it and the command of containerd.
    """

    def run(*argv: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(["--root", str(daemon.root), argv[0], "--containerd", str(emptied.address), *argv[1:]])
        return code, capsys.readouterr().err

    emptied.start_container(small.name, "web", "sleep 1000")
    emptied.ctr("snapshots", "prepare", "labelled", small.chain_ids[-1])
    emptied.ctr("leases", "create", "--id", "lease")
    emptied.prepare_leased("lease", "leased", small.chain_ids[-1])
    keys = {key.split("/", 2)[2]: key for key in daemon.snapshots()}
    before = daemon.snapshots()
    for name, need, command in (
        ("web", "container 'web'", "containers rm web"),
        (small.chain_ids[-1], f"image '{small.name}'", f"images rm {small.name}"),
        ("leased", "lease 'lease'", "leases rm lease"),
        ("labelled", "label 'containerd.io/gc.root=", "snapshots --snapshotter btrfs-snapshotter rm labelled"),
    ):
        for flags in [], ["--force"], ["--containerd-is-gone", "--yes"]:
            code, err = run("rm", keys[name], *flags)
            assert code == 1
            assert need in err
            assert f"`ctr --address {emptied.address} --namespace {emptied.namespace} {command}" in err
    assert run("rm", "none") == (4, "snapshotter: snapshot 'none' does not exist: not found\n")
    assert daemon.snapshots() == before

    stranger = f"{emptied.namespace}/9999/stranger"
    with daemon.client() as client:
        client.prepare(stranger)
    code, err = run("rm", stranger)
    assert code == 1
    assert "--force removes it now" in err
    assert run("rm", stranger, "--force") == (0, "")
    assert daemon.snapshots() == before

    code, err = run("rm", keys["labelled"], "--force", "--containerd", f"{emptied.address}.none")
    assert code == 1
    assert "cannot be asked for its needs: no answer from containerd" in err
    assert daemon.snapshots() == before
    emptied.ctr("snapshots", "rm", "labelled")


def test_repair(emptied: Containerd, daemon: Daemon, small: Image, capsys: pytest.CaptureFixture[str]) -> None:
    """
    doctor --fix and purge leave the layers of an image alone, though their records are gone.
    """

    def run(*argv: str, address: str = str(emptied.address)) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([*argv, "--root", str(daemon.root), "--containerd", address])
        return code, capsys.readouterr().err

    top = next(key for key in daemon.snapshots() if key.endswith(small.chain_ids[-1]))
    with daemon.beside() as store:
        path = Path(store.subvolume(top)).parent
    record = os.getxattr(path, XATTR)
    daemon.stop()
    os.removexattr(path, XATTR)
    code, err = run("doctor", "--fix")
    assert code == 5
    assert f"containerd needs snapshots that the store lacks: {small.chain_ids[-1]!r}" in err
    assert f"image '{small.name}'" in err
    code, err = run("doctor", "--fix", address=f"{emptied.address}.none")
    assert code == 5
    assert "containerd cannot be asked: no answer" in err
    code, err = run("init", "--client", "local")
    assert code == 1
    assert f"image '{small.name}'" in err
    assert path.exists()

    quarantine = daemon.root / "quarantine"
    quarantine.mkdir()
    shutil.copytree(path, quarantine / "copy", ignore=lambda *_: ["layer"])
    subvolume.snapshot(path / "layer", quarantine / "copy" / "layer")
    code, err = run("purge", "--yes")
    assert code == 1
    assert f"image '{small.name}'" in err
    assert (quarantine / "copy" / "layer").exists()

    os.setxattr(path, XATTR, record)
    assert run("purge", "--yes") == (0, "")
    assert not os.listdir(quarantine)
    (daemon.root / "snapshots" / "stranger").mkdir()
    assert run("doctor", "--fix") == (5, "")
    assert os.listdir(quarantine) == ["stranger"]
    assert run("purge", "--yes") == (0, "")
    daemon.start()

    def reconnected() -> bool:
        with contextlib.suppress(CtrError):
            emptied.ctr("snapshots", "ls")
            return True
        return False

    wait_until(reconnected, "containerd to reach the daemon")
