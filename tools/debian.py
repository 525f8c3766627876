"""
Debian packages of any suite, unpacked without installation, from the mirror of this machine.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Self

from tools.cache import cached, place

BIN = Path(sys.executable).parent
TRIPLET = sysconfig.get_config_var("MULTIARCH")


class UnavailableError(Exception):
    """
    A package or program is not available on this machine; the message names the reason.
    """


class Suite:
    """
    A suite such as ``sid``, with its own package lists while it is open.

    Raises:
        UnavailableError: This machine has no Debian mirror, or the mirror lacks the package.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        self._at = Path(self._directory.name)
        try:
            for part in ("lists/partial", "archives/partial"):
                (self._at / part).mkdir(parents=True)
            (self._at / "status").touch()  # an empty list of installed packages, so that apt downloads every dependency
            (self._at / "sources.list").write_text(f"deb {_mirror()} {self._name} main\n")
            self._apt("apt-get", "update")
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._directory.cleanup()

    def newest(self, pattern: str) -> str:
        """
        Return the name of the newest package that *pattern* matches, by the numbers in its name.
        """
        names = [name for name in self._apt("apt-cache", "pkgnames").split() if re.fullmatch(pattern, name)]
        if not names:
            raise UnavailableError(f"Debian's {self._name} has no package {pattern}")
        return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    def unpack(self, *packages: str, tree: Path, dependencies: bool = True) -> None:
        """
        Unpack *packages*, by default with their dependencies, into *tree*.
        """
        archives = self._at / "archives"
        if dependencies:
            self._apt("apt-get", "install", "--yes", "--download-only", *packages)
        else:
            self._apt("apt-get", "download", *packages)
        for archive in archives.glob("*.deb"):
            run("dpkg-deb", "--extract", archive, tree)
            archive.unlink()

    def _apt(self, *command: str) -> str:
        settings = {
            "Dir::State": self._at,
            "Dir::State::status": self._at / "status",
            "Dir::Cache": self._at,
            "Dir::Etc::sourcelist": self._at / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Acquire::Languages": "none",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
        }
        options = [f"--option={name}={value}" for name, value in settings.items()]
        return run(command[0], *options, *command[1:], cwd=self._at / "archives")


def programs(suite: str, packages: tuple[str, ...], paths: tuple[str, ...]) -> Path:
    """
    Return a directory with *packages* and their dependencies.

    The programs at *paths* run with the libraries of that directory.
    """
    name = f"{packages[0]}-{suite}"

    def build(tree: Path) -> None:
        with Suite(suite) as opened:
            opened.unpack(*packages, tree=tree)
        # The path of the loader is absolute, so it names the final place of the directory.
        [loader] = [path for path in tree.rglob("ld-linux*.so.*") if not path.is_symlink()]
        loaded_by = "--set-interpreter", place(name) / loader.relative_to(tree)
        for path in paths:
            up = "/".join([".."] * path.count("/"))
            libraries = f"$ORIGIN/{up}/lib/{TRIPLET}:$ORIGIN/{up}/usr/lib/{TRIPLET}"
            run(BIN / "patchelf", *loaded_by, "--force-rpath", "--set-rpath", libraries, tree / path)

    return cached(name, build)


def _mirror() -> str:
    for line in run("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)").splitlines():
        label, _, uri = line.partition(" ")
        if label == "Debian":
            return uri
    raise UnavailableError("this machine has no Debian mirror")


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """
    Run a command, and return its output.

    Raises:
        UnavailableError: The command is missing or fails.
    """
    try:
        done = subprocess.run(command, cwd=cwd, env=os.environ | (env or {}), capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UnavailableError(f"this machine has no {command[0]}") from error
    if done.returncode:
        raise UnavailableError(f"{shlex.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout
