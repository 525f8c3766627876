"""
Fixtures of all tests, a check for leaks after each test, and a summary of the skipped tests.
"""

import ctypes
import gc
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pybtrfs import syscall, testing

pytest_plugins = ["pybtrfs.pytest_plugin"]

# Timing decides no test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

NOBODY = 65534
CLONE_NEWNS = 0x20000
PATIENCE = 60  # seconds, because the kernel releases a loop device after it has answered


WHY_NO_BTRFS = testing.why_no_btrfs()


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not in tests/containerd/conftest.py, because pytest reads that file too late if all tests run.
    group = parser.getgroup("containerd")
    group.addoption("--containerd", metavar="LIST", default="debian", help="versions of containerd to test with")
    group.addoption("--buildkit", action="store_true", help="also test with BuildKit")
    parser.addoption("--may-skip", action="store_true", help="allow skips, for kernels and Pythons that lack a feature")


def pytest_configure(config: pytest.Config) -> None:
    # All temporary files go below one directory, so that the leak check can tell this process's mounts and loop
    # devices from those of other processes. It is not pytest's own, because unprivileged users cannot enter that.
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker:
        scope = os.path.join(tempfile.gettempdir(), worker)
        os.mkdir(scope)
        config.option.basetemp = os.path.join(scope, "tests")  # xdist's is too long for sockets
        if not WHY_NO_BTRFS:
            _leave_mounts()
    else:
        scope = tempfile.mkdtemp(prefix="btrfs-snapshotter-tests-")
    os.chmod(scope, 0o755)
    os.environ["TMPDIR"] = tempfile.tempdir = scope
    # Without a file that is named, commands would read the configuration of this machine.
    os.environ["SNAPSHOTTER_CONFIG"] = os.path.join(scope, "config.toml")
    Path(os.environ["SNAPSHOTTER_CONFIG"]).write_text("version = 1\n")


def _leave_mounts() -> None:
    """
    Unshare the mount namespace, because a namespace made by another worker's test would copy our mounts.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    syscall.mount("", "/", "", syscall.MS_REC | syscall.MS_PRIVATE)


def pytest_unconfigure(config: pytest.Config) -> None:
    scope = tempfile.gettempdir()
    for mount in _mounts_below(scope):
        syscall.umount2(mount)
    shutil.rmtree(scope)


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("btrfs")
    if WHY_NO_BTRFS and marker and marker.kwargs.get("needed", True):
        pytest.skip(WHY_NO_BTRFS)


def _fail_when_skipped(config: pytest.Config, report: Any) -> Any:
    may_skip = WHY_NO_BTRFS or config.getoption("may_skip")
    if report.skipped and not hasattr(report, "wasxfail") and not may_skip:
        report.outcome = "failed"
        report.longrepr = f"as root on a kernel with btrfs nothing is skipped: {report.longrepr[2]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    return _fail_when_skipped(item.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    return _fail_when_skipped(collector.config, (yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped).items():
        terminalreporter.write_line(f"did not run: {count} tests: {reason}")
    if skipped:
        terminalreporter.write_line("everything runs with `make test` as root on a kernel with btrfs")


def _mounts_below(scope: str) -> list[str]:
    """
    The mount points below *scope*, the latest first.
    """
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [point for point in (line.split()[4] for line in reversed(lines)) if point.startswith(scope)]


def _held() -> set[str]:
    """
    Return descriptions of the resources that a test can leak.
    """
    scope = tempfile.gettempdir()
    held = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    held.update(f"mount {point}" for point in _mounts_below(scope))
    for fd in os.listdir("/proc/self/fd"):
        try:
            held.add(f"fd {fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue  # the fd of the listing itself
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            path = backing.read_text(errors="surrogateescape").rstrip("\n")
        except OSError:
            continue  # detached since it was listed
        if path.startswith(scope):
            held.add(f"{backing.parts[3]} {path}")
    return held


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """
    Fail a test that leaves an fd, a thread, a mount or a loop device.
    """
    before = _held()
    yield
    deadline = time.monotonic() + PATIENCE
    while leaked := _held() - before:
        if sys.implementation.name == "pypy":
            gc.collect()  # closes files that CPython closes with the last reference
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(sorted(leaked))}")
        time.sleep(0.01)


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """
    Call a function in a child process, and return its result or raise its exception.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns that another thread may hold a lock, but the called functions take no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            try:
                outcome = (function(*args), None)
            except BaseException as error:
                outcome = (None, error)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(outcome, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    value, error = pickle.loads(answer)
    if error is not None:
        raise error
    return value


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)  # also drops every capability


@pytest.fixture
def unprivileged() -> Callable[..., Any]:
    """
    Return a caller of functions in a child process of an ordinary user; it returns or raises as the function does.
    """

    def call(function: Callable[..., Any], *args: Any) -> Any:
        become_nobody()
        return function(*args)

    return partial(in_child, call)
