"""
The contestants: the daemon, the library, and containerd's snapshotters in Go.
"""

import collections
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

from benchmarks.measure import timed
from pybtrfs import filesystem, image, subvolume, syscall
from snapshotter import Info, Mount, Snapshotter
from snapshotter.store.btrfs import COMMITS_SECONDS, BtrfsVolumes
from snapshotter.store.volumes import Volumes

IMAGE_BYTES = 16 << 30
_GO_SOURCE = Path(__file__).parent
_REPOSITORY = _GO_SOURCE.parent.parent
_CONTAINERD = "github.com/containerd/containerd/v2"
_LABEL = "containerd.io/benchmark"
_LOG_LINES = 20

DAEMON, LIBRARY, GO, GO_PROXY, OVERLAYFS = "daemon", "library", "Go", "Go behind its proxy", "overlayfs"
ALL = (DAEMON, LIBRARY, GO, GO_PROXY, OVERLAYFS)
CONCURRENT = "library with concurrent barriers"
EARLIER = "daemon of another commit"


class Contestant(Protocol):
    """
    A snapshotter that takes the commands of ``main.go``.
    """

    def __call__(self, verb: str, *words: object) -> list[float]: ...

    def mounts(self, key: str) -> tuple[Mount, ...]: ...

    def close(self) -> None: ...


class Program:
    """
    The Go program, compiled into *directory*, which also has the sockets and logs of the contestants.

    The compiler is the Go in PATH, or the Go in .venv.

    Args:
        against: A commit whose packages are installed there as well, for contestants of the kind `EARLIER`.
    """

    def __init__(self, directory: Path, against: str = "") -> None:
        self.directory = directory
        self.against = against
        self.earlier = directory / "earlier"
        if against:
            _install(against, self.earlier)
        self.path = directory / "peers"
        beside = os.path.dirname(sys.executable)
        go = shutil.which("go") or shutil.which("go", path=beside)
        if not go:
            raise FileNotFoundError("Go is missing: make setup")
        self._go = go
        subprocess.run((self._go, "build", "-o", self.path, "."), cwd=_GO_SOURCE, check=True)

    def versions(self) -> dict[str, str]:
        """
        Return the versions of Go and of containerd's module.
        """
        text = subprocess.run((self._go, "version", "-m", self.path), check=True, capture_output=True, text=True).stdout
        words = text.split()
        return {"go": words[1], "containerd": words[words.index(_CONTAINERD) + 1]}


def _install(commit: str, directory: Path) -> None:
    """
    Install the packages of *commit*, with their compiled modules, in *directory*.
    """
    archive = subprocess.run(("git", "archive", commit), cwd=_REPOSITORY, check=True, stdout=subprocess.PIPE).stdout
    with tempfile.TemporaryDirectory() as source:
        subprocess.run(("tar", "--extract", "--directory", source), check=True, input=archive)
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
        subprocess.run((*pip, "--target", directory, source), check=True)


class ConcurrentBarriers(BtrfsVolumes):
    """
    Volumes whose barriers take no turns on any mount.
    """

    def barrier(self, fd: int) -> None:
        os.fsync(fd)


class Library:
    """
    Our snapshotter in this process.
    """

    def __init__(self, root: Path, volumes: type[Volumes] = BtrfsVolumes) -> None:
        make = Snapshotter if root.exists() else Snapshotter.create
        self._store = make(root, volumes=volumes)

    def __call__(self, verb: str, *words: object) -> list[float]:
        if verb == "walk":
            return [timed(lambda: collections.deque(self._store.walk(), maxlen=0))]
        if verb == "cleanup":
            return [timed(self._store.cleanup)]
        if verb == "pairs":
            return self._pairs(*words)  # type: ignore[arg-type]  # the words of a command
        return self._each(verb, *words)  # type: ignore[arg-type]

    def _each(self, verb: str, clients: int, prefix: str, first: int, count: int, extra: str = "") -> list[float]:
        store = self._store
        calls: dict[str, Callable[[str], object]] = {
            "prepare": lambda key: store.prepare(key, extra),
            "view": lambda key: store.view(key, extra),
            "commit": lambda key: store.commit(extra + key.removeprefix(prefix), key),
            "remove": store.remove,
            "stat": store.stat,
            "usage": store.usage,
            "update": lambda key: store.update(
                Info(store.stat(key).kind, key, labels={_LABEL: str(time.time_ns())}), f"labels.{_LABEL}"
            ),
        }
        with ThreadPoolExecutor(clients) as pool:
            keys = [f"{prefix}-{number}" for number in range(first, first + count)]
            return list(pool.map(lambda key: timed(calls[verb], key), keys))

    def _pairs(self, clients: int, seconds: int, prefix: str, parent: str) -> list[float]:
        begin = time.monotonic()

        def loop(client: int) -> int:
            done = 0
            while time.monotonic() < begin + seconds:
                key = f"{prefix}-{client}-{done}"
                self._store.prepare(key, parent)
                self._store.remove(key)
                done += 1
            return done

        with ThreadPoolExecutor(clients) as pool:
            done = sum(pool.map(loop, range(clients)))
        return [done, (time.monotonic() - begin) * 1e9]

    def mounts(self, key: str) -> tuple[Mount, ...]:
        return self._store.mounts(key)

    def close(self) -> None:
        self._store.close()


