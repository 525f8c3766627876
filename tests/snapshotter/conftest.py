"""
Stores on both kinds of volumes: plain directories, and real btrfs.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from snapshotter import Mount, Snapshotter, cli
from snapshotter.client import Client
from snapshotter.mounting import mounted
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.cli.commands import Ran, Run
from tests.snapshotter.serving import serving


@pytest.fixture(scope="session", params=["directories", pytest.param("btrfs", marks=pytest.mark.btrfs)])
def backend(request: pytest.FixtureRequest) -> str:
    """
    The kind of `Volumes` that keeps the snapshots.
    """
    if request.param == "btrfs":
        request.getfixturevalue("btrfs_image")  # now, or the first test would be blamed for leaving it
    return str(request.param)


@pytest.fixture
def work(request: pytest.FixtureRequest, backend: str) -> Path:
    """
    An empty directory for roots, on the backend's filesystem.
    """
    fixture: Path = request.getfixturevalue("btrfs" if backend == "btrfs" else "tmp_path")
    return fixture


@pytest.fixture
def open_store(backend: str, work: Path) -> Iterator[Callable[..., Snapshotter]]:
    """
    A function that opens the test's store, having made it the first time; all are closed at the end.
    """
    volumes = BtrfsVolumes if backend == "btrfs" else DirectoryVolumes
    with ExitStack() as stack:

        def open_(root: Path = work / "root", **options: Any) -> Snapshotter:
            make = Snapshotter if root.exists() else Snapshotter.create
            return stack.enter_context(make(root, volumes=volumes, **options))

        yield open_


@pytest.fixture
def way() -> str:
    """
    The way to `store`: "library" or "rpc". A test of both ways has a fixture of its own.
    """
    return "library"


@pytest.fixture
def store(open_store: Callable[..., Snapshotter], way: str) -> Iterator[Snapshotter | Client]:
    """
    An empty store.
    """
    store = open_store()
    if way == "library":
        yield store
    else:
        with serving(store) as server, Client(server.address, snapshotter=store.client) as client:
            yield client


@pytest.fixture
def content(backend: str) -> Callable[[tuple[Mount, ...]], AbstractContextManager[Path]]:
    """
    A function that shows what mounts contain: mounted on btrfs, where the directory itself does, there.
    """

    @contextlib.contextmanager
    def open_(mounts: tuple[Mount, ...]) -> Iterator[Path]:
        if backend == "btrfs":
            with mounted(mounts) as path:
                yield Path(path)
        else:
            (mount,) = mounts
            yield Path(mount.source)

    return open_


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """
    Runs the command, of which a failure is one line, and JSON as the schema has it.
    """

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        code = cli.main(argv)
        out, err = capsys.readouterr()
        if err:
            assert err.startswith("snapshotter: ")
            assert err.count("\n") == 1
        if "--json" in argv and out:
            from tests.snapshotter.cli import schema  # here, because only these tests need jsonschema

            schema.check(argv[0], out)
        return Ran(code, out, err)

    return run


class Entry(NamedTuple):
    """
    All that a layer has to keep of one file.
    """

    mode: int
    owner: tuple[int, int]
    content: bytes | str  # of a regular file, or where a symlink leads
    links: tuple[str, ...]  # every name of the same file
    xattrs: dict[str, bytes]


def entries(root: Path) -> dict[str, Entry]:
    """
    Everything below and including *root*, by relative path.
    """
    paths = {".": root} | {str(path.relative_to(root)): path for path in root.rglob("*")}
    names: dict[int, list[str]] = {}
    for name, path in paths.items():
        names.setdefault(path.lstat().st_ino, []).append(name)

    def entry(path: Path) -> Entry:
        status = path.lstat()
        content: bytes | str = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        owner = (status.st_uid, status.st_gid)
        return Entry(status.st_mode, owner, content, tuple(sorted(names[status.st_ino])), xattrs)

    return {name: entry(path) for name, path in paths.items()}


@pytest.fixture
def layers(root: str, run: Run) -> str:
    """
    The store *root* with a layer "base", its child "web" with a file, and a view.
    """
    for argv in (
        "prepare build",
        "commit base build --label a=b=c",
        "prepare web base --label owner=me",
        "view v base",
    ):
        assert run(*argv.split()).code == 0
    with Snapshotter(root, read_only=True) as store, mounted(store.mounts("web")) as path:
        Path(path, "file").write_bytes(bytes(5000))
        os.sync()
    return root
