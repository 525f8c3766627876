"""
Stores of the tests of commands.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapshotter import Snapshotter, cli
from snapshotter.analysis import containerd, references
from snapshotter.analysis.references import User
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Shown
from tests.snapshotter.serving import serving

USERS = [
    User(
        "image",
        "default",
        "sha256:aaa1",
        "docker.io/library/alpine:latest",
        references._familiar("docker.io/library/alpine:latest"),
    ),
    User("image", "k8s.io", "sha256:aaa2", "example.org/tool:1"),
    User("image", "k8s.io", "sha256:aaa2", "sha256:0123"),
    User("container", "default", "web", "web"),
    User(
        "container",
        "k8s.io",
        "f00d",
        "f00d",
        references._names({"io.kubernetes.pod.name": "pod", "io.kubernetes.container.name": "app"}),
    ),
    User("container", "default", "gone", "gone"),
]


@pytest.fixture(params=["alone", "served"])
def way(request: pytest.FixtureRequest) -> str:
    """
    The way from the command to its store.
    """
    return str(request.param)


@pytest.fixture
def root(btrfs: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> Iterator[str]:
    """
    An empty store, which the environment names.
    """
    path = str(btrfs / "store")
    monkeypatch.setenv("SNAPSHOTTER_ROOT", path)
    Snapshotter.create(path).close()
    with ExitStack() as stack:
        if way == "served":
            server = stack.enter_context(serving())
            server.open(stack.enter_context(Snapshotter(path, client=None, socket=server.address)))
        yield path


@pytest.fixture
def filled(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    A store with an active "web" on a committed "base", both with a file, and views of "base" and of nothing.
    """
    path = str(btrfs / "store")
    with Snapshotter.create(path) as store:
        with mounted(store.prepare("build")) as content:
            Path(content, "file").write_text("content")
        store.commit("base", "build")
        store.prepare("web", "base")
        store.view("v", "base")
        store.view("nothing")
    monkeypatch.setenv("SNAPSHOTTER_ROOT", path)
    return path


@pytest.fixture
def web_store(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Snapshotter]:
    """
    A store, held open, with a layer "base", its child "web" with 8 KiB, and a view; the environment names it.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("build")
        store.commit("base", "build", {"a": "b=c"})
        store.prepare("web", "base", {"owner": "me"})
        store.view("v", "base")
        store.cleanup()
        with mounted(store.mounts("web")) as path, open(f"{path}/file", "wb") as file:
            file.write(bytes(8000))
            file.flush()
            os.fsync(file.fileno())
        monkeypatch.setenv("SNAPSHOTTER_ROOT", str(btrfs / "store"))
        yield store


@pytest.fixture
def shown(web_store: Snapshotter, capsys: pytest.CaptureFixture[str]) -> Shown:
    """
    Runs a command that succeeds, and gives what it printed.
    """

    def run(*argv: str) -> str:
        assert cli.main(argv) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def containerds(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    A store of containerd, whose answers are `USERS`.
    """
    root = str(btrfs / "store")
    with Snapshotter.create(root, client="plugin") as store:
        for number, namespace, name, key in (
            (1, "default", "sha256:aaa1", "unpack1"),
            (2, "k8s.io", "sha256:aaa2", "unpack2"),
        ):
            store.prepare(key)
            store.commit(f"{namespace}/{number}/{name}", key)
        store.prepare("default/3/web", "default/1/sha256:aaa1")
        store.prepare("k8s.io/4/f00d", "k8s.io/2/sha256:aaa2")
        store.prepare("default/5/web-init")
    monkeypatch.setenv("SNAPSHOTTER_ROOT", root)
    monkeypatch.setattr(containerd, "SOCKETS", (root,))
    monkeypatch.setattr(references, "users", lambda address, client: USERS)
    return root
