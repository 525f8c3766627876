"""
Real containerd with the real daemon, on a btrfs of their own.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import syscall
from snapshotter.setup.containerd import installed

from . import images
from .builds import CONTAINERD, DEBIAN, MODULES, UnavailableError, binaries
from .images import Image
from .needed import needed
from .processes import Containerd, Daemon
from .registry import Registry, served

RELEASES = [DEBIAN, *(name for name, module in MODULES.items() if module.commands == CONTAINERD)]


def _chosen(config: pytest.Config) -> list[str]:
    names: list[str] = config.getoption("--containerd").split(",")
    if names == ["all"]:
        return RELEASES
    if unknown := set(names) - set(RELEASES):
        raise pytest.UsageError(f"--containerd: {', '.join(unknown)} is not one of {', '.join(RELEASES)}, all")
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "release" in metafunc.fixturenames:
        metafunc.parametrize("release", _chosen(metafunc.config), indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = [item for item in items if isinstance(item, pytest.Function) and _is_unwanted(item)]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [item for item in items if item not in unwanted]


def _is_unwanted(item: pytest.Function) -> bool:
    if "buildkit" in item.fixturenames and not item.config.getoption("--buildkit"):
        return True
    since = item.get_closest_marker("since")
    return since is not None and _version(item.callspec.params["release"]) < since.args


@cache
def _version(release: str) -> tuple[int, ...]:
    if release == DEBIAN:
        with contextlib.suppress(UnavailableError):  # the test then says so
            return installed(str(binaries(DEBIAN) / "containerd"))
        return (1,)
    return tuple(map(int, MODULES[release].version.removeprefix("v").split(".")))


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and "release" in item.fixturenames:
        parameters = dict(item.callspec.params)
        release = parameters.pop("release")
        scenario = [item.path.stem, item.originalname, *map(str, parameters.values())]
        item.user_properties += [("release", release), ("scenario", " ".join(scenario).replace("test_", ""))]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """
    Print a table of scenarios and releases if there were several releases.
    """
    chosen = _chosen(config)
    results: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(getattr(report, "user_properties", ()))  # the report of a failed collection has none
            if "release" in properties:
                results.setdefault(properties["scenario"], {})[properties["release"]] = outcome
    if len(chosen) > 1 and results:
        width = max(map(len, results))
        terminalreporter.write_sep("=", "containerd")
        terminalreporter.write_line(" ".join([" " * width, *(f"{name:8}" for name in chosen)]).rstrip())
        for scenario, outcomes in results.items():
            cells = [f"{outcomes.get(name, '-'):8}" for name in chosen]
            terminalreporter.write_line(" ".join([scenario.ljust(width), *cells]).rstrip())


@pytest.fixture(scope="session")
def release(request: pytest.FixtureRequest) -> Path:
    """
    Return the directory with the commands of containerd, for each release that ``--containerd`` names.
    """
    return needed(binaries, request.param)


@pytest.fixture
def directory() -> Iterator[Path]:
    """
    Return an empty directory whose path is short enough for sockets.
    """
    with tempfile.TemporaryDirectory(prefix="c-") as path:
        os.chmod(path, 0o711)  # the root of a user namespace must be able to enter
        yield Path(path)


@pytest.fixture
def filesystem(btrfs_mount: Callable[..., Path]) -> Iterator[Path]:
    """
    Mount a btrfs, which at the end must unmount without force.
    """
    mount = btrfs_mount(4 << 30)
    yield mount
    syscall.umount2(mount)


@pytest.fixture
def store_root(filesystem: Path) -> Path:
    """
    Return the root of the daemon's store.
    """
    return filesystem / "store"


@pytest.fixture
def prefix() -> list[str]:
    """
    Return the command that runs the daemon and containerd: none.
    """
    return []


@pytest.fixture
def daemon(store_root: Path, directory: Path, prefix: list[str]) -> Iterator[Daemon]:
    """
    Start the daemon, which at the end must exit with 0.
    """
    process = Daemon(store_root, directory, prefix)
    try:
        process.start()
        yield process
        assert process.stop() == 0
    finally:
        process.kill()
        print(process.log.read_text())


@pytest.fixture
def containerd_options() -> dict[str, Any]:
    """
    Return the options of containerd: without CRI, all files in the test's directory.
    """
    return {}


@pytest.fixture
def containerd(
    release: Path, daemon: Daemon, directory: Path, containerd_options: dict[str, Any], prefix: list[str]
) -> Iterator[Containerd]:
    """
    Start containerd, which at the end must exit with 0 and leave nothing.
    """
    process = Containerd(release, daemon, directory, prefix=prefix, **containerd_options)
    try:
        process.start()
        yield process
        assert process.stop() == 0
    finally:
        process.kill()
        left = process.clear()
        print(process.log.read_text())
    assert not left


@pytest.fixture
def emptied(containerd: Containerd, daemon: Daemon) -> Iterator[Containerd]:
    """
    Start containerd, and at the end remove everything down to the last subvolume.
    """
    yield containerd
    containerd.remove_everything()
    assert daemon.snapshots() == {}
    daemon.check_store()


@pytest.fixture(scope="session")
def image() -> Image:
    """
    Return an image with every kind of file.
    """
    return images.every_kind("example.org/every-kind:1")


@pytest.fixture
def registry() -> Iterator[Registry]:
    """
    Start a registry without images on this machine.
    """
    with served() as serving:
        yield serving
