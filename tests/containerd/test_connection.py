"""
Problems that doctor finds between a store and its containerd.
"""

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter import cli
from snapshotter.analysis import containerd
from tests.snapshotter.serving import serving

from . import images
from .processes import PLUGIN, Containerd, Daemon, reconnect

pytestmark = pytest.mark.btrfs

Doctor = Callable[..., list[dict[str, str]]]


@pytest.fixture
def doctor(emptied: Containerd, daemon: Daemon) -> Doctor:
    """
    Return a function that returns the problems that doctor finds beside the sparse image of the store.
    """

    def run(*argv: str, address: str = str(emptied.address)) -> list[dict[str, str]]:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = cli.main(["doctor", "--json", "--root", str(daemon.root), "--containerd", address, *argv])
        found: list[dict[str, str]] = json.loads(out.getvalue())
        assert code == (5 if found else 0)
        return [each for each in found if "are allocated" not in each["what"]]

    return run


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """
    Stop a process for a ``with``.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_rows(emptied: Containerd, daemon: Daemon, directory: Path, doctor: Doctor) -> None:
    """
    doctor names each row without a snapshot and each snapshot without a row, and its cures work.
    """
    small = images.small("example.org/small:1")
    file = small.write(directory / "image.tar")
    emptied.ctr("images", "import", file)
    emptied.ctr("snapshots", "prepare", "kept", small.chain_ids[-1])
    assert doctor() == []
    keys = {key.split("/", 2)[2]: key for key in daemon.snapshots()}
    stranger = f"{emptied.namespace}/9999/stranger"
    with daemon.client() as client:
        client.prepare(stranger)
        client.remove(keys["kept"])
        client.remove(keys[small.chain_ids[-1]])
    kept, top, unknown = doctor()
    assert (kept["subject"], top["subject"], unknown["subject"]) == (keys["kept"], keys[small.chain_ids[-1]], stranger)
    assert kept["what"] == "containerd has it for a label or a child, but the store does not"
    assert top["what"] == f"containerd has it for image '{small.name}', but the store does not"
    assert unknown["what"].startswith("containerd does not know it")
    argv = ["rm", "--force", stranger, "--root", str(daemon.root), "--containerd", str(emptied.address)]
    assert cli.main(argv) == 0
    for problem in kept, top:
        command = problem["cure"].split("`")[1].split(" snapshots ")
        assert command[0] == f"ctr --address {emptied.address} --namespace {emptied.namespace}"
        emptied.ctr("snapshots", *command[1].split())
    emptied.ctr("images", "import", file)
    emptied.run(small.name, "works", "true")
    assert doctor() == []


def test_daemon(emptied: Containerd, daemon: Daemon, doctor: Doctor) -> None:
    """
    doctor says in bounded time that the daemon is stopped, hangs, or is another process.
    """
    emptied.ctr("snapshots", "prepare", "kept")
    with stopped(daemon.pid):
        [problem] = doctor()
    assert problem["what"].startswith(f"its daemon, process {daemon.pid}, does not serve it: no answer from ")
    assert "systemctl restart" in problem["cure"]
    daemon.stop()
    expected = f"the containerd at '{emptied.address}' expects it at '{daemon.address}'"
    [problem] = doctor()
    assert problem["what"] == f"no daemon serves it, but {expected}"
    with daemon.opened():
        [problem] = doctor()
        assert problem["what"].startswith(f"process {os.getpid()} (")
        assert problem["what"].endswith(f") has it and does not serve it, but {expected}")
    with serving() as elsewhere, daemon.opened(socket=elsewhere.address) as store:
        elsewhere.open(store)
        [problem] = doctor()
        assert problem["what"] == f"its daemon is at '{elsewhere.address}', but {expected}"
        assert "drop-in" in problem["cure"]
    reconnect(emptied, daemon)
    assert doctor() == []
    emptied.ctr("snapshots", "rm", "kept")


def test_containerd(
    emptied: Containerd, daemon: Daemon, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    """
    doctor says in bounded time that containerd hangs, does not run, or has not loaded the snapshotter.
    """
    emptied.ctr("snapshots", "prepare", "kept")
    with stopped(emptied.pid):
        [problem] = doctor()
    assert problem == {
        "subject": str(emptied.address),
        "what": f"no answer from containerd at '{emptied.address}': timed out",
        "cure": "start containerd, or name its socket with --containerd",
    }
    none = str(directory / "none")
    [problem] = doctor(address=none)
    assert problem["what"] == f"no answer from containerd at '{none}': No such file or directory"
    monkeypatch.delenv("CONTAINERD_ADDRESS", raising=False)
    monkeypatch.setattr(containerd, "SOCKETS", (none, str(emptied.address)))
    assert doctor("--containerd=") == []
    monkeypatch.setattr(containerd, "SOCKETS", (none,))
    assert doctor("--containerd=") == []

    daemon.stop()
    with daemon.opened() as store:
        store.bind("other")
    daemon.start()
    [problem] = doctor()
    assert problem["what"] == f"containerd at '{emptied.address}' has not loaded the snapshotter 'other'"
    assert "setup containerd --check" in problem["cure"]
    daemon.stop()
    with daemon.opened() as store:
        store.bind(PLUGIN)
    reconnect(emptied, daemon)
    assert doctor() == []
    emptied.ctr("snapshots", "rm", "kept")
