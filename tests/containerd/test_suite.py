"""
The tests of containerd's own Go packages for snapshotters, through its client for proxy plugins.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pybtrfs import image, syscall

from .builds import go_program
from .needed import needed

SOURCE = Path(__file__).parent / "suite"

# The tests of the suite at the version in suite/go.mod, in its spelling. A newer suite may have more.
CASES = [
    "Basic",
    "StatActive",
    "StatComitted",
    "TransitivityTest",
    "PreareViewFailingtest",
    "Update",
    "Remove",
    "Walk",
    "LayerFileupdate",
    "RemoveDirectoryInLowerLayer",
    "Chown",
    "DirectoryPermissionOnCommit",
    "RemoveIntermediateSnapshot",
    "DeletedFilesInChildSnapshot",
    "MoveFileFromLowerLayer",
    "ViewReadonly",
    "StatInWalk",
    "CloseTwice",
    "RootPermission",
    "Rename",
    "128LayersMount",
]

SERVE = (os.path.join(os.path.dirname(sys.executable), "snapshotter"), "serve", "--log-level", "warning")

WRONG = """
import sys
from snapshotter import cli, contract

contract.Snapshotter.view = contract.Snapshotter.prepare
sys.exit(cli.main())
"""

RAISING = """
import sys
from snapshotter import cli, errors
from snapshotter.contract.opening import Opened

def encoded(self, encode, key):
    kinds = {"ZeroDivisionError": ZeroDivisionError, **vars(errors)}
    raise kinds.get(key, errors.NotFoundError)("100 %25 of thé text")

Opened.encoded = encoded
sys.exit(cli.main())
"""


@pytest.fixture(scope="session")
def suite() -> Path:
    """
    Return the Go program.
    """
    return needed(go_program, SOURCE)


@pytest.fixture
def large_nodes(tmp_path: Path) -> Iterator[Path]:
    """
    Mount a btrfs with nodes of 64 KiB, the largest size, because the limit of a record grows with the node.
    """
    mkfs = shutil.which("mkfs.btrfs", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin")))
    if mkfs is None:
        pytest.skip("mkfs.btrfs, of btrfs-progs, is missing")
    path, target = tmp_path / "image", tmp_path / "mount"
    target.mkdir()
    with path.open("wb") as file:
        file.truncate(4 << 30)
    subprocess.run([mkfs, "-q", "-n", "65536", path], check=True)
    with image.mount(path, target):
        yield target


def run(program: Path, pattern: str, directory: Path, command: Sequence[str] = SERVE) -> dict[str, str]:
    """
    Run the cases that match *pattern*, with stores in *directory*, and return the result of each.
    """
    with subprocess.Popen(
        [program, "-test.v", "-test.timeout=10m", f"-test.run=^{pattern}$", *command],
        env={**os.environ, "TMPDIR": str(directory)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # including daemons that it did not stop
            _unmount_below(directory)
    print(said)
    return {name: result for result, name in re.findall(r"^ *--- (\w+): (\S+)", said, re.MULTILINE)}


def _unmount_below(directory: Path) -> None:
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    for point in reversed([line.split()[4] for line in lines]):
        if point.startswith(f"{directory}/"):
            syscall.umount2(point, syscall.MNT_DETACH)


@pytest.mark.btrfs
@pytest.mark.parametrize("mount_mode", ["btrfs", "bind"])
def test_containerd(suite: Path, btrfs: Path, mount_mode: str) -> None:
    """
    Every case of containerd's own suite for snapshotters passes, and each has a daemon that exits with 0.
    """
    results = run(suite, "Containerd", btrfs, (*SERVE, "--mount-mode", mount_mode))
    assert results == dict.fromkeys(["Containerd", *(f"Containerd/{case}" for case in CASES)], "PASS")


@pytest.mark.btrfs
def test_wrong_daemon(suite: Path, btrfs: Path) -> None:
    """
    A daemon with writable views fails the case that checks them.
    """
    results = run(suite, "Containerd/(ViewReadonly|Remove)", btrfs, (sys.executable, "-c", WRONG, "serve"))
    assert results == {"Containerd": "FAIL", "Containerd/ViewReadonly": "FAIL", "Containerd/Remove": "PASS"}


@pytest.mark.btrfs
def test_kinds_of_errors(suite: Path, btrfs: Path) -> None:
    """
    containerd's client reads each class of error as its kind with its text, and any other exception as internal.
    """
    assert run(suite, "Kinds", btrfs, (sys.executable, "-c", RAISING, "serve")) == {"Kinds": "PASS"}


@pytest.mark.btrfs
@pytest.mark.parametrize("name", ["Errors", "Update", "Filters"])
def test_as_containerds_own(suite: Path, btrfs: Path, name: str) -> None:
    """
    Kinds of errors, updates by field paths and matches of filters are as in containerd's native snapshotter.

    The Go program names the exceptions. A failed call changes nothing.
    """
    assert run(suite, name, btrfs) == {name: "PASS"}


@pytest.mark.btrfs
def test_walk(suite: Path, large_nodes: Path) -> None:
    """
    Thousands of snapshots, some with 28 KiB of labels, are listed in messages that the client accepts.

    A walk that is not read, or is cancelled, does not block other calls.
    """
    assert run(suite, "Walk", large_nodes) == {"Walk": "PASS"}


@pytest.mark.btrfs
def test_calls_in_flight(suite: Path, btrfs: Path) -> None:
    """
    Hundreds of concurrent calls on a connection are answered correctly.
    """
    assert run(suite, "InFlight", btrfs) == {"InFlight": "PASS"}


@pytest.mark.btrfs
def test_two_databases(suite: Path, btrfs: Path) -> None:
    """
    A second containerd with another name cannot change a store, and its garbage collection deletes nothing.
    """
    assert run(suite, "OtherName", btrfs) == {"OtherName": "PASS"}


@pytest.mark.btrfs
def test_two_databases_of_one_name(suite: Path, btrfs: Path) -> None:
    """
    A second containerd with the same name is not detected, and its garbage collection would delete everything.
    """
    assert run(suite, "SameName", btrfs) == {"SameName": "PASS"}


@pytest.mark.btrfs
def test_forgotten_snapshots(suite: Path, btrfs: Path) -> None:
    """
    Garbage collection removes exactly the snapshots that are not in containerd's database.
    """
    assert run(suite, "Forgotten", btrfs) == {"Forgotten": "PASS"}


@pytest.mark.btrfs
def test_cancelled_calls(suite: Path, btrfs: Path) -> None:
    """
    A cancelled call leaves no lock, and at most a snapshot that garbage collection removes.
    """
    assert run(suite, "Cancelled", btrfs) == {"Cancelled": "PASS"}
