"""
The daemon as a process: how it starts, what it answers from the first moment, and how it ends.
"""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import image, subvolume, syscall
from snapshotter import Kind, Snapshotter
from snapshotter.client import Client
from snapshotter.errors import Error, NotFoundError, UnavailableError
from snapshotter.mounting import mounted
from tests.faults.workload import STORE, Workload, verify
from tests.snapshotter.cli.commands import Run

pytestmark = pytest.mark.btrfs

PATIENCE = 60.0  # seconds for what happens at once, on a machine that has other things to do
RUN = "import sys; from snapshotter import cli; sys.exit(cli.main(sys.argv[1:]))"

# Code that a process runs before the daemon; `gate(name)` waits there until the test opens it.
GATES = """
import os, sys
from snapshotter.daemon import process
from snapshotter.store import recovery
from snapshotter.store.btrfs import BtrfsVolumes
def gate(name):
    open(os.path.join(os.environ["GATES"], name)).close()
"""
SLOW_RECOVERY = (
    GATES
    + """
survey = recovery.survey
def slow(*args, **options):
    gate("recovery")
    yield from survey(*args, **options)
recovery.survey = slow
"""
)
SLOW_PREPARE = (
    GATES
    + """
create = BtrfsVolumes.create
def slow(*args):
    print("preparing", flush=True)
    gate("prepare")
    create(*args)
BtrfsVolumes.create = slow
"""
)

# By gRPC's own client, which reads an answer also when the connection ends behind it.
PREPARE = """
import sys, grpc
from snapshotter.api import snapshots_pb2 as pb
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    prepare = channel.unary_unary(
        "/containerd.services.snapshots.v1.Snapshots/Prepare",
        pb.PrepareSnapshotRequest.SerializeToString,
        pb.PrepareSnapshotResponse.FromString,
    )
    print(len(prepare(pb.PrepareSnapshotRequest(snapshotter="local", key="a"), timeout=60).mounts), "mount")
"""

# As systemd does it: the socket becomes descriptor 3, and the variables name the process itself.
ACTIVATED = """
import os, sys
count = int(sys.argv[1])
os.environ |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
for target, fd in enumerate(map(int, sys.argv[2 : 2 + count]), 3):
    os.dup2(fd, target)
os.execv(sys.executable, [sys.executable, "-m", "snapshotter", *sys.argv[2 + count :]])
"""


