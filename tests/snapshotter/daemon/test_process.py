"""
The daemon as a process: its start, its answers from the first moment, and its end.
"""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.errors import Error, UnavailableError
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Run
from tests.snapshotter.daemon.running import PATIENCE, RUN, Daemon, names, ping

pytestmark = pytest.mark.btrfs


# Code that the process runs before the daemon; `gate(name)` waits until the test opens the gate.
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


# With gRPC's own client, which reads an answer also if the connection closes after it.
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


def greeted(address: Path) -> socket.socket:
    """
    Return a connection on which the daemon has sent its SETTINGS.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(1.0)  # containerd's limit for a connection
    connection.connect(str(address))
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    header = connection.recv(9, socket.MSG_WAITALL)
    assert header[3] == 4
    return connection


def test_command(daemon: Daemon, run: Run) -> None:
    """
    While the daemon holds the store, the command works through the daemon.
    """
    daemon.ready()
    for argv in (
        "prepare build",
        "commit base build",
        "prepare web base",
        "fork web copy",
        "label copy a=b",
        "rm base web copy",
        "cleanup",
    ):
        assert run("--root", str(daemon.root), *argv.split()).code == 0, argv
    assert run("--root", str(daemon.root), "doctor", "--fix").code == 3
    assert run("--root", str(daemon.root), "ls") == (0, "KEY  KIND  PARENT  CREATED\n", "")
    assert daemon.stop() == 0


def test_without_standard_error(daemon: Daemon) -> None:
    """
    With standard error closed there is no log, and no other file has its lines instead.
    """
    daemon.ready(prefix=("sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", RUN))
    with daemon.client() as client:
        client.prepare("a")
        client.remove("a")
    assert set(json.loads((daemon.root / "lock").read_text())) == {"pid", "command", "socket"}
    assert daemon.stop() == 0
    assert daemon.log.read_text() == ""


class TestOpening:
    def test_slow_recovery(self, daemon: Daemon) -> None:
        """
        A client that connects while the store is being opened is greeted within a second and answered afterwards. Until
        then the daemon is not ready.
        """
        open_gate = daemon.gate("recovery")
        with Snapshotter.create(daemon.root) as store:
            store.prepare("a")
        daemon.start(patch=SLOW_RECOVERY)
        daemon.notified(f"STATUS=opening {daemon.root}")
        with greeted(daemon.address), daemon.client() as client, ThreadPoolExecutor() as pool:
            calls = [pool.submit(client.stat, "a"), pool.submit(client.prepare, "b"), pool.submit(names, client)]
            assert not client.serving()
            assert ping(daemon) == (
                1,
                "",
                f"snapshotter: the daemon at '{daemon.address}' is opening its store, or its filesystem failed\n",
            )
            assert not any(call.done() for call in calls)
            daemon.manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                daemon.manager.recv(1000)
            daemon.manager.settimeout(PATIENCE)
            open_gate()
            assert calls[0].result().kind is Kind.ACTIVE
            assert calls[1].result()
            assert "a" in calls[2].result()
            daemon.notified("READY=1")
        assert ping(daemon) == (0, f"{daemon.address} serves\n", "")
        assert daemon.stop() == 0
        code, _, error = ping(daemon)
        assert (code, error.count("\n")) == (1, 1)

    def test_failing(self, daemon: Daemon) -> None:
        """
        If opening the store fails, waiting clients get the error, and the daemon ends.
        """
        open_gate = daemon.gate("recovery")
        Snapshotter.create(daemon.root).close()
        daemon.start(
            patch=SLOW_RECOVERY.replace(
                "    yield from",
                "    from snapshotter.errors import DataLossError\n    raise DataLossError('gone')\n    yield from",
            )
        )
        daemon.notified(f"STATUS=opening {daemon.root}")
        with daemon.client() as client, ThreadPoolExecutor() as pool, greeted(daemon.address):
            call = pool.submit(client.stat, "a")
            assert not client.serving()
            open_gate()
            with pytest.raises(Error):
                call.result()
        assert daemon.ended() == 5
        assert "snapshotter: gone\n" in daemon.log.read_text()

    def test_stopped(self, daemon: Daemon) -> None:
        """
        A signal while the store is being opened ends the daemon after opening; waiting calls are answered.
        """
        open_gate = daemon.gate("recovery")
        Snapshotter.create(daemon.root).close()
        daemon.start(patch=SLOW_RECOVERY)
        daemon.notified(f"STATUS=opening {daemon.root}")
        with daemon.client() as client, ThreadPoolExecutor() as pool:
            assert not client.serving()
            call = pool.submit(client.prepare, "a")
            daemon.send(signal.SIGTERM)
            daemon.notified("STOPPING=1")
            open_gate()
            with contextlib.suppress(UnavailableError):  # if the call came after the signal
                assert call.result()
        assert daemon.ended() == 0


class TestConfiguration:
    def test_file(self, daemon: Daemon) -> None:
        """
        The daemon obeys its file, and flags override the file.
        """
        file = daemon.work / "config.toml"
        file.write_text('version = 1\nmount_mode = "bind"\nlog_format = "json"\nlog_level = "warning"\n')
        daemon.ready("--config", str(file), "--log-level", "info")
        with daemon.client() as client:
            [mount] = client.prepare("a")
        assert mount.type == "bind"
        lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
        assert [line["event"] for line in lines] == ["opened", "ready", "prepared"]

    def test_wrong(self, daemon: Daemon) -> None:
        """
        A wrong configuration is one line and code 2, and nothing is created.
        """
        file = daemon.work / "config.toml"
        file.write_text('version = 1\nadress = "/run/s.sock"\n')
        assert daemon.refused("--config", str(file)) == (
            2,
            f"{file}: unknown setting 'adress': did you mean 'address'?",
        )
        assert daemon.refused("--verify", "maybe") == (2, "--verify: verify is 'maybe', but must be true or false")
        assert not daemon.root.exists()
        assert not daemon.address.parent.exists()

    @pytest.mark.parametrize("module", ["google.protobuf", "prometheus_client"])
    def test_missing_library(self, daemon: Daemon, module: str) -> None:
        """
        If a library of the extra is missing, the daemon names it in one line.
        """
        code, line = daemon.refused(
            "--metrics-address", "localhost:0", patch=f"import sys; sys.modules['{module}'] = None\n"
        )
        assert (code, line.startswith(module)) == (1, True)
        assert line.endswith(" -m pip install 'btrfs-snapshotter[daemon]'")

    @pytest.mark.parametrize(
        ("patch", "problem"),
        [("SONAME = 'libnone.so.1'", "is missing"), ("SONAME = 'libc.so.6'", "lacks nghttp2_session_callbacks_new")],
    )
    def test_missing_libnghttp2(self, daemon: Daemon, patch: str, problem: str) -> None:
        """
        Without libnghttp2, or with one that lacks a function, the daemon names the package in one line.
        """
        code, line = daemon.refused(patch=f"from snapshotter.transport import library\nlibrary.{patch}\n")
        assert code == 1
        assert problem in line
        assert "install libnghttp2-14 (Debian" in line

    def test_commands(self, daemon: Daemon) -> None:
        """
        The configuration is printed and checked as serve would read it.
        """

        def config(*argv: str) -> tuple[int, str, str]:
            ran = subprocess.run(
                [sys.executable, "-m", "snapshotter", "config", *argv],
                capture_output=True,
                text=True,
                env=os.environ | {"SNAPSHOTTER_VERIFY": "false", "SNAPSHOTTER_CONFIG": str(file)},
            )
            return ran.returncode, ran.stdout, ran.stderr

        file = daemon.work / "config.toml"
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


TELLS = """
import gc
from snapshotter.daemon.systemd import Systemd
gc.disable()
notify = Systemd.notify
def tell(self, *lines):
    print(lines[0].partition(" ")[0], gc.isenabled(), flush=True)
    notify(self, *lines)
