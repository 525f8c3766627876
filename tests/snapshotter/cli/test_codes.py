"""
The exit codes of docs/cli.md, of every command.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from snapshotter import Snapshotter, cli
from tests.snapshotter.serving import serving

pytestmark = pytest.mark.btrfs

# An argv of each command on the store `filled`.
ARGV = {
    "ls": [],
    "tree": [],
    "info": ["web"],
    "usage": ["web"],
    "diff": ["base", "web"],
    "why": ["base"],
    "report": [],
    "prepare": ["new"],
    "view": ["new", "base"],
    "fork": ["web", "new"],
    "commit": ["new", "web"],
    "label": ["web"],
    "mount": ["web", "target"],
    "umount": ["target"],
    "mounts": ["web"],
    "export": ["web", "-"],
    "import": ["new", "archive"],
    "df": [],
    "frees": ["web"],
    "du": ["web"],
    "rm": ["web"],
    "cleanup": [],
    "doctor": [],
    "purge": [],
    "serve": [],
    "config": ["default"],
    "ping": [],
    "events": ["--log", "log"],
    "init": [],
    "setup": ["containerd"],
    "demo": [],
}

# Commands that print nothing when they succeed, and two that run for long.
SILENT = {"commit", "mount", "umount", "import", "rm", "cleanup", "ping", "init"}
LONG = {"serve", "demo"}

# Commands that need no store, or make it.
STORELESS = {"serve", "config", "ping", "events", "init", "setup", "demo"}

# Commands that take the lock.
CHANGING = {"prepare", "view", "fork", "commit", "import", "rm", "cleanup"}


@pytest.fixture
def place(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    The working directory, with the files of `ARGV`.
    """
    (tmp_path / "target").mkdir()
    (tmp_path / "log").write_text(
        '{"time": "2026-01-01T00:00:00Z", "level": "info", "event": "removed", "key": "web"}\n'
    )
    assert cli.main(["label", "web", "owner=me"]) == 0
    assert cli.main(["export", "web", str(tmp_path / "archive")]) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whether Python writes at the end, or at once.
    """
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


def run(argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "snapshotter", *argv], stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]  # options of any kind


def test_table() -> None:
    """
    The table has every command.
    """
    assert list(ARGV) == list(cli.COMMANDS)


@pytest.mark.parametrize("command", ARGV)
def test_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A wrong flag is 2.
    """
    assert cli.main([command, *ARGV[command], "--no-such-flag"]) == 2


@pytest.mark.parametrize("command", sorted(ARGV.keys() - STORELESS))
def test_no_store(place: Path, command: str) -> None:
    """
    A missing store is 4.
    """
    assert cli.main(["--root", str(place / "none"), command, *ARGV[command]]) == 4


@pytest.mark.parametrize(
    ("command", "argv"),
    [(command, argv) for command, argv in ARGV.items() if "web" in argv or "base" in argv],
)
def test_no_snapshot(place: Path, command: str, argv: list[str]) -> None:
    """
    A missing snapshot is 4.
    """
    missing = ["none" if text in ("web", "base") else text for text in argv]
    assert cli.main([command, *missing]) == 4


@pytest.mark.parametrize("command", sorted(CHANGING))
def test_held(place: Path, filled: str, command: str) -> None:
    """
    A store that another process holds without serving it is 3.
    """
    with Snapshotter(filled):
        assert run([command, *ARGV[command]]).returncode == 3


@pytest.mark.parametrize("command", ["usage", "mounts", "export", "du", "diff"])
def test_lost(place: Path, filled: str, command: str) -> None:
    """
    Lost data is 5, and doctor returns 5 for it.
    """
    with Snapshotter(filled, read_only=True) as store:
        path = store.subvolume("web")
    subprocess.run(["btrfs", "subvolume", "delete", path], check=True, stdout=subprocess.DEVNULL)
    assert cli.main([command, *ARGV[command]]) == 5
    assert cli.main(["doctor"]) == 5


