"""
The examples of README work.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pybtrfs import syscall

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.btrfs
@pytest.mark.parametrize(
    "code", [pytest.param(code, id=re.findall(r"from (\w+)", code)[0]) for code in blocks("python")]
)
def test_python(code: str, btrfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Each example runs, and prints something.
    """
    exec(code.replace("/var/lib/snapshots", str(btrfs / "store")), {})
    assert capsys.readouterr().out


@pytest.mark.btrfs
def test_console(tmp_path: Path) -> None:
    """
    The commands of the console example print the output that it shows.
    """
    [session] = blocks("console")
    environment = dict(os.environ)
    try:
        for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
            command, _, shown = step.replace("/var/lib/store", str(tmp_path / "store")).partition("\n")
            if command.startswith("export "):
                name, _, value = command.removeprefix("export ").partition("=")
                environment[name] = value
                continue
            assert command.startswith("snapshotter ")
            argv = [sys.executable, "-m", *command.split()]
            ran = subprocess.run(argv, capture_output=True, text=True, env=environment)
            assert (ran.returncode, ran.stderr) == (0, ""), command
            assert shown in ("", ran.stdout)
    finally:
        syscall.umount2(tmp_path / "store")


@pytest.mark.btrfs
def test_daemon(btrfs: Path, tmp_path: Path) -> None:
    """
    The daemon of the example serves, and answers the ping of the example.
    """
    serve, ping = (
        line.replace("/var/lib/snapshots", str(btrfs / "store")).replace("/run/snapshots", str(tmp_path / "s"))
        for line in blocks("sh")[0].splitlines()
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        argv = [sys.executable, "-m", *serve.split()]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE) as daemon:
            try:
                while b"READY=1" not in manager.recv(1000):
                    assert daemon.poll() is None
                argv = [sys.executable, "-m", *ping.partition("#")[0].split()]
                assert subprocess.run(argv, stdout=subprocess.DEVNULL).returncode == 0
                daemon.terminate()
                assert daemon.wait() == 0
            finally:
                daemon.kill()


def test_table() -> None:
    """
    The table and docs/cli.md have every command.
    """
    listed = subprocess.run([sys.executable, "-m", "snapshotter", "--help"], capture_output=True, text=True).stdout
    commands = set(re.findall(r"^    ([a-z]+) ", listed, re.MULTILINE))
    assert {"init", "prepare", "demo"} < commands
    reference = (Path(__file__).parent.parent / "docs/cli.md").read_text()
    for command in commands:
        assert f"`{command}`" in README or f"`make {command}`" in README
        assert re.search(rf"^\| `{command}\b", reference, re.MULTILINE)