Systemd.notify = tell
"""


def test_garbage(daemon: Daemon) -> None:
    """
    The garbage collector is off while the store opens, and on from then on.
    """
    process = daemon.ready(patch=TELLS).process
    assert process
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines == ["STATUS=opening False\n", "READY=1 True\n"]


def test_descriptors(daemon: Daemon) -> None:
    """
    The daemon raises its soft limit of descriptors to the hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        daemon.ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert daemon.process
    assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_drained(self, daemon: Daemon, number: int) -> None:
        """
        A signal ends the daemon once the call in flight is answered; new calls are refused.
        """
        open_gate = daemon.gate("prepare")
        daemon.ready(patch=SLOW_PREPARE)
        command = [sys.executable, "-c", PREPARE, str(daemon.address)]
        with daemon.client() as client, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            daemon.printed("preparing")
            assert client.serving()
            daemon.send(number)
            daemon.notified("STOPPING=1")
            with pytest.raises(UnavailableError, match="is stopping"):
                client.stat("a")
            with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
                late.connect(str(daemon.address))
            open_gate()
            assert other.communicate()[0] == "1 mount\n"
        assert daemon.ended() == 0
        with Snapshotter(daemon.root) as store:
            assert store.stat("a").kind is Kind.ACTIVE

    def test_hung_call(self, daemon: Daemon) -> None:
        """
        A hanging call is given up after a time limit, with a line and code 1.
        """
        daemon.gate("prepare")
        daemon.ready(patch=SLOW_PREPARE + "\nprocess.CALLS_SECONDS = process.CLOSE_SECONDS = 0.1\n")
        with daemon.client() as client, ThreadPoolExecutor() as pool:
            call = pool.submit(client.prepare, "a")
            daemon.printed("preparing")
            assert daemon.stop() == 1
            with pytest.raises(UnavailableError):
                call.result()
        assert " cut-off " in daemon.log.read_text()

    def test_second_signal(self, daemon: Daemon) -> None:
        """
        A second signal ends the daemon at once.
        """
        daemon.gate("prepare")
        daemon.ready(patch=SLOW_PREPARE + "\nprocess.CALLS_SECONDS = 1000.0\n")
        with daemon.client() as client, ThreadPoolExecutor() as pool:
            call = pool.submit(client.prepare, "a")
            daemon.printed("preparing")
            daemon.send(signal.SIGTERM)
            daemon.notified("STOPPING=1")
            assert daemon.stop() == 130
            with pytest.raises(UnavailableError):
                call.result()

    def test_hangup(self, daemon: Daemon) -> None:
        """
        SIGHUP and SIGPIPE change nothing.
        """
        daemon.ready()
        for number in (signal.SIGHUP, signal.SIGPIPE):
            daemon.send(number)
            with daemon.client() as client:
                assert client.serving()
        assert daemon.stop() == 0

    def test_nothing_deleted(self, daemon: Daemon) -> None:
        """
        No signal deletes anything: every snapshot keeps its subvolume and content.
        """
        daemon.ready()
        with daemon.client() as client:
            with mounted(client.prepare("build")) as path:
                Path(path, "file").write_text("content")
            client.commit("base", "build")
            client.prepare("web", "base")
            client.view("view", "base")
            everything = sorted(client.walk(), key=lambda info: info.name)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGHUP, signal.SIGKILL):
            daemon.send(number)
            if number == signal.SIGHUP:
                daemon.send(signal.SIGTERM)
            daemon.ended()
            daemon.ready()
            with daemon.client() as client:
                assert sorted(client.walk(), key=lambda info: info.name) == everything
                with mounted(client.mounts("web")) as path:
                    assert Path(path, "file").read_text() == "content"


