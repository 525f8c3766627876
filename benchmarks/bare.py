"""
The bare system calls: a C program, compiled for the run, that does and times them.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Self

_SOURCE = Path(__file__).with_name("bare.c")


class Bare:
    """
    A running ``bare``; its commands are in ``bare.c``.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="bare-") as directory:
            program = os.path.join(directory, "bare")
            subprocess.run(["gcc", "-O2", "-pthread", "-o", program, _SOURCE], check=True)
            # Its own session: Ctrl-C is for us to handle.
            self._process = subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )

    def __call__(
        self, verb: str, directory: str | os.PathLike[str], first: int, count: int, *extra: object
    ) -> list[float]:
        """
        Run one command, and return the nanoseconds of each operation, or what it answers.
        """
        assert self._process.stdin and self._process.stdout
        print(verb, os.fspath(directory), first, count, *extra, sep="\t", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"bare failed at {verb!r}")
        return [float(word) for word in answer.split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()
