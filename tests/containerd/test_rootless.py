"""
containerd and the daemon in a user namespace, as rootless containerd runs.

The ids of the namespace are those of the host, because the Python of these tests may be readable by root alone. Its
root has none of the host's capabilities.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybtrfs import syscall
from pybtrfs.path import owned
from snapshotter import Kind

from . import images
from .processes import SNAPSHOTTER, Containerd, Daemon, wait_until
from .registry import Registry

pytestmark = pytest.mark.btrfs


@pytest.fixture
def prefix(filesystem: Path) -> Iterator[list[str]]:
    """
    Return the command that enters a user namespace with the mounts of now.
    """
    with owned(syscall.user_namespace("0 0 65536", "0 0 65536")) as namespace:
        command = ["nsenter", f"--user=/proc/self/fd/{namespace}", "unshare", "--mount", "sleep", "infinity"]
        holder = subprocess.Popen(command, pass_fds=[namespace])
    try:
        name = Path(f"/proc/{holder.pid}/comm")
        wait_until(lambda: name.read_text() == "sleep\n", "the namespaces")
        yield ["nsenter", f"--target={holder.pid}", "--user", "--mount"]
    finally:
        holder.kill()
        holder.wait()


def test_rootless(emptied: Containerd, daemon: Daemon, registry: Registry, prefix: list[str]) -> None:
    """
    Rootless containerd pulls, runs, writes, measures and removes, and its collection leaves no subvolume.
    """
    name = registry.add(images.small("example.org/small:1"))
    emptied.ctr("images", "pull", "--plain-http", name)
    emptied.ctr("run", "--null-io", name, "work", "sh", "-ec", "cat /name; echo more > /name; chown 7:8 /name")
    (active,) = (key for key, info in daemon.snapshots().items() if info.kind is Kind.ACTIVE)
    with daemon.beside() as store:
        status = Path(store.subvolume(active), "name").stat()
    assert (status.st_uid, status.st_gid, status.st_size) == (7, 8, 5)
    assert "-t bind" in emptied.ctr("snapshots", "mounts", "/mnt", "work")
    assert int(emptied.ctr("snapshots", "usage", "-b", "work").split()[-2]) >= 4096
    for command in ["diff", active], ["du", active], ["tree"], ["df"], ["report"]:
        done = subprocess.run([*prefix, SNAPSHOTTER, *command, "--root", daemon.root], capture_output=True, text=True)
        assert done.returncode == 0, done
        assert "walked over" in done.stderr
    emptied.ctr("containers", "rm", "work")
    emptied.run(name, "again", "test $(cat /name) = example.org/small:1")
