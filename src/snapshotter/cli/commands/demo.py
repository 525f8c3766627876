"""
``snapshotter demo``: layers, a view and a hundred containers, made from the files of the running Python.

The demo reads each snapshot back, and compares the digest of every file with the digest of its source.
"""

import argparse
import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import snapshotter
from pybtrfs import image, space
from snapshotter.analysis import family
from snapshotter.cli import arguments, display, interruption
from snapshotter.contract import Snapshotter
from snapshotter.errors import Error, FailedPreconditionError
from snapshotter.model import Mount, Usage
from snapshotter.mounting import mounted
from snapshotter.setup import image_store
from snapshotter.text import format_size

CONTAINERS = 100
WRITERS = 10
WRITTEN = 1 << 20  # by each writer, in bytes
READERS = 8
RECLAIM_SECONDS = 60
_SKIPPED = {"__pycache__", "site-packages"}  # Python writes the first while it runs; the second is copied separately
_NOTHING = "nothing"

Manifest = dict[str, str]
"""
The type, mode and content of each file of a tree, by path.
"""


def add(commands: arguments.Commands) -> None:
    commands.add("demo", _demo, example="snapshotter demo")


def _demo(_: argparse.Namespace) -> None:
    """
    Run the demo on a btrfs in a temporary directory, and remove both at the end, also after Ctrl-C. Needs root.

    Raises:
        FailedPreconditionError: A privilege, btrfs or space is missing.
        Error: A verification failed.
    """
    if os.geteuid():
        raise FailedPreconditionError("the demo mounts a btrfs of its own: run it as root")
    paths = sysconfig.get_paths()
    sources = {"python": paths["stdlib"], "packages": paths["purelib"]}
    size = sum(
        entry.stat(follow_symlinks=False).st_size for source in sources.values() for _, entry in _entries(source)
    )
    needed = 2 * size + (256 << 20)
    if shutil.disk_usage(tempfile.gettempdir()).free < needed:
        raise FailedPreconditionError(
            f"the demo needs {format_size(needed)} of free space in {tempfile.gettempdir()!r}: free some, or set TMPDIR"
        )
    started = time.perf_counter()
    with interruption.deferred() as interrupted, contextlib.ExitStack() as stack:
        try:
            root = stack.enter_context(image.temporary(needed + (2 << 30)))
        except OSError as error:
            raise image_store.unmountable(error) from error
        targets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snapshotter-demo-")))
        _Demo(root / "store", targets, interrupted.check).run(sources)
    print(f"\nverified everything, and removed it again, in {time.perf_counter() - started:.1f} s")


