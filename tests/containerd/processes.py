"""
The processes of these tests: the daemon, containerd with the daemon as a proxy plugin, and containerd's children.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pybtrfs import subvolume, syscall
from snapshotter import Info, Kind, Snapshotter
from snapshotter.api.snapshots_pb2 import PrepareSnapshotRequest, PrepareSnapshotResponse
from snapshotter.client import Client
from snapshotter.setup.containerd import Plugin, drop_in, installed, kernel_maps_ids, read_main
from snapshotter.transport.channel import Channel

PATIENCE = 120  # seconds, because other work on the machine can delay an answer
SNAPSHOTTER = Path(sys.executable).with_name("snapshotter")
PLUGIN = "btrfs-snapshotter"  # the name in containerd's configuration

# Unused here. Each has a fixed path on the machine, for which concurrent containerds would compete.
DISABLED = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
TRACING = ["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
CRI = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
]


_numbers = itertools.count()


def wait_until(condition: Callable[[], object], event: str) -> None:
    """
    Wait until *condition* is true.

    Raises:
        TimeoutError: *condition* stays false. The message names *event*.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE} s for {event}")
        time.sleep(0.02)


class Process:
    """
    A program in the background that listens on the unix socket *address*, and can be started again.
    """

    def __init__(self, command: Sequence[str | Path], address: Path, environment: dict[str, str] | None = None) -> None:
        self.address = address
        self.log = address.with_suffix(".log")
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """
        Start the program, and wait until it accepts connections.
        """
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        wait_until(lambda: self._listens() or not self.running, f"{self._command[0]} to listen")
        assert self.running, f"{self._command[0]} ended: {self.log.read_text()}"

    @property
    def pid(self) -> int:
        """
        The pid of the running program.
        """
        assert self._process
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """
        End the program with SIGKILL, if it runs.
        """
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """
        End the program with SIGTERM, and return its exit code.
        """
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.address)) == 0


class Daemon(Process):
    """
    ``snapshotter serve`` on the store *root*.

    Args:
        prefix: The command that runs it.
    """

    def __init__(self, root: Path, directory: Path, prefix: Sequence[str] = ()) -> None:
        address = directory / "snapshotter.sock"
        super().__init__([*prefix, SNAPSHOTTER, "serve", "--root", root, "--address", address], address)
        self.root = root

    def snapshots(self) -> dict[str, Info]:
        """
        Return the snapshots of the store by key, read without the daemon.
        """
        with self.beside() as store:
            return {info.name: info for info in store.walk()}

    def beside(self) -> Snapshotter:
        """
        Open the store for reading, concurrently with the daemon.
        """
        return Snapshotter(self.root, read_only=True)

    def opened(self, socket: str = "") -> Snapshotter:
        """
        Open the store for changes, while the daemon is stopped.
        """
        return Snapshotter(self.root, client=None, socket=socket)

    def client(self) -> Client:
        """
        Return a client of the daemon under containerd's name.
        """
        return Client(self.address, snapshotter=PLUGIN)

    def check_store(self) -> None:
        """
        Wait until the store holds its snapshots and nothing else.
        """
        problems: list[str] = []

        def whole() -> bool:
            with self.beside() as store:
                infos = list(store.walk())
                problems[:] = [f"{problem.subject}: {problem.what}" for problem in store.problems()]
            own = [info for info in infos if info.kind is not Kind.VIEW]
            directories = len(os.listdir(self.root / "snapshots"))
            return not problems and directories == len(infos) and len(self._subvolumes()) == len(own)

        try:
            wait_until(whole, "the store to hold nothing but its snapshots")
        except TimeoutError as error:
            error.add_note(f"it has {self.snapshots()}, {self._subvolumes()} and the problems {problems}")
            raise

    def _subvolumes(self) -> list[str]:
        return [path for path, _ in subvolume.iterate(self.root) if "/snapshots/" in path]


