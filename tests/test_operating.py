"""
The commands of the pages for operators, each page run on a new machine.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import needed

SRC = Path(__file__).parent.parent / "src/snapshotter"
DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["backup.md", "compression.md", "index.md", "operating.md"]

# Own namespaces hide the files of this machine at the paths that the page uses. Everything ends with the shell.
MACHINE = """\
set -u
for place in var/lib run mnt srv; do
    mkdir -p "$1/$place"
    mount --bind "$1/$place" /$place
done
. "$2"
"""
QUIET = ("snapshotter df", "kill", "wait", "btrfs device")  # the page leaves out their output
ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def commands(page: str) -> list[tuple[str, str]]:
    """
    Return the commands of *page*, each with its output there.
    """
    text = (DOCS / page).read_text()
    sessions = "".join(re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    steps = re.split(r"^\$ ", sessions, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (step.partition("\n") for step in steps)]


def shape(text: str) -> str:
    """
    Return *text* without numbers and the width of columns, which differ from run to run.
    """
    return re.sub(r"[ \t]+", " ", re.sub(r"[0-9.]+( [KMG]?i?B\b)?", "N", text))


def symptoms() -> list[str]:
    """
    Return the messages of the snapshotter in the tables of symptoms.
    """
    cells = re.findall(r"^\| (.*?) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    return [
        span for span in spans if " " in span and "--" not in span and not span.startswith(("ctr ", "snapshotter "))
    ]


def strings() -> list[str]:
    """
    Return the literal parts of all strings in the source.
    """
    trees = [ast.parse(path.read_text()) for path in SRC.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_symptoms() -> None:
    """
    Every message in the tables of symptoms is one that the source has.
    """
    said = strings()
    found = symptoms()
    assert len(found) > 40
    parts = [part.strip() for symptom in found for part in symptom.split("...")]
    assert [part for part in parts if not any(part in text for text in said)] == []


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """
    Return a directory for the machine, and detach its loop devices at the end.
    """
    yield tmp_path
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        if file.read_text().startswith(str(tmp_path)):
            subprocess.run(["losetup", "--detach", f"/dev/{file.parts[3]}"], check=True)


@pytest.mark.btrfs
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, directory: Path) -> None:
    """
    Every command of the page prints the output that the page shows, apart from numbers.
    """
    needed("btrfs", "losetup", "findmnt")
    (directory / "steps").write_text("".join(f"echo '$ {command}'\n{command}\n" for command, _ in commands(page)))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    done = subprocess.run(
        [*ALONE, "bash", "-c", MACHINE, "bash", str(directory), str(directory / "steps")],
        cwd=directory,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    printed = re.split(r"^\$ .*\n", done.stdout, flags=re.MULTILINE)[1:]
    for (command, shown), told in zip(commands(page), printed, strict=True):
        if shown:
            assert shape(told) == shape(shown), command
        elif not command.startswith(QUIET):
            assert told == "", command
