"""
``snapshotter export`` and ``import``.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import IO, cast

from snapshotter.archive import tar
from snapshotter.cli import arguments, interruption, keys, output
from snapshotter.cli.progress import Report, progress, visible
from snapshotter.errors import InvalidArgumentError


def add(commands: arguments.Commands) -> None:
    export = commands.add("export", _export, arguments.KEY, example="snapshotter export base - | gzip > base.tgz")
    export.add_argument("file", metavar="FILE", help="tar archive to write, or - for standard output")
    import_ = commands.add(
        "import",
        _import,
        arguments.KEY,
        arguments.LABELS,
        arguments.TIMEOUT,
        example="snapshotter import base base.tgz",
    )
    import_.add_argument("file", metavar="FILE", help="tar archive to read, compressed or not, or - for standard input")
    import_.add_argument(
        "parent",
        metavar="PARENT",
        nargs="?",
        type=arguments.parent,
        default="",
        help="committed snapshot to unpack onto (default: empty)",
    )


def _export(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store, interruption.deferred() as interrupted:
        key = keys.resolve(parsed, store, parsed.key)
        total = tar.estimate_size(store, key) if visible() else 0
        with _written(parsed.file) as file, progress("export", total) as report:
            tar.save(store, key, _Watched(file, interrupted, report).stream)


def _import(parsed: argparse.Namespace) -> None:
    with (
        arguments.creating(parsed) as store,
        interruption.deferred() as interrupted,
        _read(parsed.file) as file,
        progress("import", os.fstat(file.fileno()).st_size) as report,
    ):
        stream = _Watched(file, interrupted, report).stream
        tar.load(store, parsed.key, stream, keys.parent(parsed, store), dict(parsed.label))


class _Watched:
    """
    A file that reports progress, and that Ctrl-C interrupts while it reads or writes.
    """

    def __init__(self, file: IO[bytes], interrupted: interruption.Deferred, report: Report) -> None:
        self._file = file
        self._interrupted = interrupted
        self._report = report
        self._count = 0

    @property
    def stream(self) -> IO[bytes]:
        return cast("IO[bytes]", self)

    def read(self, size: int) -> bytes:
        with self._interrupted.at_once():
            data = self._file.read(size)
        self._add(len(data))
        return data

    def write(self, data: bytes) -> int:
        with self._interrupted.at_once():
            self._file.write(data)
        self._add(len(data))
        return len(data)

    def _add(self, count: int) -> None:
        self._count += count
        self._report(self._count)


@contextlib.contextmanager
def _written(path: str) -> Iterator[IO[bytes]]:
    """
    Open the file *path* as `output.replaced` does, or standard output for ``-``.
    """
    if path == "-":
        if os.isatty(1):
            raise InvalidArgumentError(
                "cannot write a tar archive to a terminal: name a file, or redirect standard output"
            )
        with open(1, "wb", closefd=False) as file:
            yield file
        return
    with output.replaced(path) as file:
        yield file


@contextlib.contextmanager
def _read(path: str) -> Iterator[IO[bytes]]:
    """
    Open the file *path* for reading, or standard input for ``-``.
    """
    if path == "-" and os.isatty(0):
        raise InvalidArgumentError("cannot read a tar archive from a terminal: name a file, or redirect standard input")
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        yield file
