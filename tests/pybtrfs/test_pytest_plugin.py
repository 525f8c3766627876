"""
Fixtures for the tests of users.
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
    pytester.makeconftest('pytest_plugins = ["pybtrfs.pytest_plugin"]')
    pytester.makepyfile(EXAMPLES[-1] + MORE)
    argv = [*launcher, sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--basetemp", "base"]
    ran = subprocess.run(argv, capture_output=True, text=True)
    return ran.stdout, ran.stdout.splitlines()[-1].split()


def test_example(tmp_path: Path) -> None:
    """
    The example of the fake in docs/testing.md works.
    """
    exec(EXAMPLES[0], {"root": tmp_path})


@pytest.mark.btrfs
def test_fixtures(pytester: pytest.Pytester) -> None:
    """
    The test in docs/testing.md runs on btrfs and on the fake, each with an empty directory, and leaves no mount.
    """
    output, summary = run(pytester)
    assert summary[1:3] == ["7", "passed"], output
    assert str(pytester.path) not in Path("/proc/self/mountinfo").read_text()


def test_fixtures_without_root(pytester: pytest.Pytester) -> None:
    """
    Without root the fake works, and tests that need btrfs are skipped with the reason.
    """
    pytester.path.chmod(0o755)
    output, summary = run(pytester, *([] if os.geteuid() else ["unshare", "--user"]))
    assert summary[1:5] == ["3", "passed,", "4", "skipped"], output
    assert "needs root" in output


def test_nothing_changes(pytester: pytest.Pytester) -> None:
    """
    A run that does not take the plugin imports nothing of the distribution, rewrites none of its modules, and has none
    of its fixtures.
    """
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            assert not [name for name in sys.modules if name.startswith(("pybtrfs", "snapshotter"))]
            import pybtrfs
            assert type(pybtrfs.__loader__).__module__ != "_pytest.assertion.rewrite"

        def test_fixtures(request):
            for name in "btrfs", "btrfs_image", "btrfs_mount", "fake_btrfs":
                assert not request._fixturemanager.getfixturedefs(name, request.node)
        """
    )
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", "base"]
    ran = subprocess.run(argv, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
