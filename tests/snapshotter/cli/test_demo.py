import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snapshotter import cli
from snapshotter.cli.commands import demo

pytestmark = pytest.mark.btrfs

DEMO = [sys.executable, "-m", "snapshotter", "demo"]


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """
    The demo's own directory for temporary files, of which none is left; the leak check looks for mounts and loop
    devices.
    """
    with tempfile.TemporaryDirectory() as path:
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr(tempfile, "tempdir", path)
        yield path
        assert os.listdir(path) == []


def test_demo() -> None:
    """
    The demo runs through, and says what it verified.
    """
    ran = subprocess.run(DEMO, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("  verified: ") == 11
    assert "prepare 100 containers at once" in ran.stdout
    assert "      └─ view           View" in ran.stdout


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("", signal.SIGINT),
        ("create a store", signal.SIGINT),
        ("commit it", signal.SIGINT),
        ("prepare 100", signal.SIGINT),
        ("fork", signal.SIGINT),
        ("create a store", signal.SIGTERM),
        ("remove 9", signal.SIGTERM),
    ],
)
def test_interrupted(moment: str, number: int, temporary: str) -> None:
    """
    Interrupted behind the line *moment*, or while it makes its btrfs, the demo ends with 130 and leaves nothing.
    """
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        if moment:
            assert any(line.startswith(moment) for line in process.stdout)
        else:
            while not os.listdir(temporary):
                assert process.poll() is None
        process.send_signal(number)
        process.send_signal(number)  # impatient
        _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "snapshotter: interrupted\n")


def test_closed_pipe() -> None:
    """
    When nobody reads on, the demo ends, and leaves nothing.
    """
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (1, "")


def test_verification_can_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A snapshot that does not show what it should ends the demo, which names the file.
    """
    describe = demo._described

    def flip(path: str | os.PathLike[str]) -> str:
        described = describe(path)
        return described.replace("file", "broken") if "snapshotter-demo-" in str(os.fspath(path)) else described

    monkeypatch.setattr(demo, "_described", flip)
    assert cli.main(["demo"]) == 1
    assert "verification failed: it equals its source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENODEV, "modprobe btrfs"),
        (errno.ENOENT, "modprobe loop"),
        (errno.EPERM, "CAP_SYS_ADMIN"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_unavailable(
    number: int, cure: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Without btrfs, loop devices or privilege one line says so.
    """

    def refuse(size: int) -> None:
        raise OSError(number, os.strerror(number), "/dev/loop-control")

    monkeypatch.setattr(demo.image, "temporary", refuse)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert cure in error
    assert error.count("\n") == 1


def test_unprivileged(unprivileged: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    """
    Without root one line says so.
    """
    assert unprivileged(cli.main, ["demo"]) == 1
    assert capfd.readouterr() == ("", "snapshotter: the demo mounts a btrfs of its own: run it as root\n")
