"""
The man pages and completions in ``share/``, which the wheel carries.
"""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

from snapshotter import Snapshotter
from tests.programs import needed

ROOT = Path(__file__).parent.parent
SHARE = ROOT / "share"
PAGES = [SHARE / "man/man1/snapshotter.1", SHARE / "man/man1/pybtrfs.1"]

# The start file of each shell. The prompt appears after the shell has read it.
START = {
    "bash": ("--rcfile {home}/start -i", ". /usr/share/bash-completion/bash_completion; PS1='READY> '"),
    "zsh": (
        "-d -i",
        "fpath=({share}/zsh/site-functions $fpath); autoload -U compinit; compinit -u -d {home}/dump; PS1='READY> '",
    ),
    "fish": ("-i", "function fish_prompt; echo -n 'READY> '; end; function fish_greeting; end"),
}
START_FILES = {"bash": "start", "zsh": ".zshrc", "fish": "fish/config.fish"}


def test_generated_files_are_up_to_date(tmp_path: Path) -> None:
    """
    `make manual` would not change the files.
    """
    subprocess.run([sys.executable, ROOT / "tools/make_manual.py", tmp_path], check=True)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    there = {path.relative_to(SHARE): path.read_text() for path in SHARE.rglob("*") if path.is_file()}
    assert made == there, "run `make manual`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_are_sound(page: Path) -> None:
    """
    man and mandoc accept each page without a warning, apart from the missing date.
    """
    needed("mandoc", "man")
    checked = subprocess.run(["mandoc", "-Tlint", "-Wwarning", page], capture_output=True, text=True)
    assert [line for line in checked.stdout.splitlines() if "missing date" not in line] == []
    shown = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True, check=True)
    assert shown.stderr == ""


def test_page_shows_the_parser() -> None:
    """
    The page has the help of each command word by word.
    """
    needed("mandoc")
    shown = subprocess.run(["mandoc", "-Tutf8", "-Owidth=1000", PAGES[0]], capture_output=True, text=True, check=True)
    text = re.sub(".\b", "", shown.stdout)
    for line in (
        "snapshotter prepare [--label KEY=VALUE ...] [--json] [--timeout SECONDS] KEY [PARENT]",
        "snapshotter setup containerd [--address SOCKET]",
        "List snapshots.",
        "--json print JSON",
        "snapshotter ls 'kind==active,labels.owner==me' 'parent==base'",
        "0 done, 1 failed, 2 usage or configuration",
    ):
        assert line in text


class Shell:
    """
    An interactive *shell* on a terminal, in which the command prints its arguments, but for ``ls``.
    """

    def __init__(self, shell: str, home: Path, root: str) -> None:
        arguments, start = START[shell]
        (home / "bin").mkdir()
        command = home / "bin/snapshotter"
        command.write_text(
            '#!/bin/sh\n[ "$1" != ls ] || exec "$PYTHON" -m snapshotter "$@"\necho; echo "<$*>"\n', encoding="utf-8"
        )
        command.chmod(0o755)
        # Where that is missing, fish makes completions of all man pages, in a process that outlives it.
        (home / ".local/share/fish/generated_completions").mkdir(parents=True)
        (home / START_FILES[shell]).parent.mkdir(exist_ok=True)
        (home / START_FILES[shell]).write_text(start.format(home=home, share=SHARE))
        environment = {
            "HOME": str(home),
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "SNAPSHOTTER_ROOT": root,
            "TERM": "xterm",
            "XDG_CONFIG_HOME": str(home),
            "XDG_DATA_DIRS": f"{SHARE}:/usr/share",
            "ZDOTDIR": str(home),
        }
        self._shown = ""
        self._terminal, child = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", shell, *arguments.format(home=home).split()],
            stdin=child, stdout=child, stderr=child, env=environment, cwd=home,
        )  # fmt: skip
        os.close(child)

    def completed(self, typed: str) -> str:
        """
        The arguments that the command got when *typed* was completed and entered.
        """
        self._read_until(r"READY> ")
        os.write(self._terminal, f"{typed}\t\n".encode())
        return self._read_until(r"\n<(.*)>")[1]

    def _read_until(self, pattern: str) -> re.Match[str]:
        while not (found := re.search(pattern, self._shown)):
            self._shown += os.read(self._terminal, 1 << 16).decode(errors="replace")
        self._shown = self._shown[found.end() :]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@pytest.mark.btrfs
@pytest.mark.parametrize("shell", START)
def test_shells_complete(shell: str, btrfs: Path, tmp_path: Path) -> None:
    """
    Each shell finds its file where the wheel puts it, and completes commands, options, choices, files and keys, without
    running what a key holds.
    """
    needed(shell)
    (tmp_path / "settings").touch()
    with Snapshotter.create(btrfs / "store") as store:
        for key in ("a:b/web-1", f"$(touch {tmp_path}/ran)", f"`touch {tmp_path}/ran`"):
            store.prepare(key)
    with Shell(shell, tmp_path, str(btrfs / "store")) as session:
        for typed, expected in (
            ("tre", "tree"),
            ("tree --by", "tree --bytes"),
            ("config du", "config dump"),
            ("setup sys", "setup systemd"),
            ("serve --config sett", "serve --config settings"),
            ("rm a:b/w", "rm a:b/web-1"),
        ):
            assert session.completed(f"snapshotter {typed}").strip() == expected
    assert not (tmp_path / "ran").exists()