class TestWatchdog:
    def test_fed(self, daemon: Daemon) -> None:
        """
        The watchdog is fed as long as calls are answered.
        """
        daemon.ready(WATCHDOG_USEC="300000")
        for _ in range(3):
            daemon.notified("WATCHDOG=1")
        assert daemon.stop() == 0

    def test_hung_service(self, daemon: Daemon) -> None:
        """
        A service that answers too late does not feed the watchdog, although its process and timers run.
        """
        hang = """
import time
from snapshotter.contract.opening import Opened
encoded = Opened.encoded
turns = iter([0, 0])
def hanging(*args):
    time.sleep(next(turns, 0.5))
    return encoded(*args)
Opened.encoded = hanging
"""
        daemon.ready(patch=hang, WATCHDOG_USEC="300000")
        daemon.logged("unanswered", 3)
        daemon.manager.setblocking(False)
        notified = []
        with contextlib.suppress(BlockingIOError):
            while True:
                notified.append(daemon.manager.recv(1000).decode())
        assert notified in ([], ["WATCHDOG=1"], ["WATCHDOG=1"] * 2)


@pytest.mark.parametrize(
    ("patch", "expected"), [("", 0), ("import os; os.system('true'); ", 1)], ids=["daemon", "control"]
)
def test_calls(daemon: Daemon, patch: str, expected: int) -> None:
    """
    The daemon mounts nothing and runs no other program; a daemon that does is detected.
    """
    trace = daemon.work / "trace"
    calls = "execve,execveat,mount,umount2,fsopen,fsmount,move_mount,open_tree,mount_setattr,pivot_root,chroot"
    daemon.ready(
        prefix=("strace", "-D", "-f", "-o", str(trace), "-e", f"trace={calls}", sys.executable, "-c", patch + RUN),
        WATCHDOG_USEC="300000",
    )
    daemon.notified("WATCHDOG=1")
    with daemon.client() as client:
        client.prepare("build")
        client.commit("base", "build")
        client.prepare("web", "base")
        client.view("view", "base")
        client.mounts("web")
        client.usage("web")
        client.update(client.stat("web"), "labels")
        client.remove("web")
        client.cleanup()
    daemon.stop()
    while not trace.read_text().rstrip().endswith("+++ exited with 0 +++"):
        threading.Event().wait(0.01)
    # An old strace shows calls that it does not know, whatever it is to trace: here statmount and listmount.
    call = re.compile(r"\b(?!syscall_0x1c[9a]\()[a-z0-9_]+\(")
    lines = [line for line in trace.read_text().splitlines() if call.search(line)]
    assert "execve(" in lines[0]
    assert len([line for line in lines[1:] if "execve(" in line]) == expected
    assert len(lines) == 1 + expected
