"""
Promises that only a real disk can break: layers stay as committed, a full disk is survived, nothing is left behind.
"""

import contextlib
import ctypes
import errno
import hashlib
import itertools
import mmap
import os
import random
import resource
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, image, ioctl, subvolume, syscall
from snapshotter import Kind, Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    Error,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from snapshotter.mounting import mounted
from tests.namespaces import source
from tests.snapshotter.conftest import entries

pytestmark = pytest.mark.btrfs


@pytest.fixture
def store(btrfs: Path) -> Iterator[Snapshotter]:
    """
    A store with the layer "base".
    """
    with Snapshotter.create(btrfs / "root") as store:
        store.prepare("k")
        (newest(store) / "fs" / "file").write_bytes(bytes(100_000))
        store.commit("base", "k")
        yield store


def newest(store: Snapshotter) -> Path:
    """
    The directory of the latest snapshot.
    """
    return max(Path(store.root, "snapshots").iterdir(), key=lambda path: int(path.name))


def prepared(store: Snapshotter, key: str, parent: str = "") -> Path:
    """
    The subvolume of a new active.
    """
    store.prepare(key, parent)
    return newest(store) / "fs"


def digest(root: Path) -> str:
    return hashlib.sha256(repr(sorted(entries(root).items())).encode()).hexdigest()


# Layers stay as committed