class _Demo:
    """
    The demo on the store *root*.

    Args:
        targets: A directory to create mount points in.
        check: Raises KeyboardInterrupt after Ctrl-C; called where the demo can be left.
    """

    def __init__(self, root: Path, targets: Path, check: Callable[[], None]) -> None:
        self._root = root
        self._targets = targets
        self._check = check
        self._keys = [f"container-{number:03}" for number in range(CONTAINERS)]
        self._data = {key: os.urandom(WRITTEN) for key in self._keys[:WRITERS]}
        self._shown: Manifest = {}  # contents of the topmost layer

    def run(self, sources: dict[str, str]) -> None:
        with self._step("create a store"):
            store = Snapshotter.create(self._root)
        with store:
            self._make_base(store, sources)
            self._make_layers(store, sources["python"])
            self._view(store)
            self._prepare(store)
            self._write(store)
            self._fork(store, self._keys[0])
            self._measure(store, self._keys[1:WRITERS])
            self._commit(store, self._keys[1])
            self._remove(store, self._keys[2:3] + self._keys[WRITERS:])
            infos = {info.name: info for info in store.walk()}
        with self._step("close the store, and open it again"):
            store = Snapshotter(self._root)
        with store:
            self._verify("every snapshot is as it was", holds={info.name: info for info in store.walk()} == infos)
            print()
            sizes = {info.name: store.usage(info.name).size for info in infos.values()}
            display.table(
                ("KEY", "KIND", "SIZE"),
                [
                    (lines + info.name, str(info.kind), format_size(sizes[info.name]))
                    for _, lines, info in family.walk(infos.values())
                ],
            )

    def _make_base(self, store: Snapshotter, sources: dict[str, str]) -> None:
        for place, source in sources.items():
            self._shown |= self._manifest(source, place)
        files = sum(described.startswith("file") for described in self._shown.values())
        with self._mounted(store.prepare("base-build")) as path:
            with self._step(f"copy {files:,} files of the running Python, the base layer"):
                for place, source in sources.items():
                    self._copy(source, path / place)
            with self._step("commit it"):
                store.commit("base", "base-build")
        with self._mounted(store.view("base-view", "base")) as path:
            self._compare("it equals its source, by every file's SHA-256", self._manifest(path), self._shown)
        store.remove("base-view")

    def _make_layers(self, store: Snapshotter, python: str) -> None:
        application = os.path.dirname(snapshotter.__file__)
        with self._step("a layer on it: one package more, one less"):
            with self._mounted(store.prepare("app-build", "base")) as path:
                self._copy(application, path / "app")
                shutil.rmtree(path / "python/json")
            store.commit("app", "app-build", {"demo/layer": "app"})
        with self._step("a layer on that: a file, a link, a change"):
            with self._mounted(store.prepare("settings-build", "app")) as path:
                _write(path / "settings", b"debug = no\n")
                (path / "current").symlink_to("app")
                with open(path / "python/os.py", "ab") as file:
                    file.write(b"# changed\n")
            store.commit("settings", "settings-build", {"demo/layer": "settings"})
        kept = {path: text for path, text in self._shown.items() if not f"{path}/".startswith("python/json/")}
        original = Path(python, "os.py")
        self._shown = {
            **kept,
            **self._manifest(application, "app"),
            "settings": _file(b"debug = no\n"),
            "current": "link to app",
            "python/os.py": _file(original.read_bytes() + b"# changed\n", stat.S_IMODE(original.stat().st_mode)),
        }

    def _view(self, store: Snapshotter) -> None:
        with self._step("a view of it"):
            mounts = store.view("view", "settings")
        with self._mounted(mounts) as path:
            self._compare("it shows all three layers, by every file's SHA-256", self._manifest(path), self._shown)
            try:
                _write(path / "settings", b"")
                refused = False
            except OSError as error:
                refused = error.errno == errno.EROFS
            self._verify("it cannot be written to", holds=refused)

    def _prepare(self, store: Snapshotter) -> None:
        together = threading.Barrier(CONTAINERS, timeout=60)

        def prepare(key: str) -> None:
            together.wait()
            store.prepare(key, "settings")

        with ThreadPoolExecutor(CONTAINERS) as threads, self._step(f"prepare {CONTAINERS} containers at once"):
            list(threads.map(prepare, self._keys))

    def _write(self, store: Snapshotter) -> None:
        with self._step(f"write {format_size(WRITTEN)} in {WRITERS} of them, change a file, delete a link"):
            for key, data in self._data.items():
                with self._mounted(store.mounts(key)) as path:
                    _write(path / "data", data)
                    _write(path / "settings", f"name = {key}\n".encode())
                    (path / "current").unlink()
        wrong = []
        for key in self._keys:
            expected = self._expected(key)
            with self._mounted(store.mounts(key)) as path:
                wrong += [
                    (key, name)
                    for name in ("data", "settings", "current")
                    if _described(path / name) != expected.get(name, _NOTHING)
                ]
        self._verify(f"each of the {CONTAINERS} shows its own writes and no others", holds=not wrong)

    def _fork(self, store: Snapshotter, key: str) -> None:
        with self._mounted(store.mounts(key)) as path, open(path / "log", "wb", buffering=0) as running:
            running.write(b"before")
            with self._step(f"fork {key} while it writes"):
                mounts = store.fork(key, "fork")
            running.write(b", after")
            with self._mounted(mounts) as fork:
                expected = self._expected(key) | {"log": _file(b"before", stat.S_IMODE(os.stat(path / "log").st_mode))}
                self._compare("the fork equals it at that moment", self._manifest(fork), expected)
                _write(fork / "settings", b"name = fork\n")
                apart = (path / "settings").read_bytes(), (path / "log").read_bytes(), (fork / "log").read_bytes()
                self._verify(
                    "from then on they differ", holds=apart == (f"name = {key}\n".encode(), b"before, after", b"before")
                )

    def _measure(self, store: Snapshotter, keys: list[str]) -> None:
        with self._step(f"measure {len(keys)} that wrote"):
            usages = {key: store.usage(key) for key in keys}
        expected = {key: Usage(WRITTEN + len(f"name = {key}\n"), inodes=2) for key in keys}
        self._verify("each is the bytes written, in two files", holds=usages == expected)

    def _commit(self, store: Snapshotter, key: str) -> None:
        with self._mounted(store.mounts(key)) as path, open(path / "data", "r+b", buffering=0) as late:
            with self._step(f"commit {key} while it is mounted and open"):
                store.commit("release", key)
            late.write(b"too late")
            os.fsync(late.fileno())
        with self._mounted(store.view("release-view", "release")) as path:
            claim = "the layer has the contents at the commit, without later writes"
            self._compare(claim, self._manifest(path), self._expected(key))
        store.remove("release-view")

    def _remove(self, store: Snapshotter, keys: list[str]) -> None:
        before = self._used()
        kept = {info.name for info in store.walk()} - set(keys)
        with self._step(f"remove {len(keys)} containers"):
            for key in keys:
                store.remove(key)
        self._verify("they are gone, and all others are there", holds={info.name for info in store.walk()} == kept)
        deadline = time.monotonic() + RECLAIM_SECONDS
        with self._step("wait for their space"):
            while before - self._used() < WRITTEN and time.monotonic() < deadline:
                self._check()
                store.cleanup()
        self._verify(f"{format_size(before - self._used())} were freed", holds=before - self._used() >= WRITTEN)

    @contextlib.contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self._check()
        started = time.perf_counter()
        yield
        print(f"{title:<64} {(time.perf_counter() - started) * 1000:8,.1f} ms", flush=True)

    def _verify(self, claim: str, *, holds: bool) -> None:
        if not holds:
            raise Error(f"verification failed: {claim}")
        print(f"  verified: {claim}", flush=True)

    def _compare(self, claim: str, found: Manifest, expected: Manifest) -> None:
        different = sorted(path for path, _ in found.items() ^ expected.items())
        self._verify(f"{claim}: {different[0]!r} differs" if different else claim, holds=not different)

    @contextlib.contextmanager
    def _mounted(self, mounts: tuple[Mount, ...]) -> Iterator[Path]:
        self._check()
        with tempfile.TemporaryDirectory(dir=self._targets) as target, mounted(mounts, target):
            yield Path(target)

    def _copy(self, source: str, target: Path) -> None:
        os.mkdir(target)
        for path, entry in _entries(source):
            self._check()
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(target / path)
            elif entry.is_symlink():
                os.symlink(os.readlink(entry), target / path)
            else:
                shutil.copyfile(entry, target / path)
            if not entry.is_symlink():
                os.chmod(target / path, stat.S_IMODE(entry.stat().st_mode))
        os.chmod(target, stat.S_IMODE(os.stat(source).st_mode))

    def _manifest(self, top: str | Path, place: str = "") -> Manifest:
        """
        Return the manifest of the directory *top*, with its paths below *place*.
        """

        def describe(found: tuple[str, os.DirEntry[str]]) -> tuple[str, str]:
            self._check()
            path, entry = found
            return os.path.join(place, path), _described(entry)

        with ThreadPoolExecutor(READERS) as threads:
            described = dict(threads.map(describe, _entries(top)))
        return described | {place: _described(top)} if place else described

    def _expected(self, key: str) -> Manifest:
        """
        Return the manifest of the container *key* after all writes.
        """
        if key not in self._data:
            return self._shown
        expected = self._shown | {"data": _file(self._data[key]), "settings": _file(f"name = {key}\n".encode())}
        del expected["current"]
        return expected

    def _used(self) -> int:
        return sum(space.used_bytes for space in space.get(self._root) if space.type == "data")


def _entries(top: str | Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """
    Yield all files below *top* with their relative paths, parents first, but the files that a running Python writes.
    """
    pending = [""]
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(top, directory)) as entries:
            for entry in entries:
                if entry.name in _SKIPPED:
                    continue
                path = os.path.join(directory, entry.name)
                yield path, entry
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)


def _described(path: str | os.PathLike[str]) -> str:
    """
    Return the type, mode and content of the file at *path*.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return _NOTHING
    if stat.S_ISLNK(status.st_mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISDIR(status.st_mode):
        return f"directory {stat.S_IMODE(status.st_mode):04o}"
    with open(path, "rb") as file:
        return f"file {stat.S_IMODE(status.st_mode):04o} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _file(content: bytes, mode: int = 0o644) -> str:
    """
    Return the text of `_described` for a regular file with this content.
    """
    return f"file {mode:04o} {hashlib.sha256(content).hexdigest()}"


def _write(path: Path, content: bytes) -> None:
    """
    Create the file *path* with mode 0644, and sync it, because usage counts only data on disk.
    """
    with open(path, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)
        file.flush()
        os.fsync(file.fileno())