@pytest.mark.parametrize("command", sorted(ARGV.keys() - LONG - {"umount", "ping", "init", "doctor"}))
def test_done(place: Path, command: str) -> None:
    """
    A success is 0.
    """
    ran = run([command, *ARGV[command]], stdout=subprocess.PIPE)
    if command == "mount":
        subprocess.run(["umount", place / "target"], check=True)
    assert (ran.returncode, bool(ran.stdout)) == (0, command not in SILENT)


@pytest.mark.parametrize("command", sorted(ARGV.keys() - LONG - SILENT))
def test_full(place: Path, command: str, buffering: None) -> None:
    """
    Output that a full disk refuses is 1, with a message.
    """
    with open("/dev/full", "w") as full:
        ran = run([command, *ARGV[command]], stdout=full)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, "snapshotter: No space left on device")


@pytest.mark.parametrize("command", sorted(ARGV.keys() - LONG - SILENT))
def test_closed_pipe(place: Path, command: str) -> None:
    """
    A pipe without a reader is 1, without a message.
    """
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        ran = run([command, *ARGV[command]], stdout=pipe)
    assert (ran.returncode, "snapshotter: " in ran.stderr) == (1, False)


@pytest.mark.parametrize("command", sorted(ARGV.keys() - LONG - SILENT))
def test_closed_output(place: Path, command: str) -> None:
    """
    A closed standard output is 1, with a message.
    """
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "snapshotter", command, *ARGV[command]]
    ran = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, "snapshotter: Bad file descriptor")


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["ls", "--help"]], ids=" ".join)
def test_full_help(argv: list[str], buffering: None) -> None:
    """
    The help that cannot be written is no success.
    """
    with open("/dev/full", "w") as full:
        assert run(argv, stdout=full).returncode == 1


def test_ping(place: Path, filled: str) -> None:
    """
    The command ping returns 0 if a daemon serves the store, else 1.
    """
    with serving() as server, Snapshotter(filled, socket=server.address) as store:
        server.open(store)
        assert cli.main(["ping", "--address", server.address]) == 0
    assert cli.main(["ping", "--address", str(place / "none")]) == 1


def test_children_are_named(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The error of a removal names the children, three at most.
    """
    error = "snapshotter: cannot remove snapshot 'base' with child "
    assert cli.main(["rm", "base"]) == 1
    assert capsys.readouterr().err == f"{error}'v', 'web': remove the children first\n"
    with Snapshotter(filled) as store:
        for number in range(3):
            store.view(f"a{number}", "base")
    assert cli.main(["rm", "base"]) == 1
    assert capsys.readouterr().err == f"{error}'a0', 'a1', 'a2' and 2 more: remove the children first\n"


def test_layer_is_not_mounted(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The error of the mounts of a layer says how to look into it.
    """
    assert cli.main(["mounts", "base"]) == 1
    assert "not active or view: to look into a layer, mount a view of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pip", "managed", "command"),
    [
        (True, False, f"{sys.executable} -m pip install 'btrfs-snapshotter[daemon]'"),
        (True, True, f"{sys.executable} -m pip install --break-system-packages 'btrfs-snapshotter[daemon]'"),
        (False, False, f"uv pip install --python {sys.executable} 'btrfs-snapshotter[daemon]'"),
    ],
)
def test_missing_extra(
    filled: str,
    pip: bool,
    managed: bool,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """
    The error of a missing extra has a command that works with the Python at hand.
    """
    monkeypatch.setitem(sys.modules, "re2", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pip or None)
    if managed:
        (tmp_path / "EXTERNALLY-MANAGED").touch()
        monkeypatch.setattr(sys, "prefix", sys.base_prefix)
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert cli.main(["ls", "name~=x"]) == 1
    assert capsys.readouterr().err.endswith(f"google-re2, of the extra btrfs-snapshotter[daemon]: {command}\n")
