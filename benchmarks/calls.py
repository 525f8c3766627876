"""
pybtrfs against the bare ioctls and the ``btrfs`` command.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bare import Bare
from benchmarks.measure import Effort, Round, Row, compare, rows, say, timed
from pybtrfs import subvolume

GROUP = "pybtrfs"
_LOOPS = 1000  # of what takes about a microsecond; bare.c does as many


def measure(mount: Path, bare: Bare, effort: Effort) -> Iterator[Row]:
    for function in (_life, _inspection, _listing):
        say(f"{GROUP}: {function.__name__[1:]}")
        yield from function(mount, bare, effort)


def _contenders(*turns: Callable[[], Round]) -> dict[str, Callable[[], Round]]:
    """
    pybtrfs, C, and the command where it is installed.
    """
    named = dict(zip(("pybtrfs", "C", "btrfs command"), turns, strict=True))
    if not shutil.which("btrfs"):
        del named["btrfs command"]
    return named


def _run(*words: str | os.PathLike[str]) -> None:
    subprocess.run(("btrfs", *words), check=True, stdout=subprocess.DEVNULL)


def _life(mount: Path, bare: Bare, effort: Effort) -> Iterator[Row]:
    directory, source = mount / "life", mount / "source"
    directory.mkdir()
    subvolume.create(source)
    bare("fill", source, 0, 100, 5000, 1)
    count, commands = effort.operations, effort.commands

    def pybtrfs() -> Round:
        fd = os.open(directory, os.O_RDONLY)
        with subvolume.Subvolume(source) as opened:
            round = {
                "create": [timed(subvolume.create, (fd, f"a{n}")) for n in range(count)],
                "snapshot": [timed(subvolume.snapshot, opened, (fd, f"b{n}")) for n in range(count)],
                "delete": [timed(subvolume.delete, (fd, f"{letter}{n}")) for letter in "ab" for n in range(count)],
            }
        os.close(fd)
        return round

    def c() -> Round:
        return {
            "create": bare("create", directory, 0, count),
            "snapshot": bare("snapshot", directory, count, count, source),
            "delete": bare("delete", directory, 0, 2 * count),
        }

    def command() -> Round:
        new, copies = ([directory / f"{letter}{n}" for n in range(commands)] for letter in "ab")
        return {
            "create": [timed(_run, "subvolume", "create", path) for path in new],
            "snapshot": [timed(_run, "subvolume", "snapshot", source, path) for path in copies],
            "delete": [timed(_run, "subvolume", "delete", path) for path in (*new, *copies)],
        }

    yield from rows(GROUP, compare(effort.rounds, _contenders(pybtrfs, c, command)))


def _inspection(mount: Path, bare: Bare, effort: Effort) -> Iterator[Row]:
    path = mount / "source"
    calls = {"get_id": subvolume.get_id, "get_info": subvolume.get_info, "get_read_only": subvolume.get_read_only}
    commands = {
        "get_id": ("inspect-internal", "rootid"),
        "get_info": ("subvolume", "show"),
        "get_read_only": ("property", "get", "-t", "subvol"),
    }

    def pybtrfs() -> Round:
        def loop(call: Callable[[int], object], fd: int) -> None:
            for _ in range(_LOOPS):
                call(fd)

        with subvolume.Subvolume(path) as opened:
            return {step: [timed(loop, call, opened.fileno()) / _LOOPS] for step, call in calls.items()}

    def c() -> Round:
        return {step: bare(verb, path, 0, 1) for step, verb in zip(calls, ("id", "info", "flags"), strict=True)}

    def command() -> Round:
        return {step: [timed(_run, *words, path) for _ in range(effort.commands)] for step, words in commands.items()}

    yield from rows(GROUP, compare(effort.rounds, _contenders(pybtrfs, c, command)))


def _listing(mount: Path, bare: Bare, effort: Effort) -> Iterator[Row]:
    directory = mount / "listed"
    directory.mkdir()
    bare("create", directory, 0, effort.listed)
    step = f"list {effort.listed:,} subvolumes"
    samples = compare(
        effort.rounds,
        _contenders(
            lambda: {step: [timed(list, subvolume.iterate(mount))]},
            lambda: {step: bare("list", mount, 0, 1)},
            lambda: {step: [timed(_run, "subvolume", "list", mount)]},
        ),
    )
    yield from rows(GROUP, samples)
    bare("delete", directory, 0, effort.listed)
