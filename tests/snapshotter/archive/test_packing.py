import itertools
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.snapshotter.archive.trees import described, make, pack, unpack

pytestmark = pytest.mark.btrfs

_numbers = itertools.count()

NAME = st.binary(min_size=1, max_size=6).filter(lambda name: not {*name} & {*b"\0/"} and name not in (b".", b".."))
KIND = st.sampled_from(["file", "directory", "symlink", "fifo", "device", "link", "sparse"])
TIME = st.integers(-(10**18), 4 * 10**18) | st.integers(0, 10**10).map(lambda second: second * 10**9)
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b=c", "user.ü%", "trusted.t", "security.capabilit"]), st.binary(max_size=8)
)
FILES = st.lists(
    st.tuples(
        st.lists(NAME, min_size=1, max_size=3),
        KIND,
        st.binary(max_size=2000),
        st.integers(0, 0o7777),
        st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 70000)),
        TIME,
        XATTRS,
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=FILES)
@example(files=[([b"\xff\n"], "file", b"x", 0o6755, (2**32 - 2, 1), -1, {"user.b=c": b"\xff\0=\n"})])
@example(files=[([b"a"], "sparse", b"", 0o600, (0, 0), 1, {}), ([b"b"], "link", b"", 0o600, (0, 0), 1, {})])
@example(files=[([b"long" * 50] * 3, "symlink", b"y" * 300, 0, (0, 0), 1, {"trusted.t": b"\xc3"})])
def test_round_trip(btrfs: Path, files: list[Any]) -> None:
    """
    A packed tree is unpacked with its owners, modes, times to the nanosecond, attributes, links, devices, holes, and
    names of any bytes.
    """
    source, target = btrfs / f"s{next(_numbers)}", btrfs / f"t{next(_numbers)}"
    source.mkdir()
    try:
        make(source, files)
        data = pack(source)
        unpack(data, target)
        assert described(target) == described(source)
        assert pack(target) == data
    finally:
        for path in (source, target):
            shutil.rmtree(os.fsencode(path), ignore_errors=True)


def test_holes(tree: Path, btrfs: Path) -> None:
    """
    Holes take no space in the tar, nor in the unpacked file.
    """
    (tree / "hole").touch()
    os.truncate(tree / "hole", 1 << 40)
    data = pack(tree)
    assert len(data) < 100_000
    target = unpack(data, btrfs / "target")
    assert (target / "hole").stat().st_size == 1 << 40
    assert (target / "hole").stat().st_blocks == 0
    os.sync()
    assert (target / "sparse").stat().st_blocks <= (tree / "sparse").stat().st_blocks


def test_sockets(btrfs: Path) -> None:
    """
    Sockets are left out.
    """
    (btrfs / "s").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(btrfs / "s", os.O_PATH)
        sock.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    assert list(described(unpack(pack(btrfs / "s"), btrfs / "t"))) == ["."]


def test_gnu_tar_reads(tree: Path, btrfs: Path) -> None:
    """
    GNU tar unpacks the same tree.
    """
    (btrfs / "target").mkdir()
    command = [
        "tar",
        "--extract",
        "--warning=no-unknown-keyword",
        "--xattrs",
        "--xattrs-include=*",
        "--same-owner",
        "--same-permissions",
    ]
    subprocess.run([*command, "--numeric-owner", "-C", btrfs / "target"], input=pack(tree), check=True)
    assert described(btrfs / "target") == described(tree)
