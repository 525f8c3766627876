"""
docs/operating.md, followed by somebody who has never seen this before, on a machine of their own.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import needed

DOCS = (Path(__file__).parent.parent / "docs/operating.md").read_text()

# Namespaces of their own hide what this machine has in the places that the page names; all ends with the shell.
MACHINE = """\
set -u
for place in var/lib run mnt srv; do
    mkdir -p "$1/$place"
    mount --bind "$1/$place" /$place
done
. "$2"
"""
QUIET = ("snapshotter df", "kill", "wait", "btrfs device")  # what they print is left out
ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def commands() -> list[tuple[str, str]]:
    """
    Those of the page, each with what it prints.
    """
    sessions = "".join(re.findall(r"^```console\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL))
    steps = re.split(r"^\$ ", sessions, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (step.partition("\n") for step in steps)]


def shape(text: str) -> str:
    """
    *text* without what differs from run to run: numbers, and the places that these take.
    """
    return re.sub(r"[ \t]+", " ", re.sub(r"[0-9.]+( [KMG]?i?B\b)?", "N", text))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """
    One for the machine; what its loop devices are on.
    """
    yield tmp_path
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        if file.read_text().startswith(str(tmp_path)):
            subprocess.run(["losetup", "--detach", f"/dev/{file.parts[3]}"], check=True)


@pytest.mark.btrfs
def test_page(directory: Path) -> None:
    """
    Every command of the page, one after the other, prints what the page shows; only numbers may differ.
    """
    needed("btrfs", "losetup", "findmnt")
    (directory / "steps").write_text("".join(f"echo '$ {command}'\n{command}\n" for command, _ in commands()))
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
    for (command, shown), told in zip(commands(), printed, strict=True):
        if shown:
            assert shape(told) == shape(shown), command
        elif not command.startswith(QUIET):
            assert told == "", command
