"""
The compiled modules under AddressSanitizer and UndefinedBehaviorSanitizer.

`make test-sanitized` runs all tests of pybtrfs and of the transport with them.
"""

import subprocess
import sys

import pytest

from tests import sanitized

REPLAY = """
import ctypes, gc
from pybtrfs._btrfs import ffi
from tests.fuzz.targets import TARGETS, corpus

allocated = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
allocated.restype = ctypes.c_size_t
names = "keep_changed", "sum_items", "read_subvolumes", "read_info", "arguments", "http2"
inputs = [(TARGETS[name], list(corpus(name))) for name in names]
used = (ctypes.c_size_t * 8)()
for turn in range(8):
    for target, data in inputs:
        for each in data:
            target(each)
    if turn >= 6:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(ffi.new("char[]", 50)))
    gc.collect()
    used[turn] = allocated()
print(*used)
"""

BEYOND = """
from pybtrfs._btrfs import ffi, lib

last, sizes = ffi.new("struct pybtrfs_ioctl_search_header *"), ffi.new("uint32_t[2]")
lib.pybtrfs_keep_changed(ffi.new("char[]", 40), 80, 2, 0, last, sizes)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """
    Build the module with sanitizers, and return its environment.
    """
    return sanitized.build(tmp_path_factory.mktemp("sanitized"))


def run(environment: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=sanitized.ROOT)


def test_what_fuzzing_found(environment: dict[str, str]) -> None:
    """
    The sanitizers find nothing in it, and memory in use is the same after each round; two lost buffers are seen.
    """
    ran = run(environment, REPLAY)
    assert ran.stderr == ""
    used = ran.stdout.split()
    assert len(set(used[3:6])) == 1, used
    assert len(set(used[5:])) == 3, used


def test_a_read_beyond_a_buffer(environment: dict[str, str]) -> None:
    """
    Such a read, which Python does not see, ends the process with a report.
    """
    assert "heap-buffer-overflow" in run(environment, BEYOND).stderr
