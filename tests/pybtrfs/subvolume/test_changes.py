"""
Changes between two subvolumes, compared with a walk over both.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybtrfs import filesystem, subvolume
from pybtrfs.subvolume import Change

pytestmark = pytest.mark.btrfs

NAMES = ["a", "b", "c"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(lambda names: os.path.join(*names))
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "mkdir", "rename", "remove", "link", "chmod"]), PATHS, PATHS),
    min_size=2,
    max_size=12,
)
# Without files to begin with, most random steps would be impossible.
FILLED = [
    *(("mkdir", path, "") for path in ("a", "a/a", "b", "b/b")),
    *(("write", path, "") for path in ("a/a/a", "a/b", "b/a", "b/b/c", "c")),
]


def apply(root: Path, steps: list[tuple[str, str, str]]) -> None:
    """
    Run the steps below *root*; steps that are impossible there change nothing.
    """
    for word, first, second in steps:
        path, other = root / first, root / second
        try:
            match word:
                case "write":
                    with open(path, "ab") as file:
                        file.write(b"content")
                case "mkdir":
                    path.mkdir()
                case "rename":
                    path.rename(other)
                case "remove":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                case "link":
                    other.hardlink_to(path)
                case "chmod":
                    path.chmod(path.stat().st_mode ^ 0o020)
        except OSError as error:
            assert error.errno != errno.EIO


def walked(root: Path) -> dict[str, tuple[Any, ...]]:
    """
    Return the number, mode, links and content of each file below *root* by its path.
    """
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        file = path.is_file()
        content = path.read_bytes() if file else b""
        found[str(path.relative_to(root))] = (status.st_ino, status.st_mode, status.st_nlink if file else 0, content)
    return found


def replay(before: dict[str, tuple[Any, ...]], changes: list[Change], after: dict[str, tuple[Any, ...]]) -> set[str]:
    """
    Return the paths after *changes*, and check that a path with other contents is among them.
    """
    renamed = {change.source: change.path for change in changes if change.change == "renamed"}
    gone = {change.path for change in changes if change.change == "deleted"}
    shown = {change.path for change in changes if change.change != "deleted"}
    paths = {change.path for change in changes if change.change == "added"}
    for path, value in before.items():
        if path in gone:
            continue
        parts, moved = path.split("/"), path
        for length in range(len(parts), 0, -1):  # the innermost renamed directory has the final path
            prefix = "/".join(parts[:length])
            if prefix in renamed:
                moved = "/".join([renamed[prefix], *parts[length:]])
                break
        paths.add(moved)
        assert moved in shown or after[moved] == value
    return paths


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, STEPS)
def test_random_trees(btrfs: Path, first: list[tuple[str, str, str]], second: list[tuple[str, str, str]]) -> None:
    """
    The changes lead from the one tree to the other, and name every file that differs.
    """
    top = Path(tempfile.mkdtemp(dir=btrfs))
    subvolume.create(top / "work")
    apply(top / "work", FILLED + first)
    subvolume.snapshot(top / "work", top / "old", read_only=True)
    apply(top / "work", second)
    subvolume.snapshot(top / "work", top / "new", read_only=True)
    before, after = walked(top / "old"), walked(top / "new")
    changes = list(subvolume.changes(top / "new", top / "old"))
    assert len({(change.change, change.path) for change in changes}) == len(changes)
    assert replay(before, changes, after) == set(after)
    for name in ("work", "old", "new"):
        subvolume.delete(top / name)


def test_changes(base: Path) -> None:
    """
    Each kind of change has its paths and sizes.
    """
    for name in ("kept", "modified", "renamed", "deleted"):
        (base / name).write_bytes(b"1234")
    subvolume.snapshot(base, base.parent / "old", read_only=True)
    (base / "added").write_bytes(b"12")
    (base / "modified").write_bytes(b"123")
    (base / "renamed").rename(base / "\udcff")
    (base / "deleted").unlink()
    filesystem.sync(base)
    assert sorted(subvolume.changes(base, base.parent / "old"), key=lambda change: change.path) == [
        Change("added", "added", "file", 2, None),
        Change("deleted", "deleted", "file", None, 4),
        Change("modified", "modified", "file", 3, 4),
        Change("\udcff", "renamed", "file", 4, 4, "renamed"),
    ]


def _refused(path: Path) -> int | None:
    try:
        list(subvolume.changes(path, path))
    except PermissionError as error:
        return error.errno
    return None


def test_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user is refused.
    """
    assert unprivileged(_refused, base) == errno.EPERM