class Driven:
    """
    A snapshotter in the Go program, or behind a socket whose client is the Go program.

    Args:
        program: The Go program.
        where: The driven snapshotter: a kind and a root, or ``"socket"`` and an address.
        server: The command that serves the socket, or an empty tuple.
        log: The file of the messages of all processes.
    """

    def __init__(self, program: Program, where: tuple[str, Path], server: tuple[str | Path, ...], log: Path) -> None:
        self._log = log
        self._resources = contextlib.ExitStack()
        with self._resources as stack, log.open("ab") as messages:
            self._server = stack.enter_context(_running(server, messages, messages)) if server else None
            self._client = stack.enter_context(_running((program.path, "drive", *where), subprocess.PIPE, messages))
            self._resources = stack.pop_all()

    @property
    def pid(self) -> int:
        """
        The id of the process that does the work.
        """
        return (self._server or self._client).pid

    @property
    def client_pid(self) -> int:
        return self._client.pid

    def __call__(self, verb: str, *words: object) -> list[float]:
        return [float(word) for word in self._ask(verb, *words)]

    def _ask(self, *words: object) -> list[str]:
        assert self._client.stdin
        assert self._client.stdout
        try:
            print(*words, sep="\t", file=self._client.stdin, flush=True)
            answer = self._client.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = self._log.read_text(errors="replace").splitlines()
            raise RuntimeError("\n".join((f"failed at {words}", *lines[-_LOG_LINES:])))
        return answer.split("\t") if answer.strip() else []

    def mounts(self, key: str) -> tuple[Mount, ...]:
        words = [word.strip() for word in self._ask("mounts", key)]
        return tuple(
            Mount(kind, source, options=tuple(options.split(",")))
            for kind, source, options in zip(*[iter(words)] * 3, strict=True)
        )

    def close(self) -> None:
        self._resources.close()


@contextlib.contextmanager
def _running(
    command: tuple[str | Path, ...], output: IO[bytes] | int, messages: IO[bytes]
) -> Iterator[subprocess.Popen[str]]:
    # A session of its own, because Ctrl-C is handled here alone.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=messages, text=True, start_new_session=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


class Field:
    """
    A contestant on a btrfs of its own.

    Args:
        name: The name in the report, by which no two contestants at a time are called.
        kind: A member of `ALL`, `CONCURRENT` or `EARLIER`.
    """

    def __init__(self, name: str, kind: str, mount: Path, program: Program) -> None:
        self.name = name
        self._kind = kind
        self.mount = mount
        self.root = mount / "store"
        self.fd = os.open(mount, os.O_RDONLY)
        self._program = program
        self._next_number = 0
        self.contestant = self._start()

    def numbers(self, count: int) -> int:
        """
        Reserve *count* numbers, and return the first.
        """
        self._next_number += count
        return self._next_number - count

    def start(self) -> None:
        """
        Start the closed contestant again. Its first answer may take longer.
        """
        with _uninterrupted():
            self.contestant = self._start()

    def _start(self) -> Contestant:
        if self._kind in (LIBRARY, CONCURRENT):
            return Library(self.root, BtrfsVolumes if self._kind == LIBRARY else ConcurrentBarriers)
        socket = self._program.directory / f"{self.name}.socket"
        socket.unlink(missing_ok=True)
        server: tuple[str | Path, ...] = ()
        where: tuple[str, Path] = ("socket", socket)
        if self._kind in (DAEMON, EARLIER):
            server = (sys.executable, "-m", "snapshotter", "serve", "--root", self.root, "--address", socket)
            if self._kind == EARLIER:
                server = ("env", f"PYTHONPATH={self._program.earlier}", *server)
        elif self._kind == GO_PROXY:
            server = (self._program.path, "serve", "btrfs", self.root, socket)
        else:
            where = ("btrfs" if self._kind == GO else "overlayfs", self.root)
        return Driven(self._program, where, server, self._program.directory / f"{self.name}.log")

    def close(self) -> None:
        self.contestant.close()
        os.close(self.fd)

    def sync(self) -> None:
        syscall.syncfs(self.fd)

    def count_written(self) -> None:
        """
        Commit all written data, and wait until our snapshotter looks for commits again, so that Usage counts the data.
        """
        self.sync()
        time.sleep(COMMITS_SECONDS)

    def quiet(self) -> None:
        """
        Wait until the kernel has cleaned all removed snapshots.
        """
        self.contestant("cleanup")
        while subvolume.count_deleted(self.fd):
            filesystem.sync(self.fd)  # wakes the cleaner, unless it is busy
            time.sleep(0.005)
        self.sync()  # the cleaner leaves a part of its work to the next commit

    def entries(self) -> int:
        """
        Return the number of snapshots in our store, with removed ones that are not destroyed.
        """
        return len(os.listdir(self.root / "snapshots"))


@contextlib.contextmanager
def fields(kinds: Mapping[str, str], directory: str, program: Program, options: str = "") -> Iterator[dict[str, Field]]:
    """
    Start contestants, each on a new btrfs.

    Args:
        kinds: The kind of each contestant, by its name.
        options: Mount options of each btrfs.
    """
    with contextlib.ExitStack() as stack:
        opened = {}
        for name, kind in kinds.items():
            with _uninterrupted():
                mount = stack.enter_context(image.temporary(IMAGE_BYTES, directory=directory, options=options))
                opened[name] = stack.enter_context(contextlib.closing(Field(name, kind, mount, program)))
        yield opened


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """
    Defer Ctrl-C to the end of the ``with``, because resources inside have no owner yet that frees them.
    """
    interrupts = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
