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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import pytest

from pybtrfs import filesystem, image, ioctl, subvolume, syscall
from pybtrfs.path import owned
from snapshotter import Snapshotter
from snapshotter.client import Client
from snapshotter.daemon.config import Config
from snapshotter.errors import DataLossError, Error, InvalidArgumentError, UnavailableError
from snapshotter.model import Mount
from snapshotter.mounting import mounted
from snapshotter.setup import rootless, unit_files
from tests import multidevice
from tests.faults import mounts
from tests.faults.disk import Disk
from tests.namespaces import thread_namespace
from tests.packaging import sandbox

EXPOSURE = 2.5
SNAPSHOTTER = Path(sys.executable).parent / "snapshotter"
SERVICE, SOCKET = unit_files.NAMES
PATIENCE = 30
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # effective, CAP_NET_BIND_SERVICE

IMPATIENT = (
    "import sys; from snapshotter import cli; from snapshotter.daemon import process; process.REOPEN_SECONDS = 1.0; "
    "sys.exit(cli.main(sys.argv[1:]))"
)
MS_SHARED = 1 << 20
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
    for name in (*unit_files.NAMES, rootless.UNIT):
        (tmp_path / name).write_text(unit_files.text(name, root, address, (sys.executable, "-m", "snapshotter")))
    (tmp_path / "containerd.service").write_text("[Service]\nExecStart=/bin/true\n")  # not every machine has one
    ran = subprocess.run(["systemd-analyze", "verify", *map(str, tmp_path.glob("b*"))], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_rootless_filled_in() -> None:
    """
    The unit of a user runs the command in the namespaces of containerd.
    """
    unit = unit_files.text(rootless.UNIT, "/home/u/store", "/run/user/1000/x.sock", ("/home/u/bin/snapshotter",))
    serve = "/home/u/bin/snapshotter serve --no-create --root /home/u/store --address /run/user/1000/x.sock"
    assert sandbox.settings_of(unit)["ExecStart"] == [
        f"/usr/bin/env containerd-rootless-setuptool.sh nsenter -- {serve}"
    ]


def test_filled_in() -> None:
    """
    Root, socket and command stand wherever they matter, and no default is left.
    """
    service = unit_files.text(SERVICE, "/data/store", "/run/x.sock", ("/opt/bin/snapshotter",))
    values = sandbox.settings_of(service)
    assert values["ExecStart"] == ["/opt/bin/snapshotter serve --no-create --root /data/store --address /run/x.sock"]
    assert values["RequiresMountsFor"] == values["ReadWritePaths"] == ["/data/store"]
    assert "StateDirectory" not in values
    assert values["StartLimitIntervalSec"] == ["0"]
    assert sandbox.settings_of(unit_files.text(SOCKET, "/data/store", "/run/x.sock"))["ListenStream"] == ["/run/x.sock"]


@pytest.mark.btrfs
def test_mount_is_writable(tmp_path: Path) -> None:
    """
    The service may write to the whole mount of the root, so that systemd binds no copy of a part of it.
    """
    syscall.mount("none", tmp_path, "tmpfs")
    try:
        for root in (tmp_path / "a/store", tmp_path):
            values = sandbox.settings_of(unit_files.text(SERVICE, str(root), "/run/x.sock"))
            assert values["ReadWritePaths"] == [str(tmp_path)]
    finally:
        syscall.umount2(tmp_path)


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
    A daemon with a store at *root* in the sandbox of its unit, without the capability *without*.

    Args:
        command: Starts the daemon.
        environ: Variables of the environment of the daemon.
    """

    def __init__(
        self,
        root: Path,
        directory: Path,
        *,
        without: str = "",
        command: tuple[str, ...] = (str(SNAPSHOTTER),),
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.root = root
        self.address = str(directory / "s.sock")
        self._directory = directory
        self._log = directory / "log"
        unit = directory / SERVICE
        text = unit_files.text(SERVICE, str(self.root), self.address, command)
        unit.write_text(re.sub(rf"\b{without}\b", "", text) if without else text)
        [started] = sandbox.settings_of(text)["ExecStart"]
        metrics = ["--metrics-address", str(directory / "m.sock"), "--log-format", "json"]
        inside = [sys.executable, str(ROOT / "tests/packaging/sandbox.py"), str(unit), str(directory)]
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_UNIX) as listener, self._log.open("wb") as log:
            self.manager.bind(str(directory / "notify"))
            self.manager.settimeout(PATIENCE)
            listener.bind(self.address)
            listener.listen()
            self.process = subprocess.Popen(
                [*ISOLATED, *inside, str(listener.fileno()), *shlex.split(started), *metrics],
                env=os.environ | {"NOTIFY_SOCKET": str(directory / "notify")} | environ,
                pass_fds=[listener.fileno()],
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.manager.close()
        for name in ("s.sock", "notify"):
            (self._directory / name).unlink()

    def ready(self) -> None:
        try:
            self.notified("READY=1")
        except TimeoutError:
            pytest.fail(f"it does not start: {self.said()}")

    def notified(self, line: str) -> None:
        """
        Wait until the daemon has sent *line* to its manager.
        """
        while line not in self.manager.recv(4096).decode().splitlines():
            pass

    def log(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def said(self) -> str:
        return self._log.read_text()

    def ids(self) -> set[str]:
        return set(os.listdir(self.root / "snapshots"))

    def ended(self) -> int:
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()


@contextlib.contextmanager
def sandboxed(root: Path, directory: Path, **options: Any) -> Iterator[Sandboxed]:
    """
    Make a store at *root*, and run its daemon in the sandbox until it is stopped.
    """
    Snapshotter.create(root).close()
    with Sandboxed(root, directory, **options) as daemon:
        daemon.ready()
        yield daemon


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
    wait_for(lambda: client.usage("web").size >= 7000)  # up to a second later
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
    with sandboxed(btrfs / "store", directory) as daemon:
        with Client(daemon.address) as client:
            use(daemon, client, directory)
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.connect(str(directory / "m.sock"))
            scraper.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"snapshotter_operations_total" in scraper.makefile("rb").read()
        assert daemon.stop() == 0
    assert not [entry for entry in daemon.log() if entry["level"] in ("warning", "error")]


@pytest.mark.btrfs
@pytest.mark.parametrize("lost", [1, 2])
def test_degraded(lost: int, tmp_path: Path, directory: Path) -> None:
    """
    Under the unit's restrictions mounts name a device that is present.
    """
    with multidevice.degraded(tmp_path, lost) as root, sandboxed(root / "store", directory) as daemon:
        with Client(daemon.address) as client, mounted(client.prepare("a")) as path:
            assert subvolume.is_subvolume(path)
        assert daemon.stop() == 0


@pytest.mark.btrfs
def test_counters(tmp_path: Path, directory: Path) -> None:
    """
    Under the unit's restrictions the counters of devices decide about data that was refused before a restart.
    """
    devices = multidevice.make(tmp_path, 2, "raid1")
    root = tmp_path / "mount" / "store"

    def restarted(refusing: int | None = None) -> Iterator[Client]:
        with (
            multidevice.attached(*(Path(disk.directory, "fuse/disk") for disk in disks)) as loops,
            multidevice.mounted(tmp_path / "mount", *(loop.path for loop in loops)),
        ):
            if not root.exists():
                Snapshotter.create(root).close()
            with Sandboxed(root, directory) as daemon, Client(daemon.address) as client:
                daemon.ready()
                yield client
                if refusing is not None:
                    refuse_data(disks[refusing], client)
                assert daemon.stop() == 0

    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(Disk(str(path))) for path in devices]
        for client in restarted(refusing=1):
            for key in ("a", "b"):
                client.prepare(key)
        for client in restarted(refusing=0):
            client.commit("harmless", "a")
        for client in restarted():
            with pytest.raises(DataLossError, match="the disk may have refused data of snapshot 'b'"):
                client.commit("lost", "b")


def refuse_data(disk: Disk, client: Client) -> None:
    """
    Write to the snapshot "b" while *disk* refuses data.
    """
    with mounted(client.mounts("b")) as path, (Path(path) / "file").open("wb") as file:
        disk.refuse("data EIO")
        file.write(os.urandom(1 << 20))
        file.flush()
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
        disk.refuse()


@pytest.mark.btrfs
def test_cleanup(btrfs: Path, directory: Path) -> None:
    """
    Under the unit's restrictions Cleanup waits for the space of a removed subvolume whose file was open.
    """
    with sandboxed(btrfs / "store", directory) as daemon, Client(daemon.address) as client:
        client.prepare("a")
        [active] = (daemon.root / "snapshots").glob("*/fs")
        with (active / "file").open("wb") as file:
            file.write(b"x")
            subvolid = subvolume.get_id(active)
            client.remove("a")
            wait_for(lambda: not daemon.ids())
        client.cleanup()
        assert subvolid not in {deleted.id for deleted in subvolume.iterate_deleted(btrfs)}
        assert daemon.stop() == 0


@pytest.mark.btrfs
def test_held(btrfs: Path, directory: Path) -> None:
    """
    Under the unit's restrictions the holder of the store is found by its lock, not only by the text of the lock.
    """
    root = btrfs / "store"
    with Snapshotter.create(root):
        (root / "lock").write_text("")
        with Sandboxed(root, directory) as daemon:
            assert daemon.ended() == 3
            assert f"is held by process {os.getpid()} " in daemon.said()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = str(tmp_path / "base")
    image.create(path, 256 << 20, sparse=True)
    with Disk(path) as disk:
        yield disk


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """
    A directory whose mounts propagate into the sandbox, as those of a host with systemd.
    """
    path = tmp_path / "host"
    path.mkdir()
    syscall.mount(path, path, "", syscall.MS_BIND)
    syscall.mount("none", path, "", MS_SHARED)
    (path / "data").mkdir()
    yield path / "data"
    syscall.umount2(path)


@contextlib.contextmanager
def on(disk: Disk, point: Path) -> Iterator[None]:
    """
    Mount the btrfs of *disk*; at the end unmount it, and wait until no mount namespace has it any more.
    """
    with image.attach(f"{disk.directory}/fuse/disk") as device, mounts.mounted(device.path, str(point)):
        yield


def kill_filesystem(disk: Disk, client: Client) -> None:
    disk.refuse("write EIO", "flush EIO")
    with pytest.raises(UnavailableError):
        client.prepare("lost")


@pytest.mark.btrfs
def test_reopened(disk: Disk, host: Path, directory: Path) -> None:
    """
    Under the unit's restrictions a dead filesystem can be unmounted, and the store is reopened when it is back.
    """
    with contextlib.ExitStack() as stack:
        with on(disk, host):
            daemon = stack.enter_context(sandboxed(host / "store", directory, environ={"WATCHDOG_USEC": "300000"}))
            client = stack.enter_context(Client(daemon.address))
            client.prepare("kept")
            kill_filesystem(disk, client)
            daemon.notified(f"STATUS=waiting for the filesystem of {daemon.root}")
            assert not client.serving()
            assert [info.name for info in client.walk()] == ["kept"]
        disk.refuse()
        # The directory below the missing mount stays as it is, and the watchdog gets nothing.
        time.sleep(1.5)
        assert os.listdir(host) == []
        daemon.manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            daemon.manager.recv(4096)
        daemon.manager.settimeout(PATIENCE)
        with on(disk, host):
            daemon.notified(f"STATUS=serving {daemon.root}")
            daemon.notified("WATCHDOG=1")
            assert client.serving()
            client.prepare("new")
            assert daemon.stop() == 0
            with Snapshotter(daemon.root) as store:
                assert {info.name for info in store.walk()} == {"kept", "new"}


@pytest.mark.btrfs
def test_gone(disk: Disk, host: Path, directory: Path) -> None:
    """
    Under the unit's restrictions the daemon ends with code 1 if the filesystem does not come back.

    A restart below the missing mount makes no store, and serves the store once the filesystem is back.
    """
    root = host / "store"
    with on(disk, host), sandboxed(root, directory, command=(sys.executable, "-c", IMPATIENT)) as daemon:
        with Client(daemon.address) as client:
            client.prepare("kept")
            kill_filesystem(disk, client)
        assert daemon.ended() == 1
        assert "the store was not back within 1 s" in daemon.said().splitlines()[-1]
    disk.refuse()
    with Sandboxed(root, directory) as daemon:
        assert daemon.ended() == 4
    assert os.listdir(host) == []
    with on(disk, host), Sandboxed(root, directory) as daemon:
        daemon.ready()
        with Client(daemon.address) as client:
            assert [info.name for info in client.walk()] == ["kept"]
        assert daemon.stop() == 0


@pytest.mark.btrfs
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_capability_is_needed(capability: str, btrfs: Path, directory: Path) -> None:
    """
    Without any one of the unit's capabilities something fails.
    """
    with (
        sandboxed(btrfs / "store", directory, without=capability) as daemon,
        Client(daemon.address) as client,
        pytest.raises((Error, AssertionError)),
    ):
        use(daemon, client, directory)