def test_writers_cannot_reach_a_layer(store: Snapshotter) -> None:
    """
    Descriptors and a mapping that were open for writing before a commit write into the former active, not the layer:
    it and its children are the same before and after.
    """
    active = prepared(store, "active", "base")
    snapshot = active.parent
    size = 1 << 16
    for name in ("buffered", "direct", "mapped"):
        (active / name).write_bytes(b"before" * (size // 6) + b"....")
    page = mmap.mmap(-1, 4096)
    page.write(b"after!.." * 512)
    with ExitStack() as stack:
        buffered = stack.enter_context(open(active / "buffered", "r+b", buffering=0))
        direct = os.open(active / "direct", os.O_RDWR | os.O_DIRECT)
        stack.callback(os.close, direct)
        mapped = stack.enter_context(open(active / "mapped", "r+b"))
        mapping = stack.enter_context(mmap.mmap(mapped.fileno(), size))
        mapping[:4096] = page[:]  # this page is dirty at the commit

        def write(offset: int) -> None:
            os.pwrite(buffered.fileno(), b"after", offset)
            os.pwrite(direct, page, offset)
            mapping[offset : offset + 5] = b"after"
            mapping.flush()
            os.fsync(direct)
            os.fsync(buffered.fileno())

        store.commit("layer", "active")
        with mounted(store.view("first", "layer")) as path:
            before = digest(Path(path))
        assert digest(snapshot / "layer") == before
        assert (snapshot / "layer" / "mapped").read_bytes()[:4096] == page[:]
        for offset in range(4096, size, 4096):
            write(offset)
        buffered.write(b"more")
    child = prepared(store, "child", "layer")
    with mounted(store.view("second", "layer")) as path:
        assert digest(Path(path)) == digest(snapshot / "layer") == digest(child) == before
    store.cleanup()
    assert os.listdir(snapshot) == ["layer"]
    assert digest(snapshot / "layer") == before


def test_mounted(store: Snapshotter) -> None:
    """
    A mounted active can be committed: what is written later is not in the layer, and its subvolume goes when it is
    unmounted. The layer cannot be mounted for writing.
    """
    with mounted(store.prepare("active", "base")) as path:
        snapshot = newest(store)
        Path(path, "before").write_text("before")
        store.commit("layer", "active")
        Path(path, "after").write_text("after")
        store.cleanup()
        assert sorted(os.listdir(snapshot)) == ["fs", "layer"]
        assert Path(path, "after").read_text() == "after"
        assert sorted(os.listdir(snapshot / "layer")) == ["before", "file"]
        with pytest.raises(FailedPreconditionError, match="requested snapshot 'layer' not active or view"):
            store.mounts("layer")
    store.cleanup()
    assert os.listdir(snapshot) == ["layer"]


def test_removed_while_mounted(store: Snapshotter) -> None:
    """
    Removal of what is mounted is answered, the key is free, and whoever uses it goes on until it is unmounted.
    """
    with mounted(store.prepare("active", "base")) as path:
        removed = newest(store)
        store.remove("active")
        store.prepare("active", "base")
        store.remove("active")
        store.cleanup()
        Path(path, "new").write_text("still here")
        assert Path(path, "file").stat().st_size == 100_000
        assert removed.exists()
    store.cleanup()
    assert os.listdir(removed.parent) == ["1"]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_empty_active(umask: int, store: Snapshotter) -> None:
    """
    The root of an empty active is 0755 and writable.
    """
    before = os.umask(umask)
    try:
        mounts = store.prepare("k")
    finally:
        os.umask(before)
    assert "ro" not in mounts[0].options
    with mounted(mounts) as path:
        assert os.stat(path).st_mode & 0o7777 == 0o755
        assert os.listdir(path) == []
        Path(path, "new").touch()


def subvolumes(store: Snapshotter) -> int:
    return sum(1 for _ in subvolume.iterate(store.root))


@pytest.mark.parametrize("parent", ["", "base"])
@pytest.mark.parametrize("mode", ["btrfs", "bind"])
def test_views(parent: str, mode: Any, store: Snapshotter) -> None:
    """
    A view shows its parent, or an empty directory, copies nothing, and cannot be written to.
    """
    root = store.root
    store.close()
    with Snapshotter(root, mount_mode=mode) as store:
        store.cleanup()
        before = subvolumes(store)
        with mounted(store.view("view", parent)) as path, mounted(store.mounts("view")) as again:
            assert os.listdir(path) == os.listdir(again) == (["file"] if parent else [])
            assert os.stat(path).st_mode & 0o7777 == 0o755
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                Path(path, "new").touch()
        assert subvolumes(store) == before
        store.remove("view")


def test_fork(store: Snapshotter) -> None:
    """
    A fork has what its running source had written at that moment, and both go on by themselves.
    """
    store.prepare("active", "base", {"a": "b"})
    active = newest(store) / "fs"
    with open(active / "log", "w") as log:
        log.write("before\n")
        log.flush()
        with mounted(store.fork("active", "fork")) as path:
            log.write("after\n")
            log.flush()
            assert Path(path, "log").read_text() == "before\n"
            Path(path, "of fork").touch()
    assert (active / "log").read_text() == "before\nafter\n"
    assert not (active / "of fork").exists()
    info = store.stat("fork")
    assert (info.kind, info.parent, info.labels) == (Kind.ACTIVE, "base", {"a": "b"})
    store.remove("active")
    store.commit("forked", "fork")
    for key, kind in (("view", FailedPreconditionError), ("forked", FailedPreconditionError), ("x", NotFoundError)):
        if key == "view":
            store.view("view", "forked")
        with pytest.raises(kind):
            store.fork(key, "new")
    store.prepare("active")
    with pytest.raises(AlreadyExistsError):
        store.fork("active", "view")


# Swap


def make_swapfile(path: Path) -> None:
    with open(path, "wb") as file:
        ioctl.setflags(file.fileno(), 0x800000)  # FS_NOCOW_FL
        file.write(bytes(1 << 20))
        file.seek(1024)
        file.write(struct.pack("<II", 1, (1 << 20) // 4096 - 1))
        file.seek(4096 - 10)
        file.write(b"SWAPSPACE2")
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o600)


@contextmanager
def swapping(path: Path) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.swapon(os.fsencode(path), 0) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.swapoff(os.fsencode(path)) == 0


def test_swapfile(store: Snapshotter) -> None:
    """
    A swap file in use stops a commit with the cure, and a removal's destroying until it is not; nothing else.
    """
    active = prepared(store, "active", "base")
    make_swapfile(active / "swap")
    with swapping(active / "swap"):
        with pytest.raises(FailedPreconditionError, match=r"cannot commit snapshot 'active': .*swapoff first"):
            store.commit("layer", "active")
        assert store.stat("active").kind is Kind.ACTIVE
        assert os.listdir(active.parent) == ["fs"]
    store.commit("layer", "active")
    active = prepared(store, "active", "base")
    make_swapfile(active / "swap")
    with swapping(active / "swap"):
        store.remove("active")
        store.cleanup()
        assert active.exists()
        store.prepare("other", "base")
        store.remove("other")
    store.cleanup()
    assert not active.exists()


# Full disks


def fill(path: Path, write: Callable[[Path], object]) -> int:
    """
    Make files until there is no more space, and return how many it took.
    """
    number = 0
    with contextlib.suppress(OSError):
        path.mkdir()
        for number in range(1 << 20):
            write(path / str(number))
    return number


def with_data(path: Path) -> None:
    path.write_bytes(os.urandom(1 << 20))


def with_metadata(path: Path) -> None:
    path.touch()
    os.setxattr(path, "user.large", bytes(14_000))


def worked(store: Snapshotter, call: Callable[[], object]) -> bool:
    """
    Whether a call worked on a disk that is full; if not, nothing has changed.

    On a full disk the kernel refuses even a directory at one time and not at another, after a commit for example.
    """
    before = {info.name: info for info in store.walk()}
    try:
        call()
    except ResourceExhaustedError as error:
        assert "No space left on device" in str(error)
        assert {info.name: info for info in store.walk()} == before
        return False
    return True


def test_data_full(btrfs_mount: Callable[..., Path]) -> None:
    """
    With no space for data a removal works, and what was removed can be used again as soon as it was cleaned up.
    """
    with Snapshotter.create(btrfs_mount(image.MINIMUM_SIZE)) as store:
        store.prepare("k")
        store.commit("base", "k")
        active = prepared(store, "active", "base")
        filled = prepared(store, "filled", "base")
        written = fill(filled / "data", with_data)
        filesystem.sync(store.root)
        assert written > 10
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (active / "more").write_bytes(bytes(4 << 20))
        worked(store, lambda: store.prepare("another", "base"))
        worked(store, lambda: store.view("view", "base"))
        worked(store, lambda: store.update(store.stat("base"), "labels"))
        worked(store, lambda: store.commit("layer", "active"))
        store.remove("filled")
        store.cleanup()
        again = prepared(store, "again", "base")
        assert fill(again / "data", with_data) > written - 5
        store.remove("again")
        store.cleanup()
        consistent(store)


def test_metadata_full(btrfs_mount: Callable[..., Path]) -> None:
    """
    With no space for metadata what needs some is ResourceExhausted and changes nothing; a removal works, and what it
    freed can be used at once, by the next call.
    """
    with Snapshotter.create(btrfs_mount(image.MINIMUM_SIZE)) as store:
        store.prepare("k")
        store.commit("base", "k")
        store.prepare("active", "base")
        filled = prepared(store, "filled", "base")
        store.cleanup()
        held = fill(filled / "large", with_metadata)
        assert held > 1000
        calls: list[Callable[[], object]] = [
            lambda: store.view("x0", "base"),
            lambda: store.prepare("x1", "base"),
            lambda: store.fork("active", "x2"),
            lambda: store.update(store.stat("base"), "labels"),
        ]
        outcomes = []
        for number, call in enumerate(calls):
            fill(filled / f"small {number}", lambda path: path.touch())
            outcomes.append(worked(store, call))
        assert not all(outcomes)
        store.remove("filled")
        active = prepared(store, "new", "base")
        store.fork("active", "fork")
        assert fill(active / "again", with_metadata) > held / 2
        store.remove("new")
        store.view("view", "base")
        store.commit("layer", "active")
        consistent(store)


def test_deleted_by_others(btrfs_mount: Callable[..., Path]) -> None:
    """
    Space of subvolumes that others deleted a moment ago, such as the store's former owner, is used as well.
    """
    mount = btrfs_mount(image.MINIMUM_SIZE)
    with Snapshotter.create(mount / "root") as store:
        filled = mount / "filled"
        subvolume.create(filled)
        assert fill(filled / "large", with_metadata) > 1000
        keys = map(str, itertools.count())
        while worked(store, lambda: store.prepare(next(keys))):
            pass
        store.cleanup()
        subvolume.delete(filled)
        store.prepare("fits")
        consistent(store)


def test_quota(btrfs_mount: Callable[..., Path]) -> None:
    """
    A quota that is used up, of a snapshot or of the store's own subvolume, is ResourceExhausted; what is changed by
    then stays. A full snapshot can be committed and removed; where the store's own is full, the kernel refuses to
    destroy anything in it, and a removal says so.
    """
    mount = btrfs_mount()
    with open_fd(mount) as fd:
        ioctl.quota_ctl(fd, ioctl.QUOTA_CTL_ENABLE_SIMPLE_QUOTA)
        with Snapshotter.create(mount / "root") as store:
            active = prepared(store, "k")
            ioctl.qgroup_limit(fd, subvolume.get_id(active), (1 << 20, None))
            with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
                (active / "data").write_bytes(os.urandom(4 << 20))
            store.commit("base", "k")
            active = prepared(store, "active", "base")
            ioctl.qgroup_limit(fd, subvolume.get_id(active), (1, None))
            store.remove("active")
            store.prepare("active", "base")
            store.cleanup()
            own = subvolume.get_id(store.root)
            ioctl.qgroup_limit(fd, own, (1, None))
            before = set(os.listdir(newest(store).parent)), {info.name: info for info in store.walk()}
            calls: list[Callable[[], object]] = [
                lambda: store.prepare("x", "base"),
                lambda: store.prepare("x"),
                lambda: store.view("x", "base"),
                lambda: store.fork("active", "x"),
                lambda: store.commit("x", "active"),
                lambda: store.update(store.stat("active")),
            ]
            for call in calls:
                with pytest.raises(ResourceExhaustedError, match="Disk quota exceeded"):
                    call()
            with pytest.raises(ResourceExhaustedError, match="cannot remove snapshot 'active': Disk quota exceeded"):
                store.remove("active")
            assert {info.name: info for info in store.walk()} == before[1]
            ioctl.qgroup_limit(fd, own, (1 << 30, None))
            store.cleanup()
            assert set(os.listdir(newest(store).parent)) == before[0]
            store.fork("active", "x")
            store.commit("c", "active")
            consistent(store)


@contextmanager
def open_fd(path: Path | str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


# Bad input


def test_too_large(store: Snapshotter) -> None:
    """
    Keys and labels beyond the limits change nothing and leave nothing.
    """
    store.prepare("active", "base")
    store.cleanup()
    before = sorted(os.listdir(newest(store).parent)), {info.name: info for info in store.walk()}
    many = {f"label {number}": "x" * 4000 for number in range(270)}
    for labels, text in [(many, "need .* bytes, more than 1048576"), ({"a": "x" * 4096}, "more than 4096")]:
        for call in (
            lambda labels: store.prepare("x", "base", labels),
            lambda labels: store.view("x", "base", labels),
            lambda labels: store.commit("x", "active", labels),
        ):
            with pytest.raises(InvalidArgumentError, match=text):
                call(labels)
    for call in (lambda key: store.prepare(key), lambda key: store.commit(key, "active")):
        with pytest.raises(InvalidArgumentError, match="more than 32768"):
            call("k" * 32_769)
    with pytest.raises(InvalidArgumentError, match="more than 32768"):
        store.fork("active", "k" * 32_769)
    store.cleanup()
    assert (sorted(os.listdir(newest(store).parent)), {info.name: info for info in store.walk()}) == before


# Descriptors


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def only(spare: int) -> Iterator[None]:
    """
    Leave the process no more than *spare* descriptors to open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + spare + 1
    fillers: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(spare):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


OPERATIONS: dict[str, Callable[[Snapshotter, str], object]] = {
    "prepare": lambda store, key: store.prepare(key, "base"),
    "prepare empty": lambda store, key: store.prepare(key),
    "view": lambda store, key: store.view(key, "base"),
    "fork": lambda store, key: store.fork("active", key),
    "commit": lambda store, key: store.commit(key, "active"),
    "update": lambda store, key: store.update(store.stat("active"), "labels"),
    "mounts": lambda store, key: store.mounts("active"),
    "usage": lambda store, key: store.usage("active"),
    "remove": lambda store, key: store.remove("active"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_descriptors(name: str, store: Snapshotter) -> None:
    """
    Without enough descriptors a call fails as a whole, whichever it lacks; none is lost, and the store is fine.
    """
    operation = OPERATIONS[name]
    store.prepare("active", "base")
    store.cleanup()
    failed = 0
    for spare in range(20):
        key = f"k{spare}"
        before = descriptors()
        known = {info.name for info in store.walk()}
        try:
            with only(spare):
                operation(store, key)
        except ResourceExhaustedError as error:
            assert "Too many open files" in str(error)
            failed += 1
            assert {info.name for info in store.walk()} == known
        else:
            if name in ("commit", "remove"):
                store.prepare("active", "base")
        store.cleanup()
        assert descriptors() == before
        if spare - failed > 2:
            break
    assert (0 if name == "mounts" else 1) <= failed < 19  # that one opens nothing
    consistent(store)


# Concurrency


def consistent(store: Snapshotter) -> None:
    """
    Check that the disk holds what the index says and nothing else, and that it is the same for who opens it anew.
    """
    store.cleanup()
    before = {info.name: info for info in store.walk()}
    expected = {
        str(snapshot.id): {Kind.ACTIVE: ["fs"], Kind.COMMITTED: ["layer"], Kind.VIEW: []}[snapshot.kind]
        for snapshot in store.opened.index.snapshots()
    }
    children = Counter(info.parent for info in before.values())
    for snapshot in store.opened.index.snapshots():
        assert snapshot.children == children[snapshot.key]
    assert store.problems() == []
    store.close()
    found = {path.name: os.listdir(path) for path in Path(store.root, "snapshots").iterdir()}
    assert found == expected
    with Snapshotter(store.root) as again:
        assert {info.name: info for info in again.walk()} == before
        assert again.problems() == []


def test_one_wins(store: Snapshotter) -> None:
    """
    Among concurrent callers for one key, one snapshot or one name, exactly one succeeds.
    """
    for key in map(str, range(8)):
        store.prepare(key, "base")

    def outcomes(call: Callable[[int], object]) -> Counter[type]:
        barrier = threading.Barrier(8)

        def attempt(number: int) -> type:
            barrier.wait()
            try:
                call(number)
            except Error as error:
                return type(error)
            return bool

        with ThreadPoolExecutor(8) as pool:
            return Counter(pool.map(attempt, range(8)))

    assert outcomes(lambda _: store.prepare("key", "base")) == {bool: 1, AlreadyExistsError: 7}
    assert outcomes(lambda number: store.commit(f"c{number}", "key")) == {bool: 1, NotFoundError: 7}
    assert outcomes(lambda number: store.commit("name", str(number))) == {bool: 1, AlreadyExistsError: 7}
    assert outcomes(lambda _: store.remove("name")) == {bool: 1, NotFoundError: 7}
    consistent(store)


def test_many_threads(store: Snapshotter) -> None:
    """
    64 threads that do everything at once leave a store that is what it says, each seeing only errors of the contract.
    """

    def work(number: int) -> Counter[str]:
        chance = random.Random(number)
        outcome: Counter[str] = Counter()
        for _ in range(25):
            keys = [f"k{chance.randrange(24)}" for _ in range(2)]
            names = [f"c{chance.randrange(12)}" for _ in range(2)]
            parent = chance.choice([*names, "base", ""])
            name, call = chance.choice(
                [
                    ("prepare", lambda keys=keys, parent=parent: store.prepare(keys[0], parent)),
                    ("prepare", lambda keys=keys, parent=parent: store.prepare(keys[1], parent, {"a": "b"})),
                    ("view", lambda keys=keys, parent=parent: store.view(keys[0], parent)),
                    ("commit", lambda keys=keys, names=names: store.commit(names[0], keys[0])),
                    ("commit", lambda keys=keys, names=names: store.commit(names[1], keys[1])),
                    ("fork", lambda keys=keys: store.fork(*keys)),
                    ("update", lambda names=names: store.update(store.stat(names[0]), "labels")),
                    ("usage", lambda keys=keys: store.usage(keys[0])),
                    ("mounts", lambda keys=keys: store.mounts(keys[0])),
                    ("remove", lambda keys=keys: store.remove(keys[0])),
                    ("remove", lambda names=names: store.remove(names[0])),
                    ("cleanup", lambda: chance.random() < 0.1 and store.cleanup()),
                    ("walk", lambda: [store.stat(info.name) for info in store.walk("kind==committed")]),
                ]
            )
            try:
                call()
                outcome[name] += 1
            except (AlreadyExistsError, NotFoundError, FailedPreconditionError, InvalidArgumentError):
                pass
        return outcome

    with ThreadPoolExecutor(64) as pool:
        done = sum(pool.map(work, range(64)), Counter[str]())
    assert set(done) == {"prepare", "view", "commit", "fork", "update", "usage", "mounts", "remove", "cleanup", "walk"}
    consistent(store)


# Elsewhere


def test_mounted_elsewhere(tmp_path: Path) -> None:
    """
    After the filesystem was mounted anew, from another device and somewhere else, mounts are right.
    """
    image.create(tmp_path / "image", image.MINIMUM_SIZE, sparse=True)
    targets = [tmp_path / name for name in ("first", "second")]
    taken = tmp_path / "taken"
    image.create(taken, image.MINIMUM_SIZE, sparse=True)
    for target in targets:
        target.mkdir()
    with image.mount(tmp_path / "image", targets[0]) as first, Snapshotter.create(targets[0] / "root") as store:
        store.prepare("k")
        with mounted(store.mounts("k")) as path:
            Path(path, "file").write_text("content")
        assert store.mounts("k")[0].source == first.device == source(targets[0])
        store.close()
    with image.attach(taken), image.mount(tmp_path / "image", targets[1]) as second:
        with Snapshotter(targets[1] / "root") as store:
            assert not store.why_read_only
            assert store.mounts("k")[0].source == second.device == source(targets[1])
            with mounted(store.mounts("k")) as path:
                assert Path(path, "file").read_text() == "content"
        syscall.mount(targets[1], targets[0], "", syscall.MS_BIND)
        with Snapshotter(targets[0] / "root", mount_mode="bind") as store:
            assert store.mounts("k")[0].source.startswith(f"{targets[0]}/root/snapshots/")
        syscall.umount2(targets[0])
