"""
Deletions by hand on a store that containerd uses.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pybtrfs import subvolume
from snapshotter import cli
from snapshotter.store.record_storage import XATTR

from . import images
from .images import Image
from .processes import PLUGIN, Containerd, Daemon, reconnect

pytestmark = pytest.mark.btrfs

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def small(emptied: Containerd, directory: Path) -> Image:
    """
    Import an image, and return it.
    """
    small = images.small("example.org/small:1")
    emptied.ctr("images", "import", small.write(directory / "image.tar"))
    return small


@pytest.fixture
def run(emptied: Containerd, daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> Run:
    """
    Return a function that runs a command on the store, and returns its code and its errors.
    """

    def run(*argv: str, address: str = str(emptied.address)) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([*argv, "--root", str(daemon.root), "--containerd", address])
        return code, capsys.readouterr().err

    return run


def test_rm(emptied: Containerd, daemon: Daemon, small: Image, run: Run) -> None:
    """
    rm refuses every snapshot that containerd knows, with the object that needs it and the command of containerd.
    """
    emptied.start_container(small.name, "web", "sleep 1000")
    emptied.ctr("snapshots", "prepare", "labelled", small.chain_ids[-1])
    emptied.ctr("leases", "create", "--id", "lease")
    emptied.prepare_leased("lease", "leased", small.chain_ids[-1])
    keys = {key.split("/", 2)[2]: key for key in daemon.snapshots()}
    before = daemon.snapshots()
    for name, need, command in (
        ("web", "container 'web'", "containers rm web"),
        (small.chain_ids[0], "lease 'lease', by way of 'leased'", "leases rm lease"),
        (small.chain_ids[-1], f"image '{small.name}'", f"images rm {small.name}"),
        ("leased", "lease 'lease'", "leases rm lease"),
        ("labelled", "label 'containerd.io/gc.root=", "snapshots --snapshotter btrfs-snapshotter rm labelled"),
    ):
        for flags in [], ["--force"], ["--containerd-is-gone", "--yes"]:
            code, err = run("rm", keys[name], *flags)
            assert code == 1
            assert need in err
            assert f"`ctr --address {emptied.address} --namespace {emptied.namespace} {command}" in err
    code, err = run("rm", "none")
    assert (code, err.partition(":")[2].partition(":")[0]) == (4, " snapshot 'none' does not exist")
    assert daemon.snapshots() == before

    stranger = f"{emptied.namespace}/9999/stranger"
    with daemon.client() as client:
        client.prepare(stranger)
    code, err = run("rm", stranger)
    assert code == 1
    assert "--force removes it now" in err
    assert run("rm", stranger, "--force") == (0, "")
    assert daemon.snapshots() == before

    code, err = run("rm", keys["labelled"], "--force", address=f"{emptied.address}.none")
    assert code == 1
    assert "cannot be asked for its needs: no answer from containerd" in err
    assert daemon.snapshots() == before
    emptied.ctr("snapshots", "rm", "labelled")


def test_repair(emptied: Containerd, daemon: Daemon, small: Image, run: Run) -> None:
    """
    doctor --fix and purge leave the layers of an image alone, though their records are gone.
    """
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
    assert "no daemon serves the store; start it and the daemon" in err
    reconnect(emptied, daemon)
    code, err = run("purge", "--yes")
    assert code == 1
    assert f"{top!r} (image '{small.name}'): `ctr --address {emptied.address} --namespace {emptied.namespace} " in err
    assert (quarantine / "copy" / "layer").exists()

    daemon.stop()
    os.setxattr(path, XATTR, record)
    reconnect(emptied, daemon)
    assert run("purge", "--yes") == (0, "")
    assert not os.listdir(quarantine)
    daemon.stop()
    (daemon.root / "snapshots" / "stranger").mkdir()
    assert run("doctor", "--fix") == (5, "")
    assert os.listdir(quarantine) == ["stranger"]
    reconnect(emptied, daemon)
    assert run("purge", "--yes") == (0, "")


def test_label_alone(emptied: Containerd, daemon: Daemon, run: Run) -> None:
    """
    init --client and purge see a snapshot that only a label keeps, and the command in their error is the cure.
    """
    emptied.ctr("snapshots", "prepare", "kept")
    [key] = daemon.snapshots()
    with daemon.client() as client:
        assert run("rm", key)[1].count("label 'containerd.io/gc.root=") == 1
        daemon.stop()
        code, err = run("init", "--client", "local")
        assert code == 1
        assert f"it has snapshots in namespace '{emptied.namespace}': start the daemon, remove each with `ctr" in err
        (daemon.root / "quarantine").mkdir()
        (daemon.root / "quarantine" / "lost").mkdir()
        reconnect(emptied, daemon)
        client.remove(key)
    assert emptied.listed("snapshots") == []
    code, err = run("purge", "--yes")
    assert code == 1
    [(command, name)] = re.findall(rf"{key!r} \(a label or a child\): `ctr .* (snapshots .*) (\S+)`", err)
    assert (daemon.root / "quarantine" / "lost").exists()
    emptied.ctr(*command.split(), name)
    assert run("purge", "--yes") == (0, "")
    daemon.stop()
    assert run("init", "--client", "other") == (0, "")
    assert run("init", "--client", PLUGIN)[0] == 1
    assert run("init", "--client", PLUGIN, "--containerd-is-gone", "--yes") == (0, "")
    reconnect(emptied, daemon)