class Cgroup:
    """
    A cgroup of the test, which contains the cgroups of its containers.
    """

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex

    def processes(self) -> set[int]:
        """
        Return the pids in the cgroup.
        """
        pids: set[int] = set()
        for path in self._paths():
            with contextlib.suppress(OSError):  # removed since it was listed
                pids.update(map(int, (path / "cgroup.procs").read_text().split()))
        return pids

    def clear(self) -> None:
        """
        Kill the processes, and remove the cgroup.
        """
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), "the processes of containers to end")
        for path in reversed(self._paths()):
            with contextlib.suppress(FileNotFoundError):  # the runtime has removed it
                path.rmdir()

    def _paths(self) -> list[Path]:
        """
        Return the directories of the cgroup and its children, in every hierarchy.

        os.walk() ignores directories that are removed concurrently.
        """
        return [path for path in map(Path, (top for top, *_ in os.walk("/sys/fs/cgroup"))) if self.name in path.parts]


class CtrError(Exception):
    """
    The error of a ctr command.
    """


class Containerd(Process):
    """
    A containerd from *binaries*, with *daemon* as its default snapshotter.

    Args:
        directory: The directory of all files. Its path must be short, because it has sockets.
        root: The directory of persistent files, by default in *directory*.
        cri: The settings of the CRI, if it is served as well.
        runtime_class: The handler of the pods that use the daemon, if not all do.
        prefix: The command that runs it, and its ctr.
        collector: The URL to which it sends traces, if any.

    Attributes:
        binaries: The directory with its commands.
        config: Its main configuration file.
        imported: The drop-in of the daemon.
        maps_ids: Whether a container with a user namespace gets mounts with mapped ids.
    """

    def __init__(
        self,
        binaries: Path,
        daemon: Daemon,
        directory: Path,
        *,
        root: Path | None = None,
        cri: str = "",
        runtime_class: str = "",
        prefix: Sequence[str] = (),
        collector: str = "",
    ) -> None:
        address = directory / "containerd.sock"
        self.binaries = binaries
        self._directory = directory
        self._dead_sockets = _dead_sockets()
        self._ctr = [*prefix, str(binaries / "ctr")]
        # A unique name, because all containerds on a machine share the state of runc and the cgroups.
        self.cgroup = Cgroup()
        self.namespace = "k8s.io" if cri else self.cgroup.name
        self._environment_of_ctr = os.environ | {
            "CONTAINERD_ADDRESS": str(address),
            "CONTAINERD_NAMESPACE": self.namespace,
            "CONTAINERD_SNAPSHOTTER": PLUGIN,
        }
        path = os.pathsep.join([str(binaries), os.environ["PATH"], "/usr/sbin", "/sbin"])
        self.config = config = directory / "config.toml"
        self.imported = imported = directory / "snapshotter.toml"
        version = installed(str(binaries / "containerd")).config
        config.write_text(
            f"version = {version}\n"
            f"disabled_plugins = {json.dumps(DISABLED + ([] if cri else CRI) + ([] if collector else TRACING))}\n"
            f"imports = [{json.dumps(str(imported))}]\n"
            f"{cri}"
        )
        maps_ids = kernel_maps_ids(os.uname().release)
        default = bool(cri) and not runtime_class
        plugin = Plugin(PLUGIN, str(daemon.root), str(daemon.address), default, maps_ids, runtime_class)
        self.maps_ids = maps_ids and version > 2
        imported.write_text(drop_in(plugin, version, read_main(str(config))))
        root = root or directory / "root"
        places = {"config": config, "address": address, "root": root, "state": directory / "state"}
        command = [*prefix, f"{binaries}/containerd", *(f"--{name}={place}" for name, place in places.items())]
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        super().__init__(command, address, os.environ | {"PATH": path} | (traces if collector else {}))

    def output(self, *arguments: str | Path) -> bytes:
        """
        Run ``ctr``, and return its output.

        Raises:
            CtrError: The command failed.
        """
        done = subprocess.run(
            [*self._ctr, *arguments],
            env=self._environment_of_ctr,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise CtrError(f"ctr {' '.join(map(str, arguments))}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def ctr(self, *arguments: str | Path) -> str:
        """
        Run ``ctr``, and return its output as text.
        """
        return self.output(*arguments).decode()

    def run(self, image: str, container: str, script: str, *flags: str) -> None:
        """
        Run *script* by a shell in a new *container*, which is removed afterwards.

        The result is the exit code, because ctr loses the output of a container that ends before ctr opens the pipes.

        Raises:
            CtrError: A command of the script failed.
        """
        self.ctr("run", "--rm", "--null-io", *flags, image, container, "sh", "-ec", script)

    def start_container(self, image: str, container: str, script: str) -> int:
        """
        Run *script* by a shell in a new *container*, which keeps running, and return its pid.
        """
        self.ctr("run", "--detach", "--null-io", image, container, "sh", "-ec", script)
        return self.tasks()[container]

    def shell(self, container: str, script: str) -> None:
        """
        Run *script* by a shell in the running *container*.

        Raises:
            CtrError: A command of the script failed.
        """
        self.ctr("tasks", "exec", "--exec-id", f"e{next(_numbers)}", container, "sh", "-ec", script)

    def tasks(self) -> dict[str, int]:
        """
        Return the pids of the running containers.
        """
        lines = [line.split() for line in self.ctr("tasks", "ls").splitlines()[1:]]
        return {container: int(pid) for container, pid, status in lines if status == "RUNNING"}

    @contextlib.contextmanager
    def mounted(self, key: str) -> Iterator[Path]:
        """
        Mount the snapshot *key* by the commands that ctr prints, while the ``with`` lasts.
        """
        with tempfile.TemporaryDirectory() as target:
            subprocess.run(["sh", "-ec", self.ctr("snapshots", "mounts", target, key)], check=True)
            try:
                yield Path(target)
            finally:
                syscall.umount2(target)

    def listed(self, *command: str) -> list[str]:
        """
        Return the first column of the table that ``ctr COMMAND ls`` prints.
        """
        return [line.split()[0] for line in self.ctr(*command, "ls").splitlines()[1:]]

    def prepare_leased(self, lease: str, key: str, parent: str) -> None:
        """
        Prepare a snapshot that *lease* keeps, for which ctr has no command.
        """

        with Channel(str(self.address)) as channel:
            channel.call(
                "/containerd.services.snapshots.v1.Snapshots/Prepare",
                PrepareSnapshotRequest(snapshotter=PLUGIN, key=key, parent=parent),
                PrepareSnapshotResponse,
                metadata={"containerd-namespace": self.namespace, "containerd-lease": lease},
            )

    def collect_garbage(self) -> None:
        self.ctr("leases", "create", "--id", "garbage")
        self.ctr("leases", "rm", "--sync", "garbage")

    def remove_everything(self) -> None:
        """
        Remove all containers, images and leases, and everything that only they need.
        """
        for task in self.listed("tasks"):
            self.ctr("tasks", "rm", "--force", task)
        for kind in ("containers", "images", "leases"):
            for name in self.listed(kind):
                self.ctr(kind, "rm", name)
        self.collect_garbage()

    def shims(self) -> list[int]:
        """
        Return the pids of the shims, which outlive containerd.
        """
        return [
            pid
            for pid, command in _commands()
            if b"containerd-shim" in command[0] and os.fsencode(self.address) in command
        ]

    def clear(self) -> list[str]:
        """
        Remove the resources that a killed containerd leaves, and return their descriptions.
        """
        left = [f"shim {pid}" for pid in self.shims()]
        left += [f"process {pid} of a container" for pid in self.cgroup.processes()]
        for pid in self.shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cgroup.clear()
        for mount in _mounts_below(self._directory):
            left.append(f"mount {mount}")
            # containerd may unmount it concurrently, after the end of its shim.
            with contextlib.suppress(OSError):
                syscall.umount2(mount, syscall.MNT_DETACH)
        wait_until(lambda: not _mounts_below(self._directory), "the mounts of containers to go")
        shutil.rmtree(Path("/run/containerd/runc", self.cgroup.name), ignore_errors=True)
        for path in _dead_sockets() - self._dead_sockets:
            path.unlink(missing_ok=True)
        return left


def reconnect(containerd: Containerd, daemon: Daemon) -> None:
    """
    Start the daemon, and wait until containerd reaches it.
    """
    daemon.start()

    def reached() -> bool:
        with contextlib.suppress(CtrError):
            containerd.ctr("snapshots", "ls")
            return True
        return False

    wait_until(reached, "containerd to reach the daemon")


def _dead_sockets() -> set[Path]:
    """
    Return the sockets of ended shims. All containerds on a machine share their directory.
    """
    dead = set()
    for path in Path("/run/containerd/s").glob("*"):
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(path)) == errno.ECONNREFUSED:
                dead.add(path)
    return dead


def _commands() -> Iterator[tuple[int, list[bytes]]]:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            yield int(directory.name), (directory / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue


def _mounts_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [point for point in (line.split()[4] for line in reversed(lines)) if point.startswith(f"{directory}/")]
