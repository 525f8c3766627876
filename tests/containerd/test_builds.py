"""
The cache of Go binaries: each is built once, completely, and again after a change.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.containerd import builds

PROGRAM = """package main

func main() { print("%s") }
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    Return a Go program, and empty the cache.
    """
    # Keep the cache of the compiled standard library, whose place follows XDG_CACHE_HOME as well.
    monkeypatch.setenv("GOCACHE", os.fsdecode(builds._go("env", "GOCACHE").strip()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "program"
    directory.mkdir()
    (directory / "go.mod").write_text("module program\n\ngo 1.21\n")
    (directory / "main.go").write_text(PROGRAM % "first")
    return directory


def says(binary: Path) -> str:
    return subprocess.run([binary], check=True, stderr=subprocess.PIPE, text=True).stderr


def test_built_once(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A program is built on first use, and again after a change.
    """
    binary = builds.go_program(program)
    assert says(binary) == "first"
    assert "building program" in capsys.readouterr().out
    assert builds.go_program(program) == binary
    assert capsys.readouterr().out == ""
    (program / "main.go").write_text(PROGRAM % "second")
    assert says(builds.go_program(program)) == "second"
    assert says(binary) == "first"


def test_two_builders(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    If several builders run concurrently, one builds and the others wait.
    """
    built: list[Path] = []
    builders = [threading.Thread(target=lambda: built.append(builds.go_program(program))) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(built) == 4
    assert len(set(built)) == 1
    assert capsys.readouterr().out.count("building program") == 1


def test_interrupted_build(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The files of a killed build are not used, and do not disturb the next build.
    """

    def killed(*arguments: str) -> bytes:
        if arguments[0] == "version":
            return go(*arguments)
        Path(arguments[arguments.index("-o") + 1]).write_bytes(b"half")
        raise KeyboardInterrupt

    go = builds._go
    with monkeypatch.context() as patch:
        patch.setattr(builds, "_go", killed)
        with pytest.raises(KeyboardInterrupt):
            builds.go_program(program)
    assert says(builds.go_program(program)) == "first"


def test_failed_build(program: Path) -> None:
    """
    A program that does not compile is refused with the compiler's message.
    """
    (program / "main.go").write_text("package main\n\nfunc main() { nothing() }\n")
    with pytest.raises(builds.UnavailableError, match="undefined: nothing"):
        builds.go_program(program)


def test_no_go(program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    A missing Go or containerd is an error with a message of one line.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(builds.UnavailableError, match="Go is neither in PATH nor beside this Python"):
        builds.go_program(program)
    with pytest.raises(builds.UnavailableError, match="apt-get install containerd"):
        builds.binaries(builds.DEBIAN)


def test_unknown_name() -> None:
    """
    The command refuses an unknown name, and lists the known names.
    """
    with pytest.raises(SystemExit, match=r"no 1\.5; there are debian, 1\.7, 2\.1, latest, runc, buildkit"):
        builds.main(["debian", "1.5"])
