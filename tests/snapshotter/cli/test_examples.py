"""
Each command shows how it is called, and that works; so does its JSON, which is as the schema has it.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from pybtrfs import syscall
from snapshotter import Snapshotter, cli
from snapshotter.cli.codes import INCONSISTENT
from tests.snapshotter.cli import schema
from tests.snapshotter.serving import serving
from tools.make_manual import commands

ELSEWHERE = {
    "demo": "test_demo.py runs it",
    "serve": "tests/test_readme.py runs it",
}
BEFORE = {  # what an example takes for done
    "umount": ["snapshotter mount web /mnt"],
    "import": ["snapshotter export base - | gzip > base.tgz", "snapshotter rm web web-2 base"],
}
DOCS = Path(__file__).parents[3] / "docs/cli.md"


def all_commands() -> dict[str, argparse.ArgumentParser]:
    """
    By name, as in "setup containerd".
    """
    whole = cli.parser()
    every = [command for command in commands(whole) if command.get_default("run")]
    return {command.prog.removeprefix(f"{whole.prog} "): command for command in every}


COMMANDS = all_commands()
WITH_JSON = [name for name, command in COMMANDS.items() if "--json" in command.format_usage()]


def example(name: str) -> str:
    return (COMMANDS[name].epilog or "").removeprefix("example: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one(name: str) -> None:
    """
    The help of every command ends with an example of it.
    """
    assert example(name).startswith(f"snapshotter {name}")
    assert COMMANDS[name].format_help().endswith(f"\n\nexample: {example(name)}\n")


Run = Callable[[str], str]


@pytest.fixture
def places(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """
    The places that the examples name, as they are here. There is no store yet.
    """
    root, mount_point, log = btrfs / "snapshots", tmp_path / "mnt", tmp_path / "log"
    mount_point.mkdir()
    log.write_text("2026-01-02T03:04:05.060708Z info prepared key=web id=2 parent=base seconds=0.002000\n")
    monkeypatch.setenv("SNAPSHOTTER_ROOT", str(root))
    monkeypatch.chdir(tmp_path)
    yield {
        "/var/lib/snapshots": str(root),
        "/var/log/snapshots.log": str(log),
        "/mnt": str(mount_point),
        "20G": "200M",
    }
    for place in mount_point, root:
        with suppress(OSError):  # most mount nothing
            syscall.umount2(place)


@pytest.fixture
def run(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Run:
    """
    Runs what an example says, and gives what it printed.
    """

    def run(line: str) -> str:
        for place, here in places.items():
            line = line.replace(place, here)
        if " | " in line:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            return subprocess.run(line, shell=True, check=True, text=True, env=os.environ | {"PATH": path}).stdout
        capsys.readouterr()
        code = cli.main(shlex.split(line)[1:])
        printed = capsys.readouterr()
        # The image below the tests is sparse, which doctor says.
        assert code in (0, INCONSISTENT if " doctor" in line else 0), printed.err
        return printed.out

    return run


@pytest.fixture
def perform(places: dict[str, str], run: Run) -> Run:
    """
    The same, with a store of what examples speak of.
    """
    root = places["/var/lib/snapshots"]

    def perform(line: str) -> str:
        with ExitStack() as stack:
            if not line.startswith("snapshotter init"):
                with Snapshotter.create(root) as store:
                    store.prepare("build")
                    store.commit("base", "build")
                    store.prepare("web", "base", {"owner": "me", "draft": "yes"})
                    store.prepare("web-2", "base")
            if "/run/snapshots.sock" in line:
                server = stack.enter_context(serving(stack.enter_context(Snapshotter(root))))
                places["/run/snapshots.sock"] = server.address
            for before in BEFORE.get(line.split()[1], []):
                run(before)
            return run(line)

    return perform


@pytest.mark.btrfs
def test_examples_of_the_whole(run: Run) -> None:
    """
    The examples of the help work in their order, with the first of the two ways to make a store.
    """
    section = (cli.parser().epilog or "").partition("examples:\n")[2].partition("\n\n")[0]
    lines = re.findall(r"^  (snapshotter .*?)(?:   .*)?$", section, re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        if "--image" not in line:
            run(line)


@pytest.mark.btrfs
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - ELSEWHERE.keys()))
def test_example(perform: Run, name: str) -> None:
    """
    The example works.
    """
    perform(example(name))


@pytest.mark.btrfs
@pytest.mark.parametrize("name", WITH_JSON)
def test_json(perform: Run, name: str) -> None:
    """
    With ``--json`` the example prints what the schema has, and nothing that it does not name.
    """
    schema.check(name, perform(f"{example(name).partition(' | ')[0]} --json"))


def test_schema() -> None:
    """
    The schema is one, has each command that prints JSON, and so has the documentation.
    """
    Draft202012Validator.check_schema(schema.SCHEMA)
    assert set(WITH_JSON) < schema.SCHEMA["$defs"].keys()
    section = DOCS.read_text().partition("\n## JSON\n")[2].partition("\n## ")[0]
    documented = " ".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    assert set(re.findall(r"`([a-z]+)[^`]*`", documented)) == set(WITH_JSON)


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("ls", "{}"),
        ("ls", "[{}]"),
        ("usage", '[{"key": "a", "size": "1", "inodes": 1}]'),
        ("usage", '[{"key": "a", "size": 1, "inodes": 1, "more": 1}]'),
        ("frees", '{"keys": [], "size": 1, "more": 1}'),
    ],
)
def test_schema_can_fail(command: str, printed: str) -> None:
    """
    Output of another shape, or with an undocumented field, is found.
    """
    with pytest.raises(ValidationError):
        schema.check(command, printed)
