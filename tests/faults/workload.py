"""
Threads that use a store and log the acknowledged state, and the comparison of a crashed store with that state.

A marker before each call names its changes, and a marker after it says that the call returned. So at any point of the
log each operation is acknowledged, in flight, or not begun.
"""

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pybtrfs import ioctl, subvolume
from snapshotter import Info, Kind, Snapshotter
from snapshotter.errors import Error, FailedPreconditionError, NotFoundError
from snapshotter.store import pieces, records
from snapshotter.store.record_storage import XATTR, Xattrs
from snapshotter.store.records import Record

STORE = "store"
NOCOW = 0x00800000  # FS_NOCOW_FL

# The promised state of a snapshot: kind, parent, labels and, unless it may have changed since, digest and usage.
State = dict[str, Any]
Effect = Mapping[str, State | None]


# -- content


def write_something(root: str, rng: random.Random) -> None:
    """
    Change the tree *root* by a random way in which data reaches a disk.
    """
    path = os.path.join(root, rng.choice("abcdefgh"))
    data = rng.randbytes(rng.choice((0, 100, 5000, 40_000)))
    with contextlib.suppress(OSError):  # the name is missing, or of another type
        rng.choice(WRITERS)(path, data, rng)


def _whole(path: str, data: bytes, rng: random.Random) -> None:
    with open(path, "wb") as file:
        file.write(data)
    os.setxattr(path, "user.length", str(len(data)).encode())


def _part(path: str, data: bytes, rng: random.Random) -> None:
    with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, data, rng.randrange(50_000))


def _direct(path: str, data: bytes, rng: random.Random) -> None:
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd, mmap.mmap(-1, 16384) as aligned:
        aligned.write(rng.randbytes(16384))
        os.pwrite(fd, aligned, 4096 * rng.randrange(4))


def _mapped(path: str, data: bytes, rng: random.Random) -> None:
    with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.truncate(fd, 20_000)
        with mmap.mmap(fd, 20_000) as mapping:
            mapping[5000:6000] = rng.randbytes(1000)


def _preallocated(path: str, data: bytes, rng: random.Random) -> None:
    with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.posix_fallocate(fd, 0, 30_000)
        os.pwrite(fd, data[:9000], 8192)


def _no_cow(path: str, data: bytes, rng: random.Random) -> None:
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        ioctl.setflags(fd, ioctl.getflags(fd) | NOCOW)
        os.write(fd, data)


def _unnamed(path: str, data: bytes, rng: random.Random) -> None:
    with _opened(os.path.dirname(path), os.O_RDWR | os.O_TMPFILE) as fd:
        os.write(fd, data)
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def _directory(path: str, data: bytes, rng: random.Random) -> None:
    os.mkdir(path)
    _whole(os.path.join(path, "inside"), data, rng)


def _links(path: str, data: bytes, rng: random.Random) -> None:
    os.symlink("somewhere", path + ".symlink")
    os.link(path, path + ".link", follow_symlinks=False)


def _renamed(path: str, data: bytes, rng: random.Random) -> None:
    os.rename(path, os.path.join(os.path.dirname(path), rng.choice("abcdefgh")))


def _gone(path: str, data: bytes, rng: random.Random) -> None:
    os.unlink(path)


WRITERS = (
    *(_whole, _whole, _part, _direct, _mapped, _preallocated, _no_cow, _unnamed),
    *(_directory, _links, _renamed, _gone),
)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def digest(root: str) -> str:
    """
    Return a digest of the tree *root*: names, types, modes, sizes, xattrs and every byte.
    """
    total = hashlib.sha256()
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            xattrs = [(key, os.getxattr(path, key)) for key in sorted(os.listxattr(path, follow_symlinks=False))]
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            total.update(f"{os.path.relpath(path, root)} {status.st_mode} {size} {xattrs}\n".encode())
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    total.update(file.read())
            elif stat.S_ISLNK(status.st_mode):
                total.update(os.readlink(path).encode())
    return total.hexdigest()


# -- the clients


def snapshot(kind: Kind, parent: str, labels: Mapping[str, str], digest: str | None) -> State:
    """
    Return the promised state of a snapshot.
    """
    return {"kind": str(kind), "parent": parent, "labels": dict(labels), "digest": digest}


def begun(number: int, effect: Effect) -> str:
    """
    Return the marker before an operation.
    """
    return json.dumps({"begin": number, "effect": effect})


def ended(number: int, *, done: bool = True) -> str:
    """
    Return the marker after an operation that was acknowledged or refused.
    """
    return json.dumps({"end": number, "done": done})


