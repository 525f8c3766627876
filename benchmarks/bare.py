"""
Programs that a benchmark has beside it, which do and time what they are told.
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
    A running program that reads commands from stdin, one a line, and answers each with one.
    """

    def __init__(self, *command: str) -> None:
        # Its own session: Ctrl-C is for us to handle.
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
        Run one command, and return the nanoseconds of each operation, or what it answers.
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
    The bare system calls in C, compiled for the run; the commands are in ``bare.c``.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="bare-") as directory:
            program = os.path.join(directory, "bare")
            subprocess.run(["gcc", "-O2", "-pthread", "-o", program, _SOURCE], check=True)
            super().__init__(program)


def libbtrfsutil() -> Program | None:
    """
    libbtrfsutil's own binding, if the system's Python has it; the commands are in ``libbtrfsutil.py``.
    """
    try:
        subprocess.run((_SYSTEM_PYTHON, "-Ic", "import btrfsutil"), check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Program(_SYSTEM_PYTHON, "-m", "benchmarks.libbtrfsutil")
