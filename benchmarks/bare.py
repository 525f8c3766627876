"""
Helper processes of a benchmark, which run and time operations on command.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Self

_SOURCE = Path(__file__).with_name("bare.c")
_SYSTEM_PYTHON = "/usr/bin/python3"  # has Debian's modules


class Program:
    """
    A running program that answers each line on stdin, a command, with a line of numbers.
    """

    def __init__(self, *command: str) -> None:
        # A session of its own, because Ctrl-C is handled here alone.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=_SOURCE.parent.parent,
        )

    def __call__(
        self, verb: str, directory: str | os.PathLike[str], first: int, count: int, *extra: object
    ) -> list[float]:
        """
        Run a command, and return its answer: the nanoseconds of each operation, unless ``bare.c`` says otherwise.
        """
        assert self._process.stdin
        assert self._process.stdout
        print(verb, os.fspath(directory), first, count, *extra, sep="\t", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} failed at {verb!r}")
        return [float(word) for word in answer.split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()


class Bare(Program):
    """
    The bare system calls in C, compiled for the run. ``bare.c`` has the commands.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="bare-") as directory:
            program = os.path.join(directory, "bare")
            subprocess.run(["gcc", "-O2", "-pthread", "-o", program, _SOURCE], check=True)
            super().__init__(program)


def libbtrfsutil() -> Program | None:
    """
    Start libbtrfsutil's own binding, or return None if the system's Python lacks it.

    ``libbtrfsutil.py`` has the commands.
    """
    try:
        subprocess.run((_SYSTEM_PYTHON, "-Ic", "import btrfsutil"), check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Program(_SYSTEM_PYTHON, "-m", "benchmarks.libbtrfsutil")