class Workload:
    """
    Clients of a store, each a thread with snapshots of its own. All clients share the layers.

    Args:
        many: The number of labels of some snapshots, of 4,000 bytes each.
    """

    def __init__(self, snapshotter: Snapshotter, mark: Callable[[str], object], *, many: int = 0) -> None:
        self._snapshotter = snapshotter
        self.many = many
        self._mark = mark
        self._lock = threading.Lock()
        self._operations = itertools.count()
        self._layers: dict[str, State] = {}
        self._failures: list[BaseException] = []

    def run(self, threads: int, steps: int, seed: int) -> None:
        """
        Run *threads* clients of *steps* steps each, and raise the first exception of a client.
        """
        clients = [
            threading.Thread(target=self._client, args=(number, steps, random.Random(seed * 1000 + number)))
            for number in range(threads)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        if self._failures:
            raise self._failures[0]

    def acknowledged(self, effect: Effect, call: Callable[[], Any], *refusals: type[Exception]) -> bool:
        """
        Make *call*, which has *effect*, between its two markers.

        Return False if it raised one of the *refusals*, after which everything must be as before.
        """
        number = next(self._operations)
        self._mark(begun(number, effect))
        try:
            call()
        except refusals:
            self._mark(ended(number, done=False))
            return False
        self._mark(ended(number))
        return True

    def _client(self, number: int, steps: int, rng: random.Random) -> None:
        try:
            client = _Client(self, self._snapshotter, f"{number}/", rng)
            for _ in range(steps):
                client.step()
        except BaseException as error:
            self._failures.append(error)

    def some_layer(self, rng: random.Random) -> tuple[str, State] | None:
        with self._lock:
            return rng.choice(list(self._layers.items())) if self._layers else None

    def add_layer(self, name: str, state: State) -> None:
        with self._lock:
            self._layers[name] = state

    def take_layer(self, rng: random.Random) -> tuple[str, State] | None:
        with self._lock:
            if not self._layers:
                return None
            name = rng.choice(list(self._layers))
            return name, self._layers.pop(name)


@dataclass
class _Client:
    """
    A client with its snapshots and its steps.
    """

    workload: Workload
    snapshotter: Snapshotter
    prefix: str
    rng: random.Random
    count: Iterator[int] = field(default_factory=itertools.count)
    own: dict[str, State] = field(default_factory=dict)  # active snapshots and views
    free: list[str] = field(default_factory=list)  # keys of removed snapshots

    def step(self) -> None:
        steps: list[tuple[Callable[[], None], int]] = [
            *((self.prepare, 5), (self.prepare_empty, 2), (self.view, 2), (self.write, 6), (self.commit, 5)),
            *((self.update, 3), (self.fork, 2), (self.remove, 3), (self.remove_layer, 2), (self.measure, 2)),
            (self.clean_up, 1),
        ]
        self.rng.choices([step for step, _ in steps], [weight for _, weight in steps])[0]()

    def new_key(self, word: str) -> str:
        """
        Return a free key, sometimes the key of a removed snapshot.
        """
        if self.free and self.rng.random() < 0.4:
            return self.free.pop()
        return f"{self.prefix}{word} {next(self.count)}"

    def labels(self) -> dict[str, str]:
        labels = {self.rng.choice("xyz"): str(self.rng.randrange(100)) for _ in range(self.rng.randrange(3))}
        if self.workload.many and self.rng.random() < 0.6:
            labels |= {f"{number}": self.rng.choice("xyz") * 4000 for number in range(self.workload.many)}
        return labels

    def pick(self, kind: Kind) -> str | None:
        keys = [key for key, state in self.own.items() if state["kind"] == str(kind)]
        return self.rng.choice(keys) if keys else None

    def create(self, key: str, state: State, call: Callable[[], Any]) -> None:
        # Another client may have removed the layer concurrently.
        if self.workload.acknowledged({key: state}, call, NotFoundError):
            self.own[key] = state

    def prepare(self) -> None:
        if layer := self.workload.some_layer(self.rng):
            key, labels = self.new_key("active"), self.labels()
            state = snapshot(Kind.ACTIVE, layer[0], labels, layer[1]["digest"])
            self.create(key, state, lambda: self.snapshotter.prepare(key, layer[0], labels))

    def prepare_empty(self) -> None:
        key, labels = self.new_key("base"), self.labels()
        state = snapshot(Kind.ACTIVE, "", labels, None)
        self.create(key, state, lambda: self.snapshotter.prepare(key, "", labels))

    def view(self) -> None:
        layer = self.workload.some_layer(self.rng)
        key, labels = self.new_key("view"), self.labels()
        state = snapshot(Kind.VIEW, layer[0] if layer else "", labels, None)
        self.create(key, state, lambda: self.snapshotter.view(key, state["parent"], labels))

    def fork(self) -> None:
        if key := self.pick(Kind.ACTIVE):
            new_key = self.new_key("fork")
            state = {**self.own[key], "digest": digest(self.path(key))}
            self.create(new_key, state, lambda: self.snapshotter.fork(key, new_key))

    def path(self, key: str) -> str:
        (mount,) = self.snapshotter.mounts(key)
        return mount.source

    def write(self) -> None:
        if key := self.pick(Kind.ACTIVE):
            self.write_to(key)

    def write_to(self, key: str) -> None:
        """
        Write to *key*, whose content is not promised from now on.
        """
        state = {**self.own[key], "digest": None}
        self.workload.acknowledged({key: state}, lambda: None)
        self.own[key] = state
        for _ in range(self.rng.randrange(1, 6)):
            write_something(self.path(key), self.rng)

    def commit(self) -> None:
        if not (key := self.pick(Kind.ACTIVE)):
            return
        self.write_to(key)
        name, labels, path = self.new_key("layer"), self.labels(), self.path(key)
        with _opened(os.path.join(path, "kept open"), os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"before")
            state = snapshot(Kind.COMMITTED, self.own[key]["parent"], labels, digest(path))
            committed = self.workload.acknowledged(
                {key: None, name: state},
                lambda: self.snapshotter.commit(name, key, labels=labels),
                FailedPreconditionError,
            )
            os.write(fd, b"after")  # into the former active snapshot, never into the layer
        if committed:
            del self.own[key]
            self.workload.add_layer(name, state)

    def update(self) -> None:
        """
        Change the labels of an own snapshot, or of a layer that no other client can take concurrently.
        """
        if self.own and self.rng.random() < 0.6:
            key = self.rng.choice(list(self.own))
            self.own[key] = self.relabel(key, self.own[key])
        elif layer := self.workload.take_layer(self.rng):
            self.workload.add_layer(layer[0], self.relabel(*layer))

    def relabel(self, key: str, state: State) -> State:
        new = {**state, "labels": self.labels()}
        info = Info(kind=Kind(state["kind"]), name=key, labels=new["labels"])
        self.workload.acknowledged({key: new}, lambda: self.snapshotter.update(info, "labels"))
        return new

    def remove(self) -> None:
        if self.own:
            key = self.rng.choice(list(self.own))
            del self.own[key]
            self.workload.acknowledged({key: None}, lambda: self.snapshotter.remove(key))
            self.free.append(key)

    def remove_layer(self) -> None:
        if (layer := self.workload.take_layer(self.rng)) and not self.workload.acknowledged(
            {layer[0]: None}, lambda: self.snapshotter.remove(layer[0]), FailedPreconditionError
        ):
            self.workload.add_layer(*layer)  # it has children

    def measure(self) -> None:
        """
        Measure a layer, whose usage must not change from now on.
        """
        if layer := self.workload.take_layer(self.rng):
            name, state = layer
            usage = self.snapshotter.usage(name)
            state = {**state, "usage": [usage.size, usage.inodes]}
            self.workload.acknowledged({name: state}, lambda: None)
            self.workload.add_layer(name, state)

    def clean_up(self) -> None:
        self.workload.acknowledged({}, self.snapshotter.cleanup)


# -- verification


def promised(marks: list[str]) -> tuple[dict[str, State], list[Effect]]:
    """
    Return the state that the markers promise, and the effects of the operations in flight.
    """
    state: dict[str, State] = {}
    under_way: dict[int, Effect] = {}
    for mark in map(json.loads, marks):
        if "begin" in mark:
            under_way[mark["begin"]] = mark["effect"]
        elif "end" in mark:
            effect = under_way.pop(mark["end"])
            if mark["done"]:
                _apply(state, effect)
    return state, list(under_way.values())


def _apply(state: dict[str, State], effect: Effect) -> None:
    for key, new in effect.items():
        if new is None:
            state.pop(key, None)
        else:
            state[key] = new


def verify(mount: str, marks: list[str]) -> list[str]:
    """
    Open the store below *mount* after a crash, and return its differences from the promises of *marks*.
    """
    try:
        return _differences(mount, marks)
    except (Error, OSError) as error:
        return [f"{type(error).__name__}: {error}"]


def _differences(mount: str, marks: list[str]) -> list[str]:
    root = os.path.join(mount, STORE)
    expected, under_way = promised(marks)
    wrong: list[str] = []
    with Snapshotter(root, mount_mode="bind") as snapshotter:
        wrong += [f"{problem.subject!r}: {problem.what}" for problem in snapshotter.problems()]
        there = {info.name: info for info in snapshotter.walk()}
        for effect in under_way:
            if all(_matches(there.get(key), new) for key, new in effect.items()):
                _apply(expected, effect)
        wrong += compare(there, expected)
        if wrong:
            return wrong
        snapshotter.cleanup()
        wrong += _wrong_on_disk(mount, there, expected)
        for key, state in expected.items():
            usage = snapshotter.usage(key)
            if state.get("usage", [usage.size, usage.inodes]) != [usage.size, usage.inodes]:
                wrong.append(f"usage of {key!r} is {usage}, was {state['usage']}")
        _use(snapshotter, expected)
    wrong += _unnamed_pieces(mount)
    with Snapshotter(root, mount_mode="bind") as snapshotter:
        if {info.name: info for info in snapshotter.walk()} != there:
            wrong.append("the next opening finds something else")
    return wrong


def compare(there: Mapping[str, Info], expected: Mapping[str, State]) -> list[str]:
    """
    Return the differences of the snapshots *there* from the *expected* state.
    """
    return [
        f"{key!r} is {there.get(key)}, promised was {expected.get(key)}"
        for key in expected.keys() | there.keys()
        if not _matches(there.get(key), expected.get(key))
    ]


def _matches(info: Info | None, state: State | None) -> bool:
    if info is None or state is None:
        return info is None and state is None
    return [str(info.kind), info.parent, info.labels] == [state["kind"], state["parent"], state["labels"]]


def _wrong_on_disk(mount: str, there: Mapping[str, Info], expected: Mapping[str, State]) -> list[str]:
    """
    Return wrong contents of snapshots, and directories and subvolumes without a snapshot.
    """
    wrong = []
    accounted = {STORE, f"{STORE}/empty"}
    snapshots = os.path.join(mount, STORE, "snapshots")
    seen = set()
    for name in os.listdir(snapshots):
        record = read_record(os.path.join(snapshots, name))
        if record is None:
            wrong.append(f"directory {name} has no record")
            continue
        if record.commitment and os.path.exists(os.path.join(snapshots, name, "layer")):
            record = record.committed()
        seen.add(record.key)
        state = expected.get(record.key)
        if state is None:
            wrong.append(f"directory {name} of {record.key!r}, which does not exist, is {record.state}")
        elif state["kind"] != str(Kind.VIEW):
            subvolume_name = "fs" if state["kind"] == str(Kind.ACTIVE) else "layer"
            path = os.path.join(snapshots, name, subvolume_name)
            accounted.add(os.path.relpath(path, mount))
            if not os.path.isdir(path):
                wrong.append(f"{record.key!r} has no subvolume")
            elif state["digest"] not in (None, digest(path)):
                wrong.append(f"content of {record.key!r}, {state['kind']}, is not what it was")
    wrong += [f"{key!r} has no directory" for key in there.keys() - seen]
    for entry in subvolume.iterate(mount):
        if entry.path not in accounted:
            wrong.append(f"subvolume {entry.path!r} belongs to no snapshot")
    return wrong


def read_record(path: str) -> Record | None:
    """
    Return the record of the directory *path*, which the store may change concurrently; None without a record.
    """
    with _opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        data = None
        while data != (data := Xattrs().read(fd)):
            whole = data and pieces.join(fd, data)
    return records.decode(whole, int(os.path.basename(path))) if whole else None


def _unnamed_pieces(mount: str) -> list[str]:
    """
    Return the xattrs of a closed store that no record names.
    """
    wrong = []
    snapshots = os.path.join(mount, STORE, "snapshots")
    for name in os.listdir(snapshots):
        path = os.path.join(snapshots, name)
        data = os.getxattr(path, XATTR)
        named = {f"{XATTR}.{number}" for number in records.named_pieces(data)}
        found = set(os.listxattr(path)) - {XATTR}
        if found != named or records.is_spilled(data) != bool(named):
            wrong.append(f"directory {name} has the pieces {sorted(found)}, and its record {data!r:.60} names others")
    return wrong


def _use(snapshotter: Snapshotter, expected: Mapping[str, State]) -> None:
    """
    Make a snapshot, on a layer if there is any, and remove it.
    """
    layers = [key for key, state in expected.items() if state["kind"] == str(Kind.COMMITTED)]
    snapshotter.prepare("judge", layers[0] if layers else "")
    snapshotter.commit("judge layer", "judge")
    snapshotter.remove("judge layer")