class Daemon:
    """
    A daemon in a process of its own.
    """

    def __init__(self, work: Path, root: Path) -> None:
        self.work = work
        self.root = root
        self.address = work / "run" / "s.sock"
        self.log = work / "log"
        self.process: subprocess.Popen[str] | None = None
        self._stack = contextlib.ExitStack()
        self.manager = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.manager.bind(str(work / "notify"))
        self.manager.settimeout(PATIENCE)

    def start(
        self, *flags: str, patch: str = "", prefix: tuple[str, ...] = (), umask: int = -1, **environ: str
    ) -> "Daemon":
        """
        Start the process, behind *prefix*; with code to *patch* it first.
        """
        defaults = {"NOTIFY_SOCKET": str(self.work / "notify"), "GATES": str(self.work)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*(prefix or (sys.executable, "-c", patch + RUN)), "serve", *self._where(flags), *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                umask=umask,
                pass_fds=[int(part) for part in prefix if part.isdecimal()][1:],
                env=os.environ | defaults | environ,
            )
        self._stack.callback(self._kill, self.process)
        return self

    def _where(self, flags: tuple[str, ...]) -> list[str]:
        given = {"--root": str(self.root), "--address": str(self.address)}
        return [part for name, value in given.items() if name not in flags for part in (name, value)]

    def told(self, line: str) -> None:
        """
        Wait until the daemon has told its manager *line*.
        """
        while line not in self.manager.recv(1000).decode().splitlines():
            pass

    def ready(self, *flags: str, **options: Any) -> "Daemon":
        self.start(*flags, **options)
        try:
            self.told("READY=1")
        except TimeoutError:
            pytest.fail(f"not ready: {self.log.read_text()}")
        return self

    def gate(self, name: str) -> Callable[[], None]:
        """
        Close a gate; gives the function that opens it.
        """
        path = self.work / name
        os.mkfifo(path)
        return lambda: path.open("w").close()

    def printed(self, line: str) -> None:
        """
        Wait until the process has printed *line*.
        """
        assert self.process and self.process.stdout
        assert self.process.stdout.readline() == line + "\n"

    def logged(self, event: str, times: int = 1) -> None:
        """
        Wait until the log has *event*.
        """
        while self.log.read_text().count(f" {event} ") < times:
            assert self.process and self.process.poll() is None, self.log.read_text()
            threading.Event().wait(0.01)

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def ended(self) -> int:
        assert self.process
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still runs: {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.ended()

    def refused(self, *flags: str, **options: Any) -> tuple[int, str]:
        """
        Start the daemon where it has to refuse; its exit code, and the one line that it says.
        """
        before = self.log.read_text() if self.log.exists() else ""
        code = self.start(*flags, **options).ended()
        said = self.log.read_text().removeprefix(before).splitlines()
        lines = [line for line in said if line.startswith("snapshotter: ")]
        assert len(lines) == 1, said
        assert "Traceback" not in "".join(said)
        return code, lines[0].removeprefix("snapshotter: ")

    def client(self, **options: Any) -> Client:
        return Client(self.address, timeout=PATIENCE, **options)

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def make(tmp_path: Path, btrfs: Path) -> Iterator[Callable[..., Daemon]]:
    """
    A function that makes a daemon for a root, by default one that is missing; it is killed after the test.
    """
    with contextlib.ExitStack() as stack:
        count = 0

        def make(root: Path = btrfs / "root") -> Daemon:
            nonlocal count
            count += 1
            work = tmp_path / str(count)
            work.mkdir()
            one = Daemon(work, root)
            stack.callback(one.close)
            return one

        yield make


@pytest.fixture
def one(make: Callable[..., Daemon]) -> Daemon:
    return make()


def test_command(one: Daemon, run: Run) -> None:
    """
    While the daemon has the store, the command works through it.
    """
    one.ready()
    for argv in (
        "prepare build",
        "commit base build",
        "prepare web base",
        "fork web copy",
        "label copy a=b",
        "rm base web copy",
        "cleanup",
    ):
        assert run("--root", str(one.root), *argv.split()).code == 0, argv
    assert run("--root", str(one.root), "doctor", "--fix").code == 3
    assert run("--root", str(one.root), "ls") == (0, "KEY  KIND  PARENT  CREATED\n", "")
    assert one.stop() == 0


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """
    What is in a directory, with mode and time of change; the place holder of a subvolume, of inode 2, has none.
    """
    found = ((each, each.lstat()) for each in (path, *path.rglob("*")))
    return {str(each): (status.st_mode, status.st_mtime_ns if status.st_ino != 2 else 0) for each, status in found}


def names(client: Client) -> set[str]:
    return {info.name for info in client.walk()}


def greeted(address: Path) -> socket.socket:
    """
    A connection that the daemon has sent its SETTINGS on.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(1.0)  # what containerd gives it
    connection.connect(str(address))
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    header = connection.recv(9, socket.MSG_WAITALL)
    assert header[3] == 4
    return connection


# -- starting


class TestRoot:
    @pytest.mark.parametrize("kind", ["missing", "empty", "subvolume"])
    def test_initialised(self, one: Daemon, kind: str) -> None:
        """
        A missing or an empty root becomes a store, which serves, and does so again after a restart.
        """
        if kind == "empty":
            one.root.mkdir()
        elif kind == "subvolume":
            subvolume.create(one.root)
        one.ready()
        assert subvolume.is_subvolume(one.root) == (kind != "empty")
        with one.client() as client:
            client.prepare("a")
        assert one.stop() == 0
        one.ready()
        with one.client() as client:
            assert names(client) == {"a"}
        assert one.stop() == 0

    def test_odd_names(self, make: Callable[..., Daemon], btrfs: Path) -> None:
        """
        Root and socket may have any name, and the manager is told nothing else by it.
        """
        one = make(btrfs / os.fsdecode(b"\xff\nREADY=1\xc3\xa9"))
        one.address = one.work / os.fsdecode(b"\xff\n.sock")
        one.start()
        one.told(f"STATUS=opening {btrfs}/\\udcff\\nREADY=1é")
        one.told("READY=1")
        with one.client() as client:
            client.prepare("a")
        assert ping(one)[0] == 0
        assert one.stop() == 0
        assert all(" info " in line for line in one.log.read_text().splitlines())

    def test_mount_point(self, make: Callable[..., Daemon], tmp_path: Path) -> None:
        """
        The root can be the mount point of a filesystem of its own; it is unmounted without force afterwards.
        """
        root = tmp_path / "root"
        root.mkdir()
        image.create(tmp_path / "image", 256 << 20, sparse=True)
        with image.mount(tmp_path / "image", root) as mount:
            one = make(root).ready()
            with one.client() as client, mounted(client.prepare("a")) as path:
                Path(path, "file").write_text("content")
            assert one.stop() == 0
            mount.unmount()

    def test_tightened(self, one: Daemon) -> None:
        """
        The root of an existing store is closed to others, and the log says so.
        """
        Snapshotter.create(one.root).close()
        one.root.chmod(0o755)
        one.ready()
        assert mode(one.root) == 0o700
        assert 'error="its mode was 0755"' in one.log.read_text()

    def test_held(self, one: Daemon, make: Callable[..., Daemon]) -> None:
        """
        A second daemon on the root names the first, which goes on, and leaves nothing behind.
        """
        one.ready()
        second = make()
        code, line = second.refused()
        assert one.process
        assert (code, line.partition("(")[0]) == (3, f"store '{one.root}' is held by process {one.process.pid} ")
        assert not second.address.parent.exists()
        assert json.loads((one.root / "lock").read_text())["socket"] == str(one.address)
        with one.client() as client:
            assert client.serving()

    def test_no_btrfs(self, make: Callable[..., Daemon], tmp_path: Path) -> None:
        """
        A root that is not on btrfs is refused, missing or empty, with what to do; it is not made, nor changed.
        """
        one = make(tmp_path / "root")
        for _ in range(2):
            before = tree(tmp_path / "root") if one.root.exists() else {}
            code, line = one.refused()
            assert code == 1
            assert line.endswith(
                "is not on btrfs: choose a directory that is, or make an image with `snapshotter init --image SIZE`"
            )
            assert (tree(one.root) if one.root.exists() else {}) == before
            assert not one.address.parent.exists()
            one.root.mkdir(exist_ok=True, mode=0o755)

    def test_something_else(self, one: Daemon) -> None:
        """
        A root that holds something else is refused, and stays as it is.
        """
        one.root.mkdir()
        (one.root / "file").touch()
        before = tree(one.root)
        assert one.refused() == (1, f"'{one.root}' is not empty: it holds 'file'")
        assert tree(one.root) == before

    def test_copy(self, make: Callable[..., Daemon], btrfs: Path) -> None:
        """
        A copy of a store is not served: the cure is named, and nothing touched.
        """
        with Snapshotter.create(btrfs / "original") as store:
            store.prepare("a")
        subvolume.snapshot(btrfs / "original", btrfs / "root")
        (btrfs / "root").chmod(0o755)
        before = tree(btrfs / "root")
        code, line = make().refused()
        assert (code, line) == (
            1,
            f"store '{btrfs / 'root'}' cannot be served: it is a copy of a store: make it a store with "
            "`snapshotter init --adopt`",
        )
        assert tree(btrfs / "root") == before

    @pytest.mark.parametrize("made", [False, True])
    def test_inherited(self, make: Callable[..., Daemon], btrfs: Path, tmp_path: Path, made: bool) -> None:
        """
        A mount whose options containers would inherit is refused in the bind mode, and fine in the other.
        """
        point = tmp_path / "point"
        point.mkdir()
        syscall.mount(btrfs, point, "", syscall.MS_BIND)
        try:
            flags = syscall.MS_NOSUID | syscall.MS_NODEV
            syscall.mount("", point, "", syscall.MS_REMOUNT | syscall.MS_BIND | flags)
            if made:
                Snapshotter.create(point / "root").close()
            before = tree(point)
            one = make(point / "root")
            code, line = one.refused("--mount-mode", "bind")
            assert code == 1
            assert line.startswith(f"'{one.root}' is mounted nosuid,nodev, which containers would inherit: ")
            assert tree(point) == before
            assert one.ready("--mount-mode", "btrfs").stop() == 0
        finally:
            syscall.umount2(point)


class TestSocket:
    @pytest.mark.parametrize("umask", [0, 0o022, 0o777])
    def test_modes(self, one: Daemon, umask: int) -> None:
        """
        The socket is root's alone, and so is a directory that is made for it, whatever the umask.
        """
        one.ready(umask=umask)
        assert (mode(one.address), mode(one.address.parent), mode(one.root)) == (0o600, 0o700, 0o700)
        assert one.stop() == 0
        assert not one.address.parent.exists()

    def test_default_acl(self, one: Daemon, btrfs: Path) -> None:
        """
        It is so too where the directory gives to everybody what is made in it.
        """
        everybody = struct.pack("<I" + 3 * "HHI", 2, 0x01, 7, 2**32 - 1, 0x04, 7, 2**32 - 1, 0x20, 7, 2**32 - 1)
        os.setxattr(btrfs, "system.posix_acl_default", everybody)
        one.ready("--address", str(btrfs / "s.sock"))
        assert mode(btrfs / "s.sock") == 0o600

    def test_directory(self, one: Daemon) -> None:
        """
        A directory that is there stays as it is; one above it is not made.
        """
        one.address.parent.mkdir(mode=0o751)
        before = mode(one.address.parent)
        assert one.ready().stop() == 0
        assert (mode(one.address.parent), os.listdir(one.address.parent)) == (before, [])
        code, line = one.refused("--address", f"{one.work}/no/such/s.sock")
        assert (code, line) == (4, f"'{one.work}/no' does not exist: make it first")
        code, line = one.refused("--address", "/proc/s.sock")
        assert (code, line.endswith(": '/proc/s.sock'")) == (1, True)

    def test_stale(self, one: Daemon) -> None:
        """
        The socket that a killed daemon left is replaced.
        """
        one.ready().stop(signal.SIGKILL)
        assert one.address.is_socket()
        one.ready()
        with one.client() as client:
            assert client.serving()

    def test_live(self, one: Daemon, make: Callable[..., Daemon], btrfs: Path) -> None:
        """
        A socket that somebody serves at is left to them.
        """
        one.ready()
        second = make(btrfs / "other")
        code, line = second.refused("--address", str(one.address))
        assert one.process
        assert code == 3
        assert line == f"process {one.process.pid} serves at '{one.address}': stop it, or choose another address"
        assert not second.root.exists()
        with one.client() as client:
            assert client.serving()

    @pytest.mark.parametrize("kind", ["file", "symlink", "directory"])
    def test_in_the_way(self, one: Daemon, kind: str) -> None:
        """
        What is no socket is not replaced, nor what a symlink names.
        """
        one.address.parent.mkdir()
        (one.work / "target").write_text("content")
        if kind == "file":
            one.address.write_text("content")
        elif kind == "symlink":
            one.address.symlink_to(one.work / "target")
        else:
            one.address.mkdir()
        before = tree(one.work / "run")
        code, line = one.refused()
        assert (code, line) == (1, f"'{one.address}' exists and is not a socket: choose another address")
        assert tree(one.work / "run") == before
        assert (one.work / "target").read_text() == "content"

    def test_replaced(self, one: Daemon) -> None:
        """
        A socket that somebody put in the place of ours is not removed at the end.
        """
        one.ready()
        one.address.unlink()
        one.address.touch()
        assert one.stop() == 0
        assert one.address.is_file()

    def test_not_abstract(self, one: Daemon) -> None:
        """
        An abstract socket, which has no permissions, is refused as a wrong configuration; no daemon opens one.
        """
        code, line = one.refused("--address", "@abstract")
        assert (code, line.partition(",")[0]) == (2, "--address: address is '@abstract'")
        one.ready()
        assert f"{one.work}" in Path("/proc/net/unix").read_text()
        assert f"@{one.work}" not in Path("/proc/net/unix").read_text()


class TestActivation:
    def test_served(self, one: Daemon) -> None:
        """
        A socket that systemd opened is served, who connected before included, and is left to systemd at the end.
        """
        path = one.work / "handed.sock"
        with socket.socket(socket.AF_UNIX) as handed, ThreadPoolExecutor() as pool:
            handed.bind(str(path))
            handed.listen()
            with Client(path, timeout=PATIENCE) as client:
                answer = pool.submit(lambda: list(client.walk()))
                one.ready(prefix=(sys.executable, "-c", ACTIVATED, "1", str(handed.fileno())))
                assert answer.result() == []
            assert not one.address.exists()
            assert json.loads((one.root / "lock").read_text())["socket"] == str(path)
            assert one.stop() == 0
            assert path.is_socket()
            with Client(path, timeout=PATIENCE) as client:
                answer = pool.submit(lambda: list(client.walk()))  # waits in the socket's queue
                one.ready(prefix=(sys.executable, "-c", ACTIVATED, "1", str(handed.fileno())))
                assert answer.result() == []

    @pytest.mark.parametrize("kind", ["two", "datagram", "abstract", "internet", "silent"])
    def test_refused(self, one: Daemon, kind: str) -> None:
        """
        A socket that is of no use is refused, and so are two.
        """
        with contextlib.ExitStack() as stack:
            family = socket.AF_INET if kind == "internet" else socket.AF_UNIX
            form = socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
            handed = [stack.enter_context(socket.socket(family, form)) for _ in range(2 if kind == "two" else 1)]
            for number, each in enumerate(handed):
                if kind == "internet":
                    each.bind(("127.0.0.1", 0))
                else:
                    each.bind(("\0" if kind == "abstract" else "") + f"{one.work}/{number}")
                if kind not in ("datagram", "silent"):
                    each.listen()
            fds = [str(each.fileno()) for each in handed]
            code, line = one.refused(prefix=(sys.executable, "-c", ACTIVATED, str(len(fds)), *fds))
            assert code == 1
            assert line.startswith("systemd handed over ")


class TestOpening:
    def test_slow_recovery(self, one: Daemon) -> None:
        """
        Who connects while the store is being opened is greeted within a second, and answered afterwards; until then
        the daemon is not ready.
        """
        open_gate = one.gate("recovery")
        with Snapshotter.create(one.root) as store:
            store.prepare("a")
        one.start(patch=SLOW_RECOVERY)
        one.told(f"STATUS=opening {one.root}")
        with greeted(one.address), one.client() as client, ThreadPoolExecutor() as pool:
            calls = [pool.submit(client.stat, "a"), pool.submit(client.prepare, "b"), pool.submit(names, client)]
            assert not client.serving()
            assert ping(one) == (
                1,
                "",
                f"snapshotter: the daemon at '{one.address}' is opening its store, or its filesystem failed\n",
            )
            assert not any(call.done() for call in calls)
            one.manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.manager.recv(1000)
            one.manager.settimeout(PATIENCE)
            open_gate()
            assert calls[0].result().kind is Kind.ACTIVE
            assert calls[1].result()
            assert "a" in calls[2].result()
            one.told("READY=1")
        assert ping(one) == (0, f"{one.address} serves\n", "")
        assert one.stop() == 0
        code, _, error = ping(one)
        assert (code, error.count("\n")) == (1, 1)

    def test_failing(self, one: Daemon) -> None:
        """
        Where the store cannot be opened, who waits is told, and the daemon ends.
        """
        open_gate = one.gate("recovery")
        Snapshotter.create(one.root).close()
        one.start(
            patch=SLOW_RECOVERY.replace(
                "    yield from",
                "    from snapshotter.errors import DataLossError\n    raise DataLossError('gone')\n    yield from",
            )
        )
        one.told(f"STATUS=opening {one.root}")
        with one.client() as client, ThreadPoolExecutor() as pool, greeted(one.address):
            call = pool.submit(client.stat, "a")
            assert not client.serving()
            open_gate()
            with pytest.raises(Error):
                call.result()
        assert one.ended() == 5
        assert "snapshotter: gone\n" in one.log.read_text()

    def test_stopped(self, one: Daemon) -> None:
        """
        A signal while the store is being opened ends the daemon after that, and calls that waited are answered.
        """
        open_gate = one.gate("recovery")
        Snapshotter.create(one.root).close()
        one.start(patch=SLOW_RECOVERY)
        one.told(f"STATUS=opening {one.root}")
        with one.client() as client, ThreadPoolExecutor() as pool:
            assert not client.serving()
            call = pool.submit(client.prepare, "a")
            one.send(signal.SIGTERM)
            one.told("STOPPING=1")
            open_gate()
            with contextlib.suppress(UnavailableError):  # it came after the signal
                assert call.result()
        assert one.ended() == 0


def ping(one: Daemon) -> tuple[int, str, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "snapshotter", "ping", "--address", one.address], capture_output=True, text=True
    )
    return ran.returncode, ran.stdout, ran.stderr


class TestConfiguration:
    def test_file(self, one: Daemon) -> None:
        """
        The daemon does as its file says, and flags say otherwise.
        """
        file = one.work / "config.toml"
        file.write_text('version = 1\nmount_mode = "bind"\nlog_format = "json"\nlog_level = "warning"\n')
        one.ready("--config", str(file), "--log-level", "info")
        with one.client() as client:
            [mount] = client.prepare("a")
        assert mount.type == "bind"
        lines = [json.loads(line) for line in one.log.read_text().splitlines()]
        assert [line["event"] for line in lines] == ["opened", "ready", "prepared"]

    def test_wrong(self, one: Daemon) -> None:
        """
        A wrong configuration is one line and code 2; nothing is made.
        """
        file = one.work / "config.toml"
        file.write_text('version = 1\nadress = "/run/s.sock"\n')
        assert one.refused("--config", str(file)) == (
            2,
            f"{file}: unknown setting 'adress': did you mean 'address'?",
        )
        assert one.refused("--verify", "maybe") == (2, "--verify: verify is 'maybe', but must be true or false")
        assert not one.root.exists()
        assert not one.address.parent.exists()

    @pytest.mark.parametrize("module", ["grpclib", "google.protobuf", "hpack", "prometheus_client"])
    def test_missing_library(self, one: Daemon, module: str) -> None:
        """
        Without what the extra installs, the daemon names it, in one line.
        """
        code, line = one.refused(
            "--metrics-address", "localhost:0", patch=f"import sys; sys.modules['{module}'] = None\n"
        )
        assert (code, line.startswith(module)) == (1, True)
        assert line.endswith(" is missing: pip install 'btrfs-snapshotter[daemon]'")

    def test_commands(self, one: Daemon) -> None:
        """
        A configuration is printed, and checked, as serve would read it.
        """

        def config(*argv: str) -> tuple[int, str, str]:
            ran = subprocess.run(
                [sys.executable, "-m", "snapshotter", "config", *argv],
                capture_output=True,
                text=True,
                env=os.environ | {"SNAPSHOTTER_VERIFY": "false", "SNAPSHOTTER_CONFIG": str(file)},
            )
            return ran.returncode, ran.stdout, ran.stderr

        file = one.work / "config.toml"
        file.write_text('version = 1\nroot = "/a"\n')
        assert config("check") == (0, "", "")
        code, out, _ = config("dump", "--root", "/b", "--log-level", "debug")
        assert code == 0
        assert {'root = "/b"  # --root', "verify = false  # SNAPSHOTTER_VERIFY"} < set(out.splitlines())
        assert f'root = "/a"  # {file}' in config("dump")[1].splitlines()
        file.write_text("version = 1\nroots = 1\n")
        expected = (2, "", f"snapshotter: {file}: unknown setting 'roots': did you mean 'root'?\n")
        assert config("check") == config("dump") == expected
        code, out, _ = config("default")
        assert (code, out.partition("\n")[0]) == (0, "version = 1")


# -- ending


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_drained(self, one: Daemon, number: int) -> None:
        """
        A signal ends the daemon when the call under way is answered; no new ones are taken meanwhile.
        """
        open_gate = one.gate("prepare")
        one.ready(patch=SLOW_PREPARE)
        command = [sys.executable, "-c", PREPARE, str(one.address)]
        with one.client() as client, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            one.printed("preparing")
            assert client.serving()
            one.send(number)
            one.told("STOPPING=1")
            with pytest.raises(UnavailableError, match="is stopping"):
                client.stat("a")
            with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
                late.connect(str(one.address))
            open_gate()
            assert other.communicate()[0] == "1 mount\n"
        assert one.ended() == 0
        with Snapshotter(one.root) as store:
            assert store.stat("a").kind is Kind.ACTIVE

    def test_hung_call(self, one: Daemon) -> None:
        """
        A call that does not end is given up after a while, with a line and code 1.
        """
        one.gate("prepare")
        one.ready(patch=SLOW_PREPARE + "\nprocess.CALLS_SECONDS = process.CLOSE_SECONDS = 0.1\n")
        with one.client() as client, ThreadPoolExecutor() as pool:
            call = pool.submit(client.prepare, "a")
            one.printed("preparing")
            assert one.stop() == 1
            with pytest.raises(UnavailableError):
                call.result()
        assert " cut-off " in one.log.read_text()

    def test_second_signal(self, one: Daemon) -> None:
        """
        A second signal ends it at once.
        """
        one.gate("prepare")
        one.ready(patch=SLOW_PREPARE + "\nprocess.CALLS_SECONDS = 1000.0\n")
        with one.client() as client, ThreadPoolExecutor() as pool:
            call = pool.submit(client.prepare, "a")
            one.printed("preparing")
            one.send(signal.SIGTERM)
            one.told("STOPPING=1")
            assert one.stop() == 130
            with pytest.raises(UnavailableError):
                call.result()

    def test_hangup(self, one: Daemon) -> None:
        """
        SIGHUP and SIGPIPE change nothing.
        """
        one.ready()
        for number in (signal.SIGHUP, signal.SIGPIPE):
            one.send(number)
            with one.client() as client:
                assert client.serving()
        assert one.stop() == 0

    def test_nothing_deleted(self, one: Daemon) -> None:
        """
        No signal deletes anything: every snapshot is there afterwards, with its subvolume and content.
        """
        one.ready()
        with one.client() as client:
            with mounted(client.prepare("build")) as path:
                Path(path, "file").write_text("content")
            client.commit("base", "build")
            client.prepare("web", "base")
            client.view("view", "base")
            everything = sorted(client.walk(), key=lambda info: info.name)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGHUP, signal.SIGKILL):
            one.send(number)
            if number == signal.SIGHUP:
                one.send(signal.SIGTERM)
            one.ended()
            one.ready()
            with one.client() as client:
                assert sorted(client.walk(), key=lambda info: info.name) == everything
                with mounted(client.mounts("web")) as path:
                    assert Path(path, "file").read_text() == "content"


# -- watched


class TestWatchdog:
    def test_fed(self, one: Daemon) -> None:
        """
        The watchdog is fed as long as calls are answered.
        """
        one.ready(WATCHDOG_USEC="300000")
        for _ in range(3):
            one.told("WATCHDOG=1")
        assert one.stop() == 0

    def test_hung_service(self, one: Daemon) -> None:
        """
        A service that no longer answers in time does not feed it, though its process and its timers run.
        """
        hang = """
import time
from snapshotter import Snapshotter
stat = Snapshotter.stat
turns = iter([0, 0])
def hanging(*args):
    time.sleep(next(turns, 0.5))
    return stat(*args)
Snapshotter.stat = hanging
"""
        one.ready(patch=hang, WATCHDOG_USEC="300000")
        one.logged("unanswered", 3)
        one.manager.setblocking(False)
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(one.manager.recv(1000).decode())
        assert told in ([], ["WATCHDOG=1"], ["WATCHDOG=1"] * 2)


# -- killed


class Remote(Client):
    def fork(self, key: str, new_key: str) -> None:
        raise NotFoundError("containerd's RPCs have no fork")


def killed_at(acknowledgements: int, one: Daemon, patch: str = "") -> list[str]:
    """
    Kill the daemon when so many of 24 clients' calls were acknowledged; the markers of what they were promised.
    """
    one.ready("--mount-mode", "bind", patch=patch)
    marks: list[str] = []
    left = iter(range(1, acknowledgements))

    def mark(text: str) -> None:
        marks.append(text)
        if '"end"' in text and next(left, None) is None:
            one.send(signal.SIGKILL)

    with Remote(one.address, timeout=PATIENCE) as client, pytest.raises(UnavailableError):
        Workload(client, mark).run(threads=24, steps=10_000, seed=acknowledgements)
    one.ended()
    return marks


@pytest.mark.parametrize("acknowledgements", [1, 30, 100, 300, 700])
def test_killed(make: Callable[..., Daemon], btrfs_mount: Callable[..., Path], acknowledgements: int) -> None:
    """
    kill -9 with many calls under way loses nothing that was acknowledged, and leaves nothing half done; also when the
    next daemon is killed as soon as it is ready.
    """
    mount = btrfs_mount(1 << 30)
    one = make(mount / STORE)
    marks = killed_at(acknowledgements, one)
    one.ready("--mount-mode", "bind")
    with one.client() as client:
        there = {info.name: info for info in client.walk()}
    one.stop(signal.SIGKILL)
    assert verify(str(mount), marks) == []
    with Snapshotter(one.root, read_only=True) as store:
        assert {info.name: info for info in store.walk()} == there


def test_a_lost_change_is_found(make: Callable[..., Daemon], btrfs_mount: Callable[..., Path]) -> None:
    """
    The same test reports a daemon that acknowledges what it has not done.
    """
    mount = btrfs_mount(1 << 30)
    forget = "from snapshotter import Snapshotter; Snapshotter.update = lambda self, info, *paths: info; "
    marks = killed_at(100, make(mount / STORE), patch=forget)
    assert any("promised was" in problem for problem in verify(str(mount), marks))


# -- what it never does


@pytest.mark.parametrize(
    ("patch", "expected"), [("", 0), ("import os; os.system('true'); ", 1)], ids=["daemon", "control"]
)
def test_calls(one: Daemon, patch: str, expected: int) -> None:
    """
    The daemon mounts nothing and runs no other program; one that does is found.
    """
    trace = one.work / "trace"
    calls = "execve,execveat,mount,umount2,fsopen,fsmount,move_mount,open_tree,mount_setattr,pivot_root,chroot"
    one.ready(
        prefix=("strace", "-D", "-f", "-o", str(trace), "-e", f"trace={calls}", sys.executable, "-c", patch + RUN),
        WATCHDOG_USEC="300000",
    )
    one.told("WATCHDOG=1")
    with one.client() as client:
        client.prepare("build")
        client.commit("base", "build")
        client.prepare("web", "base")
        client.view("view", "base")
        client.mounts("web")
        client.usage("web")
        client.update(client.stat("web"), "labels")
        client.remove("web")
        client.cleanup()
    one.stop()
    while not trace.read_text().rstrip().endswith("+++ exited with 0 +++"):
        threading.Event().wait(0.01)
    lines = [line for line in trace.read_text().splitlines() if re.search(r"\b[a-z0-9_]+\(", line)]
    assert "execve(" in lines[0]
    assert len([line for line in lines[1:] if "execve(" in line]) == expected
    assert len(lines) == 1 + expected
