"""
The same calls through the binding of libbtrfsutil and through pybtrfs, on two filesystems with the same history.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybtrfs import filesystem, subvolume
from pybtrfs.compat.btrfsutil import ERROR_SUBVOLUME_NOT_FOUND
from tests.pybtrfs.subvolume.common import make

pytestmark = pytest.mark.btrfs

PYTHON = "/usr/bin/python3"  # of the distribution, for which the package is built
NOBODY = 65534
SNAPSHOT_WORDS = ("Could not create subvolume", "Could not create snapshot")

Call = tuple[str, list[Any], dict[str, Any]]


class Peer:
    """
    A binding in its own process, with its filesystem.
    """

    def __init__(self, process: subprocess.Popen[str], mount: Path) -> None:
        self.process = process
        self.mount = mount
        self.base_id = 0

    def ask(self, name: str, *arguments: Any, how: str = "plain", **options: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments, options, how]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def begin(self, owner: int) -> None:
        """
        Create a subvolume with files and nested subvolumes, and make it the working directory.
        """
        base = self.mount / "base"
        make(self.mount, "base")
        (base / "f").touch()
        make(base, "a", "a/b", "a/b/c", "d/s")
        for path in (base, *base.rglob("*")):
            os.chown(path, owner, owner)
        self.base_id = subvolume.get_id(base)
        assert self.ask("chdir", str(base)) is None

    def end(self) -> None:
        assert self.ask("chdir", "/") is None
        if subvolume.get_default(self.mount) != 5:
            subvolume.set_default(self.mount, 5)
        for path in os.listdir(self.mount):
            subvolume.delete(self.mount / path, recursive=True)

    def call(self, call: Call) -> Any:
        """
        Perform a call. Ids in its arguments and answer are relative to that of the subvolume.
        """
        name, arguments, options = call
        for index in (0, 1) if name == "set_default_subvolume" else (1,):
            if name in RELATIVE and len(arguments) > index and isinstance(arguments[index], int):
                arguments = [*arguments]
                arguments[index] = self._absolute(arguments[index])
        answer = self.ask(name, *arguments, **options)
        if isinstance(answer, int) and (name == "start_sync" or "async_" in options):
            return "a transaction"  # with async_ libbtrfsutil returns uninitialised memory
        if name == "create_snapshot" and isinstance(answer, dict) and answer.get("code") == 16:
            # libbtrfsutil reports a failed snapshot as a failed subvolume.
            words = answer["strerror"].replace(*SNAPSHOT_WORDS)
            text = answer["text"].replace("BtrfsUtilError 16", "BtrfsUtilError 17").replace(*SNAPSHOT_WORDS)
            return {**answer, "code": 17, "strerror": words, "text": text}
        return self._relative(name, answer)

    def _absolute(self, subvolid: int) -> int:
        return self.base_id + subvolid - 1000 if 1000 <= subvolid < 2000 else subvolid

    def _relative(self, name: str, answer: Any) -> Any:
        if isinstance(answer, bool) or not isinstance(answer, int | list) or name == "deleted_subvolumes":
            return answer
        if isinstance(answer, list):
            # Paths, ids and inode numbers; only ids are as large as base_id.
            return [self._relative(name, one) for one in answer]
        return answer - self.base_id + 1000 if answer >= self.base_id else answer


RELATIVE = ("subvolume_path", "subvolume_info", "set_default_subvolume", "SubvolumeIterator")


@contextmanager
def peer(mount: Path, command: list[str], module: str, user: str) -> Iterator[Peer]:
    script = str(Path(__file__).with_name("peer.py"))
    with subprocess.Popen(
        [*command, script, module, "/", *([user] if user else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Peer(process, mount)
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def both(theirs: Path, ours: Path, user: str = "") -> Iterator[tuple[Peer, Peer]]:
    if subprocess.run([PYTHON, "-Ic", "import btrfsutil"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs Debian's python3-btrfsutil")
    with (
        peer(theirs, [PYTHON, "-I"], "btrfsutil", user) as one,
        peer(ours, [sys.executable, "-I"], "pybtrfs.compat.btrfsutil", user) as other,
    ):
        yield one, other


MADE = st.sampled_from(["a", "a/b", "a/b/c", "d/s"])
FREE = st.sampled_from(["e", "a/e", "d/e", "e/e", "e/b/e"])
ODD = st.sampled_from(["d", "f", "f/x", "missing", "missing/x", ".", "", "b/", "n" * 256])
NEW = st.one_of(FREE, FREE, FREE, MADE, ODD, st.sampled_from(["..", "/", "n" * 4039, "n" * 4040]))
OLD = st.one_of(MADE, MADE, FREE, FREE, ODD, st.sampled_from(["n" * 4087, "n" * 4088]))
FILES = st.one_of(
    MADE, MADE, FREE, FREE, ODD, st.sampled_from(["/proc", "/proc/self/mem", -1, 1 << 40, 900, 1.5, None])
)
IDS = st.one_of(st.integers(1000, 1009), st.sampled_from([0, 2, 5, 100, 1900, -1, 1 << 64, "5"]))
BOOLS = st.booleans()


def calls(name: str, *arguments: st.SearchStrategy[Any], **options: st.SearchStrategy[Any]) -> Any:
    return st.tuples(
        st.just(name),
        st.tuples(*arguments).map(list),
        st.fixed_dictionaries({}, optional=options),
    )


CHANGES = [
    calls("create_subvolume", NEW, async_=BOOLS),
    calls("create_snapshot", MADE, FREE, read_only=BOOLS),
    calls("delete_subvolume", MADE, recursive=st.just(True)),
    calls("create_snapshot", FILES, NEW, read_only=BOOLS, async_=BOOLS),
    calls("set_subvolume_read_only", FILES, read_only=BOOLS),
    calls("delete_subvolume", OLD, recursive=BOOLS),
]
QUESTIONS = [
    calls("is_subvolume", FILES),
    calls("subvolume_id", FILES),
    calls("subvolume_info", FILES),
    calls("get_subvolume_read_only", FILES),
    calls("sync", FILES),
    calls("start_sync", FILES),
    calls("wait_sync", FILES, transid=st.sampled_from([0, 1, 1 << 50])),
    calls("SubvolumeIterator", FILES, info=BOOLS, post_order=BOOLS),
]
# pybtrfs answers an unprivileged user where libbtrfsutil refuses.
PRIVILEGED = [
    calls("create_snapshot", st.one_of(MADE, FREE), st.just("r"), recursive=st.just(True)),
    calls("create_snapshot", FILES, NEW, recursive=BOOLS, read_only=BOOLS),
    calls("subvolume_path", FILES, IDS),
    calls("subvolume_info", FILES, IDS),
    calls("set_default_subvolume", FILES, IDS),
    calls("get_default_subvolume", FILES),
    calls("SubvolumeIterator", FILES, IDS, info=BOOLS, post_order=BOOLS),
]


def comparable(call: Call, user: str) -> bool:
    """
    Return whether libbtrfsutil supports a call.

    It does not support a recursive snapshot of a subvolume inside itself. Without privilege it does not delete deeper
    than one level, and in post-order returns the info of the wrong subvolume.
    """
    name, arguments, options = call
    if user and options.get("info") and options.get("post_order"):
        return False
    if not options.get("recursive"):
        return True
    if name == "create_snapshot":
        source, dest = arguments
        return source not in (".", "") and not f"{dest}/".startswith(f"{source}/")
    return not user


def cleaned_meanwhile(*answers: Any) -> bool:
    """
    Return whether one answer describes a deleted subvolume, and another says that it is not found, because the kernel
    cleaned it in between.
    """
    deleted = any(isinstance(answer, list) and answer[1:3] == [0, 0] for answer in answers)
    gone = any(isinstance(answer, dict) and answer.get("code") == ERROR_SUBVOLUME_NOT_FOUND for answer in answers)
    return deleted and gone


@pytest.mark.parametrize("user", ["", "nobody"])
def test_the_same(user: str, btrfs_mount: Callable[..., Path]) -> None:
    """
    A random sequence of calls has the same results, errors, codes, messages and names.
    """
    kinds = CHANGES * 2 + QUESTIONS + ([] if user else PRIVILEGED)
    mounts = btrfs_mount(1 << 30), btrfs_mount(1 << 30)
    with both(*mounts, user) as peers:

        @settings(max_examples=40)
        @given(st.lists(st.one_of(kinds).filter(lambda call: comparable(call, user)), min_size=5, max_size=25))
        def run(sequence: list[Call]) -> None:
            for one in peers:
                one.begin(NOBODY if user else 0)
            try:
                for call in sequence:
                    theirs, ours = (one.call(call) for one in peers)
                    assert ours == theirs or cleaned_meanwhile(ours, theirs), call
            finally:
                for one in peers:
                    one.end()

        run()


def test_a_deleted_subvolume_is_described_until_it_is_cleaned(btrfs_mount: Callable[..., Path]) -> None:
    """
    Both find a deleted subvolume by its id, without a parent, until the kernel has cleaned it.
    """
    mounts = btrfs_mount(1 << 30), btrfs_mount(1 << 30)
    with both(*mounts) as peers:
        for one in peers:
            one.begin(0)
        call: Call = ("subvolume_info", [".", 1003], {})
        held = [os.open(one.mount / "base/a/b/c", os.O_RDONLY) for one in peers]
        for one in peers:
            subvolume.delete(one.mount / "base/a/b/c")
        theirs, ours = (one.call(call) for one in peers)
        assert ours == theirs
        assert ours[:3] == [1003, 0, 0]
        for fd, one in zip(held, peers, strict=True):
            os.close(fd)
            while next(subvolume.iterate_deleted(one.mount), None):
                filesystem.sync(one.mount)
            answers = [peer.call(call) for peer in peers]
            assert cleaned_meanwhile(*answers) == (one is peers[0])
        assert answers[0] == answers[1]
        for one in peers:
            one.end()


def test_the_same_about_the_same(base: Path) -> None:
    """
    For the same tree both return the same in every field, by path and by id, in pre-order and post-order.
    """
    make(base, "a", "a/b", "directory/c", "directory/c/d", *(f"many/{number}" for number in range(300)))
    make(base, "many/7/late", "many/200/late", "many/200/late/later", "e-n")
    subvolume.snapshot(base / "a", base / "e", read_only=True)
    filesystem.sync(base)
    subvolid = subvolume.get_id(base / "a/b")
    with both(base, base) as peers:
        for name, arguments, options in (
            ("subvolume_info", [str(base)], {}),
            ("subvolume_info", [str(base / "e")], {}),
            ("subvolume_info", [str(base), subvolid], {}),
            ("subvolume_info", [str(base), 5], {}),
            ("subvolume_path", [str(base), subvolid], {}),
            ("SubvolumeIterator", [str(base)], {}),
            ("SubvolumeIterator", [str(base)], {"info": True}),
            ("SubvolumeIterator", [str(base)], {"info": True, "post_order": True}),
            ("SubvolumeIterator", [str(base), 5], {"post_order": True}),
            ("SubvolumeIterator", [str(base), 5], {"info": True}),
            ("SubvolumeIterator", [str(base / "directory"), subvolid], {}),
        ):
            theirs, ours = (one.ask(name, *arguments, how="exactly", **options) for one in peers)
            assert ours == theirs
            assert "error" not in ours


def test_the_same_about_what_is_deleted(base: Path) -> None:
    """
    For a deleted subvolume that is open, and so cannot be cleaned, both return the same.
    """
    make(base, "gone", "stays")
    with subvolume.Subvolume(base / "gone"), both(base, base) as peers:
        subvolid = subvolume.get_id(base / "gone")
        subvolume.delete(base / "gone")
        filesystem.sync(base)
        theirs, ours = (one.ask("deleted_subvolumes", str(base), how="exactly") for one in peers)
        assert {subvolid} <= {*ours} <= {*theirs}  # others may be cleaned in between
        for name, *arguments in (
            ("subvolume_info", str(base), subvolid),
            ("subvolume_path", str(base), subvolid),
            ("SubvolumeIterator", str(base)),
        ):
            theirs, ours = (one.ask(name, *arguments, how="exactly") for one in peers)
            assert ours == theirs
