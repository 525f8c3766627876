"""
Threads, forks and sub-interpreters.
"""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybtrfs import filesystem, subvolume
from tests.conftest import in_child
from tests.pybtrfs.subvolume.common import below, make

IN_A_SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters  # from 3.13
except ImportError:
    import _xxsubinterpreters as interpreters
    one = interpreters.create(isolated=sys.argv[1] == "isolated")
else:
    one = interpreters.create(sys.argv[1])
failure = interpreters.run_string(one, '''
from pybtrfs import subvolume
assert subvolume.is_subvolume(%r)
''' % sys.argv[2])
interpreters.destroy(one)
sys.exit(failure and failure.formatted)
"""


@pytest.mark.btrfs
def test_threads(base: Path) -> None:
    """
    Threads share a file descriptor, and each call has its own result, error and file name.
    """
    make(base, "there")

    def ask(number: int) -> None:
        with pytest.raises(FileExistsError) as exists:
            subvolume.create((held, "there"))
        with pytest.raises(FileNotFoundError) as missing:
            subvolume.delete((held, f"missing {number}"))
        assert (exists.value.filename, missing.value.filename) == ("there", f"missing {number}")
        subvolume.create((held, f"{number}"))
        assert subvolume.get_info(base / f"{number}").name == f"{number}"

    with subvolume.Subvolume(base) as held, ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(100)))
        assert len(below(base)) == 101


@pytest.mark.btrfs
def test_fork(base: Path) -> None:
    """
    After a fork(2), the child uses and closes the parent's open files, even if other threads are in a call.
    """

    def work() -> None:
        while not ended.is_set():
            filesystem.sync(held)

    def use() -> list[str]:
        subvolume.create((held, "of the child"))
        found = below(base)
        held.close()
        return found

    ended = threading.Event()
    with subvolume.Subvolume(base) as held, ThreadPoolExecutor(2) as pool:
        working = [pool.submit(work) for _ in range(2)]
        try:
            for _ in range(5):
                assert in_child(use) == ["of the child"]
                subvolume.delete((held, "of the child"))
        finally:
            ended.set()
        for one in working:
            one.result()


@pytest.mark.btrfs
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy has no sub-interpreters")
@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_subinterpreter(kind: str, base: Path) -> None:
    """
    A sub-interpreter that shares the GIL can import pybtrfs. A sub-interpreter with its own GIL (Python 3.12) gets an
    ImportError.
    """
    command = [sys.executable, "-c", IN_A_SUBINTERPRETER, kind, str(base)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if kind == "legacy" or sys.version_info < (3, 12):
        assert (ran.returncode, ran.stderr) == (0, "")
    else:
        assert "ImportError" in ran.stderr
        assert "does not support loading in subinterpreters" in ran.stderr
