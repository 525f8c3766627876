"""
The fixtures that others' tests get with the distribution.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs/testing.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

MORE = """
@pytest.mark.parametrize("turn", [1, 2])
def test_an_empty_directory(directory, turn):
    assert list(directory.iterdir()) == []
    subvolume.create(directory / "work")
    subvolume.create(directory / "work/nested")

def test_a_filesystem_of_its_own(btrfs_mount):
    assert subvolume.get_id(btrfs_mount()) == subvolume.get_id(btrfs_mount(128 << 20)) == 5
"""


def run(pytester: pytest.Pytester, *launcher: str) -> tuple[str, list[str]]:
    pytester.makepyfile(EXAMPLES[-1] + MORE)
    argv = [*launcher, sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--basetemp", "base"]
    ran = subprocess.run(argv, capture_output=True, text=True)
    return ran.stdout, ran.stdout.splitlines()[-1].split()


def test_example(tmp_path: Path) -> None:
    """
    The fake is as docs/testing.md shows it.
    """
    exec(EXAMPLES[0], {"root": tmp_path})


@pytest.mark.btrfs
def test_fixtures(pytester: pytest.Pytester) -> None:
    """
    docs/testing.md's test runs on btrfs and on the fake; each finds its directory empty, and no filesystem is left.
    """
    output, summary = run(pytester)
    assert summary[1:3] == ["7", "passed"], output
    assert str(pytester.path) not in Path("/proc/self/mountinfo").read_text()


def test_fixtures_without_root(pytester: pytest.Pytester) -> None:
    """
    Without root the fake works, and what needs a real btrfs is skipped with the reason.
    """
    pytester.path.chmod(0o755)
    output, summary = run(pytester, *([] if os.geteuid() else ["unshare", "--user"]))
    assert summary[1:5] == ["3", "passed,", "4", "skipped"], output
    assert "needs root" in output


def test_start() -> None:
    """
    A run of pytest that uses none of it waits for none of it.
    """
    ask = "import sys, pytest; old = set(sys.modules); import pybtrfs.pytest_plugin; print(*set(sys.modules) - old)"
    loaded = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in loaded if not name.startswith(("_", "pybtrfs._"))} == {"pybtrfs", "pybtrfs.pytest_plugin"}
