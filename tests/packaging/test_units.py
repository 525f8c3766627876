"""
The units: how little they may do, and that it is enough.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybtrfs import filesystem, ioctl, subvolume, syscall
from pybtrfs.path import owned
from snapshotter import Snapshotter
from snapshotter.client import Client
from snapshotter.daemon.config import Config
from snapshotter.errors import Error, InvalidArgumentError
from snapshotter.model import Mount
from snapshotter.mounting import mounted
from snapshotter.setup import unit_files
from tests import multidevice
from tests.namespaces import thread_namespace
from tests.packaging import sandbox

EXPOSURE = 2.5
SNAPSHOTTER = Path(sys.executable).parent / "snapshotter"
SERVICE, SOCKET = unit_files.NAMES
PATIENCE = 30
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # effective, CAP_NET_BIND_SERVICE

ISOLATED = ("unshare", "--mount", "--propagation", "slave", "--")
ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "packaging/systemd"


def test_units_are_those_of_the_package() -> None:
    """
    The units as they are need no filling in: they are those for the default root and socket.
    """
    for name in unit_files.NAMES:
        assert (UNITS / name).read_text() == unit_files.text(name, Config().root, Config().address)


def test_verified(tmp_path: Path) -> None:
    """
    systemd finds nothing wrong with the units, whatever the paths are.
    """
    root, address = str(tmp_path / 'a "b" %n $HOME \\x é'), str(tmp_path / "s %t.sock")
    for name in unit_files.NAMES:
        (tmp_path / name).write_text(unit_files.text(name, root, address, (sys.executable, "-m", "snapshotter")))
    ran = subprocess.run(["systemd-analyze", "verify", *map(str, tmp_path.glob("b*"))], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_filled_in() -> None:
    """
    Root, socket and command stand wherever they matter, and no default is left.
    """
    service = unit_files.text(SERVICE, "/data/store", "/run/x.sock", ("/opt/bin/snapshotter",))
    values = sandbox.settings_of(service)
    assert values["ExecStart"] == ["/opt/bin/snapshotter serve --no-create --root /data/store --address /run/x.sock"]
    assert values["RequiresMountsFor"] == values["ReadWritePaths"] == ["/data/store"]
    assert "StateDirectory" not in values
    assert sandbox.settings_of(unit_files.text(SOCKET, "/data/store", "/run/x.sock"))["ListenStream"] == ["/run/x.sock"]


@pytest.mark.parametrize("path", ["/a\nExecStart=/bin/sh", "/\x00", "/\udcff"])
def test_unfit_paths(path: str) -> None:
    """
    A path that would end its line, or is not text, is refused.
    """
    for name, paths in ((SERVICE, (path, "/run/x.sock")), (SOCKET, ("/data", path))):
        with pytest.raises(InvalidArgumentError, match="a unit file cannot contain"):
            unit_files.text(name, *paths)


def test_exposure() -> None:
    """
    systemd's own figure for what a service may do to the host stays low; it is 9.6 for one that says nothing.
    """
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / SERVICE)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"exposure level for \S+: ([\d.]+)", shown)
    assert found
    assert float(found[1]) <= EXPOSURE, shown
    assert f"`systemd-analyze security` says {found[1]}," in (ROOT / "docs/containerd.md").read_text()


class Sandboxed:
    """
    A daemon with a store on *btrfs*, in the sandbox of its unit, without the capability *without*.
    """

    def __init__(self, btrfs: Path, directory: Path, without: str = "") -> None:
        self.root = btrfs / "store"
        Snapshotter.create(self.root).close()
        self.address = str(directory / "s.sock")
        self._log = directory / "log"
        unit = directory / SERVICE
        text = unit_files.text(SERVICE, str(self.root), self.address, (str(SNAPSHOTTER),))
        unit.write_text(re.sub(rf"\b{without}\b", "", text) if without else text)
        [command] = sandbox.settings_of(text)["ExecStart"]
        metrics = ["--metrics-address", str(directory / "m.sock"), "--log-format", "json"]
        inside = [sys.executable, str(ROOT / "tests/packaging/sandbox.py"), str(unit), str(self.root), str(directory)]
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
            socket.socket(socket.AF_UNIX) as listener,
            self._log.open("wb") as log,
        ):
            manager.bind(str(directory / "notify"))
            manager.settimeout(PATIENCE)
            listener.bind(self.address)
            listener.listen()
            self.process = subprocess.Popen(
                [*ISOLATED, *inside, str(listener.fileno()), *shlex.split(command), *metrics],
                env=os.environ | {"NOTIFY_SOCKET": str(directory / "notify")},
                pass_fds=[listener.fileno()],
                stderr=log,
            )
            try:
                while b"READY=1" not in manager.recv(4096):
                    pass
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"it does not start: {self._log.read_text()}") from None

    def log(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def ids(self) -> set[str]:
        return set(os.listdir(self.root / "snapshots"))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def elsewhere(mounts: tuple[Mount, ...], path: Path) -> Iterator[None]:
    """
    *mounts* in a mount namespace of its own that nothing comes out of, as a container's.
    """
    [mount] = mounts
    path.mkdir(exist_ok=True)
    command = f"mount -t btrfs -o {','.join(mount.options)} {mount.source} {path} && echo mounted && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        try:
            assert holder.stdout
            assert holder.stdin
            assert holder.stdout.readline() == b"mounted\n"
            yield
        finally:
            holder.stdin.close()
            holder.wait(PATIENCE)


def use(daemon: Sandboxed, client: Client, directory: Path) -> None:
    """
    All that a daemon does to a store, with what containers leave in it.
    """
    with mounted(client.prepare("build")) as path:
        rootfs = Path(path)
        (rootfs / "file").write_bytes(b"x" * 100_000)
        subvolume.create(rootfs / "nested")
        os.setxattr(rootfs / "nested", "trusted.overlay.opaque", b"y")
        os.chown(rootfs / "nested", 1000, 1000)
        os.chmod(rootfs / "nested", 0o2700)
        os.setxattr(rootfs / "nested", "security.capability", CAPABILITY)  # chown(2) takes it away
        os.chown(rootfs, 1000, 1000)
        os.chmod(rootfs, 0o500)
        make_deep(rootfs, "deep")
        (rootfs / "frozen").mkdir()
        subvolume.create(rootfs / "frozen/nested")
        set_flags(rootfs / "frozen", 0x10)
    set_flags(next((daemon.root / "snapshots").glob("*/fs")), 0x10)
    client.commit("base", "build")
    with mounted(client.view("look", "base")) as path:
        nested = os.stat(f"{path}/nested")
        assert (nested.st_mode & 0o7777, nested.st_uid, nested.st_gid) == (0o2700, 1000, 1000)
        assert os.getxattr(f"{path}/nested", "trusted.overlay.opaque") == b"y"
        assert os.getxattr(f"{path}/nested", "security.capability") == CAPABILITY
        assert not any(subvolume.children(path))
        assert os.stat(f"{path}/frozen/nested").st_ino > 256
    assert client.usage("base").size >= 100_000
    client.prepare("web", "base")
    assert client.usage("web").size == 0
    assert client.stat("web").parent == "base"
    with mounted(client.mounts("web")) as path:
        subvolume.create(f"{path}/nested-2")
        (Path(path) / "nested-2/file").write_text("content" * 1000)
        make_deep(Path(path), "deep-2")
        filesystem.sync(path)
    assert client.usage("web").size >= 7000
    client.remove("web")
    client.cleanup()
    wait_for(lambda: len(daemon.ids()) == 2)
    # A subvolume waits while it is mounted, here, in the namespace of a container, or in that of a single thread.
    [third] = client.prepare("thread", "base")
    with (
        mounted(client.prepare("here", "base")),
        elsewhere(client.prepare("there", "base"), directory / "elsewhere"),
        thread_namespace(lambda: syscall.mount(third.source, "/mnt", "btrfs", 0, third.options[0])),
    ):
        for key in ("here", "there", "thread"):
            client.remove(key)
        client.cleanup()
        held = [entry for entry in daemon.log() if entry["event"] == "held"]
        assert len(held) == 3
        assert all("Device or resource busy: mounted at /" in entry["error"] for entry in held)
        assert len(daemon.ids()) == 5
    client.cleanup()
    for key in ("look", "base"):
        client.remove(key)
    client.cleanup()
    wait_for(lambda: not daemon.ids())


def make_deep(directory: Path, name: str) -> None:
    """
    Make a subvolume at a path that exceeds PATH_MAX.
    """
    with contextlib.ExitStack() as stack:
        (directory / name).mkdir()
        fd = stack.enter_context(owned(os.open(directory / name, os.O_RDONLY)))
        for _ in range(20):
            os.mkdir("n" * 250, dir_fd=fd)
            fd = stack.enter_context(owned(os.open("n" * 250, os.O_RDONLY, dir_fd=fd)))
        subvolume.create((fd, "nested"))


def set_flags(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        ioctl.setflags(fd, flags)
    finally:
        os.close(fd)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


CAPABILITIES = sandbox.settings_of((UNITS / SERVICE).read_text())["CapabilityBoundingSet"][0].split()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.btrfs
def test_sandbox(btrfs: Path, directory: Path) -> None:
    """
    Under the unit's restrictions everything works, and mounts of the host and of containers are seen.
    """
    daemon = Sandboxed(btrfs, directory)
    try:
        with Client(daemon.address) as client:
            use(daemon, client, directory)
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.connect(str(directory / "m.sock"))
            scraper.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"snapshotter_operations_total" in scraper.makefile("rb").read()
    finally:
        code = daemon.stop()
    assert code == 0
    assert not [entry for entry in daemon.log() if entry["level"] in ("warning", "error")]


@pytest.mark.btrfs
@pytest.mark.parametrize("lost", [1, 2])
def test_degraded(lost: int, tmp_path: Path, directory: Path) -> None:
    """
    Under the unit's restrictions mounts name a device that is present.
    """
    with multidevice.degraded(tmp_path, lost) as root:
        daemon = Sandboxed(root, directory)
        try:
            with Client(daemon.address) as client, mounted(client.prepare("a")) as path:
                assert subvolume.is_subvolume(path)
        finally:
            code = daemon.stop()
        assert code == 0


@pytest.mark.btrfs
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_capability_is_needed(capability: str, btrfs: Path, directory: Path) -> None:
    """
    Without any one of the unit's capabilities something fails.
    """
    daemon = Sandboxed(btrfs, directory, without=capability)
    try:
        with Client(daemon.address) as client, pytest.raises((Error, AssertionError)):
            use(daemon, client, directory)
    finally:
        daemon.stop()
