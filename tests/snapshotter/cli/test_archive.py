"""
``snapshotter export`` and ``import``.
"""

import gzip
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from snapshotter import Snapshotter
from snapshotter.archive import tar
from tests.snapshotter.cli.commands import Run
from tests.snapshotter.serving import serving

pytestmark = pytest.mark.btrfs

COMMAND = [sys.executable, "-m", "snapshotter"]


@pytest.fixture
def served(filled: str) -> Iterator[str]:
    """
    The same store, held by the daemon.
    """
    with serving() as server, Snapshotter(filled, client=None, socket=server.address) as store:
        server.open(store)
        yield filled


class TestExport:
    @pytest.mark.parametrize("key", ["base", "v", "web"])
    def test_file(self, filled: str, run: Run, tmp_path: Path, key: str) -> None:
        """
        export writes a tar that nobody else can read, in place of what was there.
        """
        file = tmp_path / "x.tar"
        file.write_text("old")
        file.chmod(0o644)
        assert run("export", key, str(file)) == (0, "", "")
        with tarfile.open(file) as tar:
            assert tar.getnames() == [".", "file"]
        assert file.stat().st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == ["x.tar"]

    def test_streams(self, filled: str, tmp_path: Path) -> None:
        """
        export writes to a pipe, and import reads from one; neither fills a terminal.
        """
        tar = subprocess.run([*COMMAND, "export", "base", "-"], stdout=subprocess.PIPE, check=True).stdout
        subprocess.run([*COMMAND, "import", "copy", "-"], input=gzip.compress(tar), check=True)
        again = subprocess.run([*COMMAND, "export", "copy", "/dev/stdout"], stdout=subprocess.PIPE, check=True).stdout
        assert again == tar
        ours, theirs = os.openpty()
        try:
            for argv in (["export", "base", "-"], ["import", "x", "-"]):
                ran = subprocess.run([*COMMAND, *argv], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
                assert ran.returncode == 2
                assert b"terminal" in ran.stderr
        finally:
            os.close(ours)
            os.close(theirs)

    def test_closed_pipe(self, filled: str) -> None:
        """
        Who closes the pipe early gets no complaint.
        """
        reader, writer = os.pipe()
        os.close(reader)
        try:
            ran = subprocess.run([*COMMAND, "export", "base", "-"], stdout=writer, stderr=subprocess.PIPE)
        finally:
            os.close(writer)
        assert (ran.returncode, ran.stderr) == (1, b"")

    def test_refused(self, filled: str, run: Run, tmp_path: Path) -> None:
        """
        A missing snapshot and an unwritable file are errors of one line, and leave no file.
        """
        for argv, code, text in (
            ("none x", 4, "'none' does not exist"),
            ("base no/where", 1, f"No such file or directory: '{tmp_path}/no/where'"),
            ("base /dev/full", 1, "No space left"),
            ("base .", 1, "Is a directory"),
        ):
            key, file = argv.split()
            refused = run("export", key, str(tmp_path / file))
            assert (refused.code, refused.out) == (code, ""), argv
            assert text in refused.err
        assert os.listdir(tmp_path) == []

    def test_interrupted(self, filled: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Ctrl-C leaves the old file, and no part of a new one.
        """

        def interrupt(store: Snapshotter, key: str, stream: IO[bytes]) -> None:
            stream.write(b"half")
            os.kill(os.getpid(), signal.SIGINT)
            stream.write(b"half")

        monkeypatch.setattr(tar, "save", interrupt)
        (tmp_path / "x.tar").write_text("old")
        assert run("export", "base", str(tmp_path / "x.tar")) == (130, "", "snapshotter: interrupted\n")
        assert os.listdir(tmp_path) == ["x.tar"]
        assert (tmp_path / "x.tar").read_text() == "old"


class TestImport:
    @pytest.fixture(params=["filled", "served"])
    def where(self, request: pytest.FixtureRequest) -> str:
        """
        The store, alone with the command or held by the daemon.
        """
        return str(request.getfixturevalue(request.param))

    @pytest.fixture
    def tar(self, where: str, run: Run, tmp_path: Path) -> str:
        """
        An export of "base".
        """
        assert run("export", "base", str(tmp_path / "x.tar")).code == 0
        return str(tmp_path / "x.tar")

    def test_import(self, where: str, tar: str, run: Run, tmp_path: Path) -> None:
        """
        import makes a committed snapshot of a tar, with labels, on a parent or on nothing; its export is the same tar.
        """
        assert run("import", "copy", tar, "--label", "a=b") == (0, "", "")
        assert run("import", "top", tar, "base") == (0, "", "")
        with Snapshotter(where, read_only=True) as store:
            copy, top = store.stat("copy"), store.stat("top")
            assert len(list(store.walk())) == 6
        assert (str(copy.kind), copy.parent, copy.labels) == ("Committed", "", {"a": "b"})
        assert (str(top.kind), top.parent, top.labels) == ("Committed", "base", {})
        for key in ("copy", "top"):
            assert run("export", key, str(tmp_path / "y.tar")).code == 0
            assert (tmp_path / "y.tar").read_bytes() == Path(tar).read_bytes()

    def test_refused(self, where: str, tar: str, run: Run, tmp_path: Path) -> None:
        """
        A refused import leaves no snapshot.
        """
        Path(tar).with_name("cut").write_bytes(Path(tar).read_bytes()[:1024])
        before = os.listdir(f"{where}/snapshots")
        for argv, code, text in (
            ("base x.tar", 1, "snapshot 'base' already exists"),
            ("x x.tar none", 4, "'none' does not exist"),
            ("x x.tar web", 2, "'web' is not committed"),
            ("x none.tar", 1, "No such file"),
            ("x cut", 2, "the stream is not a tar, or is damaged: "),
        ):
            key, file, *parent = argv.split()
            refused = run("import", key, str(tmp_path / file), *parent)
            assert (refused.code, refused.out) == (code, ""), argv
            assert text in refused.err
        assert os.listdir(f"{where}/snapshots") == before

    def test_interrupted(self, where: str, tar: str, run: Run, tmp_path: Path) -> None:
        """
        Ctrl-C while the tar is waited for leaves nothing of the import.
        """
        before = os.listdir(f"{where}/snapshots")
        os.mkfifo(tmp_path / "fifo")

        def begin() -> None:
            with open(tmp_path / "fifo", "wb") as fifo:
                fifo.write(Path(tar).read_bytes()[:1024])
                fifo.flush()
                os.kill(os.getpid(), signal.SIGINT)
                ended.wait()

        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            beginning = pool.submit(begin)
            try:
                assert run("import", "x", str(tmp_path / "fifo")) == (130, "", "snapshotter: interrupted\n")
            finally:
                ended.set()
            beginning.result()
        assert os.listdir(f"{where}/snapshots") == before


def test_import_for_containerd(btrfs: Path, run: Run, tmp_path: Path) -> None:
    """
    Nothing is imported into a store of containerd's.
    """
    with Snapshotter.create(btrfs / "s", client="btrfs") as store:
        store.prepare("a")
    (tmp_path / "x").touch()
    refused = run("import", "x", str(tmp_path / "x"), "--root", str(btrfs / "s"))
    assert refused.code == 1
    assert "containerd's garbage collection" in refused.err
