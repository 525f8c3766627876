"""
Checks and summaries of conftest.py.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.containerd import conftest as containerd

CONFTEST = Path(__file__).with_name("conftest.py").read_text()

LEAKS = """
import os, tempfile, threading
from pathlib import Path
from pybtrfs import image

KEPT = []

def make():  # not in tmp_path, because pytester keeps it outside the inner run's directory
    path = Path(tempfile.mkdtemp(), "image")
    image.create(path, 128 << 20, sparse=True)
    return path

def test_fd():
    os.open("/", os.O_RDONLY)

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()

def test_mount():
    image.mount(make(), tempfile.mkdtemp())

def test_loop_device():
    KEPT.append(image.attach(make()))

def test_nothing(btrfs):
    with open(btrfs / "file", "w") as file:
        file.write("text")
"""

SKIPS = """
import pytest

@pytest.mark.btrfs
def test_marked():
    pass

def test_fixture(btrfs):
    pass

def test_tool():
    pytest.skip("needs a tool")
"""


def run(pytester: pytest.Pytester, tests: str, override: str) -> pytest.RunResult:
    pytester.makeconftest(f"{CONFTEST}\n{override}\n")
    pytester.makepyfile(tests)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--strict-markers", "-o", "markers=btrfs")


@pytest.mark.btrfs
def test_leaks_are_found(pytester: pytest.Pytester) -> None:
    """
    A test that leaves an fd, a thread, a mount or a loop device fails; a test without leaks passes.
    """
    result = run(pytester, LEAKS, "PATIENCE = 0.2")
    result.assert_outcomes(passed=5, errors=4)
    result.stdout.fnmatch_lines_random(
        ["*left behind: fd * /", "*left behind: thread *", "*left behind: loop*, mount *", "*left behind: fd *, loop*"]
    )


@pytest.mark.btrfs
def test_skips_fail(pytester: pytest.Pytester) -> None:
    """
    As root on a kernel with btrfs a skip is a failure that names the missing tool.
    """
    result = run(pytester, SKIPS, "")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*nothing is skipped: Skipped: needs a tool*"])


def test_skips_are_told(pytester: pytest.Pytester) -> None:
    """
    Elsewhere the end of the run counts the skipped tests by reason, and names the command that runs them.
    """
    result = run(pytester, SKIPS, 'WHY_NO_BTRFS = "needs root"\ntesting.why_no_btrfs = lambda: WHY_NO_BTRFS')
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(
        [
            "did not run: 2 tests: needs root",
            "did not run: 1 tests: needs a tool",
            "everything runs with `make test` as root on a kernel with btrfs",
        ]
    )


def test_a_failed_collection_is_summarised(pytestconfig: pytest.Config) -> None:
    """
    The table of containerd's releases leaves out a module that cannot be collected.
    """
    failed = pytest.CollectReport("tests/containerd/test_ctr.py", "failed", "SyntaxError", [])
    terminal = SimpleNamespace(stats={"error": [failed]})
    containerd.pytest_terminal_summary(terminal, pytestconfig)
