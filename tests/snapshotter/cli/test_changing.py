"""
Errors that commands which change a store share: alone with the store, and through the daemon that holds it.
"""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapshotter import Snapshotter, cli
from snapshotter.store.record_storage import XATTR
from tests.snapshotter.cli.commands import Run, infos
from tests.snapshotter.serving import serving

pytestmark = pytest.mark.btrfs


MISTAKES = [
    ("prepare a none", 4, "snapshot 'none' does not exist"),
    ("prepare web", 1, "snapshot 'web' already exists"),
    ("prepare a web", 2, "parent 'web' is not committed"),
    ("prepare a --label =x", 2, "key of a label is empty"),
    ("prepare \udcff", 2, "cannot be encoded"),
    ("view v", 1, "snapshot 'v' already exists"),
    ("commit base web", 1, "snapshot 'base' already exists"),
    ("commit c v", 1, "snapshot 'v' is not active"),
    ("commit c none", 4, "snapshot 'none' does not exist"),
    ("fork base c", 1, "snapshot 'base' is not active"),
    ("fork none c", 4, "snapshot 'none' does not exist"),
    ("fork web v", 1, "snapshot 'v' already exists"),
    ("rm base", 1, "cannot remove snapshot 'base' with child"),
    ("rm none", 4, "snapshot 'none' does not exist"),
    ("rm \udcff", 2, "cannot be encoded"),
]


def test_codes(layers: str, run: Run) -> None:
    """
    Each mistake has its exit code and one line that names it, and changes nothing.
    """
    before = infos(run)
    for argv, code, text in MISTAKES:
        ran = run(*argv.split())
        assert (ran.code, ran.out) == (code, ""), argv
        assert text in ran.err
    assert infos(run) == before


@pytest.mark.parametrize("way", ["served"])
@pytest.mark.parametrize(("argv", "what"), [("init --adopt", "init"), ("init --client x", "init")])
def test_alone_only(layers: str, run: Run, argv: str, what: str) -> None:
    """
    A command that needs exclusive access to the store says so, and names the holder.
    """
    refused = run(*argv.split())
    assert refused.code == 3
    assert f"snapshotter: {what} needs exclusive access to the store: " in refused.err
    assert f"is held by process {os.getpid()}" in refused.err


@pytest.mark.parametrize("way", ["alone"])
def test_held_by_a_library(layers: str, run: Run) -> None:
    """
    Where the holder serves nobody, what changes is refused with 3.
    """
    with Snapshotter(layers):
        for argv in ("prepare x", "view x", "commit x web", "fork web x", "rm web", "cleanup", "init --adopt"):
            refused = run(*argv.split())
            assert refused.code == 3, argv
            assert f"held by process {os.getpid()}" in refused.err


def test_a_store_of_containerd(btrfs: Path, run: Run, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Nothing is created by hand among the snapshots of containerd, or removed unless containerd is gone.
    """
    monkeypatch.setenv("SNAPSHOTTER_ROOT", str(btrfs / "s"))
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        store = stack.enter_context(Snapshotter.create(btrfs / "s", client="btrfs", socket=server.address))
        store.prepare("a")
        if way == "served":
            server.open(store)
        else:
            store.close()
        for argv in ("prepare x", "view x", "commit x a", "fork a x"):
            refused = run(*argv.split())
            assert refused.code == 1, argv
            assert "belongs to client 'btrfs', and containerd's garbage collection deletes" in refused.err
        assert [info[0] for info in infos(run)] == ["a"]
        for more in [], ["--force"]:
            refused = run("rm", "a", "--containerd", str(btrfs / "none"), *more)
            assert (refused.code, refused.out) == (1, "")
            assert "no answer from containerd" in refused.err
        argv = ["rm", "a", "--containerd", str(btrfs / "none"), "--containerd-is-gone"]
        assert "give --yes" in run(*argv).err
        assert [info[0] for info in infos(run)] == ["a"]
        assert run(*argv, "--yes").code == 0
        assert infos(run) == []


@pytest.mark.parametrize("way", ["alone"])
def test_a_store_without_a_client(root: str, run: Run) -> None:
    """
    Snapshots with containerd's keys are protected, too, if the store's record lost the name of the client.
    """
    with Snapshotter(root) as store:
        store.prepare("k8s.io/1/web")
    os.setxattr(f"{root}/store", XATTR, b"damaged")
    assert "replaced the record of the store" in run("doctor", "--fix").out
    for argv in ["rm", "k8s.io/1/web"], ["init", "--client", "local"]:
        refused = run(*argv)
        assert refused.code == 1
        assert "bind it again with `snapshotter init --client NAME`" in refused.err
    assert run("init", "--client", "btrfs").code == 0
    assert "cannot be asked" in run("rm", "k8s.io/1/web", "--containerd", f"{root}/none").err
    assert [info[0] for info in infos(run)] == ["k8s.io/1/web"]


@pytest.mark.parametrize("way", ["alone"])
def test_hung_daemon(root: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A command that a stopped daemon does not answer names the daemon, and gives up after the timeout.
    """
    monkeypatch.setattr("snapshotter.client._NOTICE_SECONDS", 0.1)
    with Snapshotter(root) as store:
        store.prepare("web")
    assert cli.parser(["rm"]).parse_args(["rm", "web"]).timeout == 30
    address = f"{root}.sock"
    daemon = subprocess.Popen(
        [sys.executable, "-m", "snapshotter", "serve", "--root", root, "--address", address], stderr=subprocess.DEVNULL
    )
    try:
        while run("ping", "--root", root, "--address", address).code:
            assert daemon.poll() is None
        daemon.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
        for argv in ["rm", "web"], ["prepare", "x"], ["label", "web", "a=b"], ["cleanup"], ["commit", "x", "web"]:
            capsys.readouterr()
            assert cli.main([*argv, "--timeout", "0.3"]) == 1
            waiting, late = capsys.readouterr().err.splitlines()
            assert waiting == f"snapshotter: waiting for the daemon at {address!r}, at most 0.3 s (--timeout)"
            assert late == f"snapshotter: no answer from {address!r} within 0.3 s: it may still finish the call"
    finally:
        daemon.send_signal(signal.SIGCONT)
        daemon.terminate()
        daemon.wait()
    assert run("rm", "web", "--timeout", "0").code == 2
