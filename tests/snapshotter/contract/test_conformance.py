"""
The cases of containerd's own suite for snapshotters, by behaviour, on directories and on btrfs, as a library and
through a socket.

Each test is named after the case of core/snapshots/testsuite that it answers.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snapshotter import Info, Kind, Mount, Snapshotter
from snapshotter.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.snapshotter.conftest import entries

Content = Callable[[tuple[Mount, ...]], AbstractContextManager[Path]]
Step = Callable[[Path], object]

LABELS = {"containerd.io/gc.root": "2026-01-02T03:04:05Z"}


@pytest.fixture(params=["library", "rpc"])
def way(request: pytest.FixtureRequest) -> str:
    """
    The contract is the same across a socket.
    """
    return str(request.param)


def write(name: str, text: str = "", mode: int = 0o644) -> Step:
    def step(root: Path) -> None:
        (root / name).write_text(text)
        (root / name).chmod(mode)
        # A whole second, and always the same: nothing but the content tells that a file changed.
        os.utime(root / name, (1_000_000_000, 1_000_000_000))

    return step


def mkdir(name: str, mode: int = 0o755) -> Step:
    def step(root: Path) -> None:
        (root / name).mkdir()
        (root / name).chmod(mode)

    return step


def remove(name: str) -> Step:
    def step(root: Path) -> None:
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        else:
            (root / name).unlink()

    return step


def chown(*names: str, owner: int = 1) -> Step:
    return lambda root: [os.chown(root / name, owner, owner) for name in names]


def rename(old: str, new: str) -> Step:
    return lambda root: (root / old).rename(root / new)


def link(old: str, new: str) -> Step:
    return lambda root: os.link(root / old, root / new)


def apply(root: Path, *steps: Step) -> None:
    for step in steps:
        step(root)


def now() -> datetime:
    return datetime.now(UTC)


def names(store: Snapshotter, *filters: str) -> list[str]:
    return sorted(info.name for info in store.walk(*filters))


def test_basic(store: Snapshotter, content: Content, work: Path) -> None:
    """
    A layer, one on it, and a view: children see their parents and the changes, Stat and Walk agree, and what has
    children stays.
    """
    first = [write("foo", "foo\n", 0o777), mkdir("a"), mkdir("a/b"), mkdir("a/b/c")]
    second = [write("bar", "bar\n", 0o777), write("foo", "bar\n", 0o777), remove("a/b")]
    flat = work / "flat"
    flat.mkdir(0o755)

    key, name, next_key, next_name, view = (str(work / part) for part in ("key", "name", "next", "next name", "view"))
    with content(store.prepare(key, "", LABELS)) as path:
        apply(path, *first)
    apply(flat, *first)
    store.commit(name, key, LABELS)
    info = store.stat(name)
    assert (info.kind, info.name, info.parent, info.labels) == (Kind.COMMITTED, name, "", LABELS)
    with pytest.raises(NotFoundError):
        store.stat(key)

    with content(store.prepare(next_key, name, LABELS)) as path:
        assert entries(path) == entries(flat)
        apply(path, *second)
    apply(flat, *second)
    info = store.stat(next_key)
    assert (info.kind, info.name, info.parent) == (Kind.ACTIVE, next_key, name)
    store.commit(next_name, next_key, LABELS)
    info = store.stat(next_name)
    assert (info.kind, info.name, info.parent) == (Kind.COMMITTED, next_name, name)
    with pytest.raises(NotFoundError):
        store.stat(next_key)
    assert {info.name: info for info in store.walk()} == {n: store.stat(n) for n in (name, next_name)}

    with content(store.view(view, next_name, LABELS)) as path:
        assert entries(path) == entries(flat)
    store.remove(view)
    with pytest.raises(FailedPreconditionError, match="remove"):
        store.remove(name)
    store.remove(next_name)
    store.remove(name)
    assert names(store) == []


def test_stat_active(store: Snapshotter, content: Content) -> None:
    """
    Stat of an active snapshot without parent.
    """
    with content(store.prepare("active", "", LABELS)) as path:
        (path / "foo").write_text("foo\n")
    info = store.stat("active")
    assert (info.kind, info.name, info.parent, info.labels) == (Kind.ACTIVE, "active", "", LABELS)


def test_stat_committed(store: Snapshotter, content: Content) -> None:
    """
    Stat of a committed snapshot without parent.
    """
    with content(store.prepare("active", "", LABELS)) as path:
        (path / "foo").write_text("foo\n")
    store.commit("committed", "active", LABELS)
    info = store.stat("committed")
    assert (info.kind, info.name, info.parent, info.labels) == (Kind.COMMITTED, "committed", "", LABELS)


def test_transitivity(store: Snapshotter, content: Content) -> None:
    """
    Parents lead from one committed snapshot to the other, down to one without.
    """
    for name, parent in (("a", ""), ("b", "a"), ("c", "b")):
        with content(store.prepare("key", parent)) as path:
            (path / "foo").write_text(name)
        store.commit(name, "key")
    assert [store.stat(name).parent for name in ("c", "b", "a")] == ["b", "a", ""]


def test_prepare_view_failing(store: Snapshotter) -> None:
    """
    A key that is taken, by an active snapshot or a view, is taken for both.
    """
    store.prepare("key")
    store.commit("parent", "key")
    for first, second in (
        (store.prepare, store.view),
        (store.prepare, store.prepare),
        (store.view, store.view),
        (store.view, store.prepare),
    ):
        first("key", "parent")
        for parent in ("", "parent"):
            with pytest.raises(AlreadyExistsError):
                second("key", parent)
        store.remove("key")


@pytest.mark.parametrize(
    ("name", "kind", "parent"),
    [
        ("c1", Kind.COMMITTED, ""),
        ("c2", Kind.COMMITTED, "c1"),
        ("a1", Kind.ACTIVE, "c2"),
        ("a2", Kind.ACTIVE, ""),
        ("v1", Kind.VIEW, "c2"),
        ("v2", Kind.VIEW, ""),
    ],
)
def test_update(store: Snapshotter, name: str, kind: Kind, parent: str) -> None:
    """
    Labels are replaced, set one by one and deleted; Created stays, Updated moves, and nothing else can change.
    """
    before = now()
    store.prepare("c1-a", "", LABELS)
    store.commit("c1", "c1-a", LABELS)
    store.prepare("c2-a", "c1", LABELS)
    store.commit("c2", "c2-a", LABELS)
    store.prepare("a1", "c2", LABELS)
    store.prepare("a2", "", LABELS)
    store.view("v1", "c2", LABELS)
    store.view("v2", "", LABELS)
    after = now()

    born = store.stat(name)
    assert before <= born.created <= after
    assert born.created.utcoffset() == born.updated.utcoffset() == UTC.utcoffset(None)
    assert born == Info(kind, name, parent, LABELS, born.created, born.created)

    labels = {"l1": "v1", "l2": "v2", "l3": "v3", **LABELS}
    before = now()
    info = store.update(born._replace(parent="doesnotexist", labels=labels))
    assert before <= info.updated <= now()
    assert info == born._replace(labels=labels, updated=info.updated)
    assert store.stat(name) == info

    info = store.update(info._replace(labels={"l1": "updated", "l4": "v4"}), "labels.l1", "labels.l2")
    assert info.labels == {"l1": "updated", "l3": "v3", **LABELS}

    info = store.update(info._replace(labels={"l4": "v4", **LABELS}), "labels")
    assert info.labels == {"l4": "v4", **LABELS}

    for path in ("parent", "kind", "name", "created"):
        with pytest.raises(InvalidArgumentError, match=path):
            store.update(info._replace(labels={}), "labels", path)
    assert store.stat(name) == info


def test_remove(store: Snapshotter) -> None:
    """
    A key and a name can be taken again at once, by any kind.
    """
    store.prepare("key")
    store.commit("name", "key")
    store.prepare("reused", "name")
    store.remove("reused")
    store.view("reused", "name")
    store.remove("reused")
    store.prepare("reused")
    store.remove("name")
    store.commit("name", "reused")
    assert names(store) == ["name"]


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        (['labels."containerd.io/gc.root"==check-walk'], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (['kind==active,labels."containerd.io/gc.root"==check-walk'], "a a-np a-np-wl a-wl"),
        (['kind==view,labels."containerd.io/gc.root"==check-walk'], "v v-wl"),
        (['kind==committed,labels."containerd.io/gc.root"==check-walk'], "p p-wl"),
        (["name==p", "name==a-np-wl"], "a-np-wl p"),
        (["name==a-wl,labels.l"], "a-wl"),
        (["parent==p"], "a v"),
        (['parent!="",labels."containerd.io/gc.root"==check-walk'], "a a-wl v v-wl"),
        (["labels.l"], "a-np-wl a-wl p-wl v-wl"),
        (["labels.l==2"], "a-np-wl a-wl"),
        ([], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (["name~=/^v/,labels.l~=/[0-9]/"], "v-wl"),
        (["name==nothing"], ""),
    ],
)
def test_walk(store: Snapshotter, filters: list[str], matches: str) -> None:
    """
    Walk gives each snapshot that any of the filters matches, once.
    """
    labels = {"containerd.io/gc.root": "check-walk"}
    store.prepare("a-np", "", labels)
    store.prepare("p-tmp", "", labels)
    store.commit("p", "p-tmp", labels)
    store.prepare("a", "p", labels)
    store.view("v", "p", labels)
    store.prepare("p-wl-tmp", "", labels)
    store.commit("p-wl", "p-wl-tmp", {**labels, "l": "1"})
    store.prepare("a-wl", "p-wl", {**labels, "l": "2"})
    store.view("v-wl", "p-wl", {**labels, "l": "3"})
    store.prepare("a-np-wl", "", {**labels, "l": "2"})
    assert names(store, *filters) == matches.split()


LAYERS: dict[str, list[list[Step]]] = {
    "LayerFileupdate": [
        [
            mkdir("etc", 0o700),
            write("etc/hosts", "mydomain 10.0.0.1"),
            write("etc/profile", "PATH=/usr/bin"),
        ],
        [
            write("etc/hosts", "mydomain 10.0.0.2"),
            write("etc/profile", "PATH=/usr/bin", 0o666),
            mkdir("root", 0o700),
            write("root/.bashrc", "PATH=/usr/sbin:/usr/bin"),
        ],
    ],
    "RemoveDirectoryInLowerLayer": [
        [mkdir("lib", 0o700), write("lib/hidden")],
        [remove("lib"), mkdir("lib", 0o700), write("lib/not-hidden")],
        [write("lib/newfile")],
    ],
    "Chown": [
        [
            mkdir("opt", 0o700),
            mkdir("opt/a", 0o700),
            mkdir("opt/a/b", 0o700),
            write("opt/a/b/file.txt", "hello"),
        ],
        [chown("opt", "opt/a", "opt/a/b", "opt/a/b/file.txt")],
    ],
    "DirectoryPermissionOnCommit": [
        [
            *(mkdir(f"dir{n}", 0o700) for n in range(1, 6)),
            write("dir4/f1", "..."),
            write("dir5/f1", "..."),
            chown("dir1", "dir2", "dir3", "dir5", "dir5/f1"),
        ],
        [chown("dir2", owner=0), remove("dir3"), chown("dir4", "dir4/f1")],
        [mkdir("dir3", 0o700), chown("dir3"), remove("dir5"), mkdir("dir5", 0o700), chown("dir5")],
    ],
    "DeletedFilesInChildSnapshot": [
        [write("foo", "foo\n", 0o777), write("foobar", "foobar\n", 0o777)],
        [remove("foobar")],
        [],
    ],
    "MoveFileFromLowerLayer": [
        [mkdir("dir1", 0o700), write("dir1/f1", "Hello"), mkdir("dir2", 0o700), write("dir2/f2", "...")],
        [
            mkdir("dir3", 0o700),
            write("dir3/f1", "Hello"),
            remove("dir1"),
            link("dir2/f2", "dir3/f2"),
            remove("dir2/f2"),
        ],
    ],
    "Rename": [
        [
            mkdir("dir1", 0o700),
            mkdir("somefiles", 0o700),
            write("somefiles/f1", "was here first!"),
            write("somefiles/f2", "nothing interesting"),
        ],
        [
            rename("dir1", "dir2"),
            write("somefiles/f1-overwrite", "new content 1"),
            rename("somefiles/f1-overwrite", "somefiles/f1"),
            rename("somefiles/f2", "somefiles/f3"),
        ],
    ],
    "Modes, links and xattrs": [
        [
            write("setuid", "x", 0o4755),
            mkdir("sticky", 0o1777),
            write("one", "1"),
            link("one", "two"),
            lambda root: (root / "symlink").symlink_to("/nowhere"),
            lambda root: os.mkfifo(root / "fifo", 0o600),
            lambda root: os.setxattr(root / "one", "user.a", b"\0\xff"),
        ],
        [remove("one"), lambda root: os.removexattr(root / "two", "user.a"), mkdir("one", 0o2750)],
    ],
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_layers(
    store: Snapshotter, content: Content, work: Path, layers: list[list[Step]], request: pytest.FixtureRequest
) -> None:
    """
    Each layer of a chain shows what the same changes make of one directory, in a view and from then on.
    """
    if os.geteuid() and request.node.callspec.id.split("-")[-1] in ("Chown", "DirectoryPermissionOnCommit"):
        pytest.skip("chown needs root")
    flat = work / "flat"
    flat.mkdir(0o755)
    seen = []
    parent = ""
    for n, steps in enumerate(layers):
        with content(store.prepare("key", parent)) as path:
            apply(path, *steps)
        apply(flat, *steps)
        parent = f"layer {n}"
        store.commit(parent, "key")
        seen.append(entries(flat))
    for n, expected in enumerate(seen):
        with content(store.view("view", f"layer {n}")) as path:
            assert entries(path) == expected
        store.remove("view")


def test_remove_intermediate_snapshot(store: Snapshotter) -> None:
    """
    A committed snapshot stays while one rests on it; from the top down all go.
    """
    store.prepare("key")
    store.commit("base", "key")
    store.prepare("key", "base")
    store.commit("inter", "key")
    store.prepare("top", "inter")
    for name in ("inter", "base"):
        with pytest.raises(FailedPreconditionError, match="remove"):
            store.remove(name)
    for name in ("top", "inter", "base"):
        store.remove(name)
    assert names(store) == []


@pytest.mark.btrfs
@pytest.mark.parametrize("backend", ["btrfs"], indirect=True)
@pytest.mark.parametrize("mount_mode", ["btrfs", "bind"])
@pytest.mark.parametrize("parent", ["", "parent"])
def test_view_readonly(open_store: Callable[..., Snapshotter], content: Content, mount_mode: str, parent: str) -> None:
    """
    A real write through a mounted view fails.
    """
    store = open_store(mount_mode=mount_mode)
    store.prepare("key")
    store.commit("parent", "key")
    mounts = store.view("view", parent)
    assert "ro" in mounts[-1].options
    with content(mounts) as path, pytest.raises(OSError, match="Read-only file system"):
        (path / "file").write_text("x")
    store.remove("view")
    store.remove("parent")


def test_stat_in_walk(store: Snapshotter) -> None:
    """
    Stat in a walk says the same as the walk.
    """
    store.prepare("c1-a", "", LABELS)
    store.commit("c1", "c1-a", LABELS)
    store.prepare("c2-a", "c1")
    store.commit("c2", "c2-a", {"a": "b"})
    store.prepare("a1", "c2", LABELS)
    store.view("v1", "c2", LABELS)
    walked = [(info, store.stat(info.name)) for info in store.walk()]
    assert len(walked) == 4
    assert all(info == stat for info, stat in walked)


def test_close_twice(store: Snapshotter) -> None:
    """
    Closing twice is fine.
    """
    store.prepare("key")
    store.commit("name", "key")
    store.remove("name")
    store.close()
    store.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_root_permission(store: Snapshotter, content: Content, umask: int) -> None:
    """
    The root of a snapshot without parent is 0755, whatever the umask.
    """
    before = os.umask(umask)
    try:
        for mounts in (store.prepare("active"), store.view("view")):
            with content(mounts) as path:
                assert path.stat().st_mode & 0o7777 == 0o755
                assert list(path.iterdir()) == []
    finally:
        os.umask(before)


def test_128_layers_mount(store: Snapshotter, content: Content, work: Path) -> None:
    """
    128 layers on each other show what the same changes make of one directory, before and after each.
    """
    flat = work / "flat"
    flat.mkdir(0o755)
    parent = ""
    for n in range(128):
        steps = [write("overwriteme", f"{n} WAS HERE!\n", 0o777)]
        if n:
            steps += [remove("onlyme")]
        else:
            steps += [write("bottom", "way at the bottom\n", 0o777), mkdir("addhere")]
        steps += [write(f"addhere/file-{n}", "same\n", 0o755), mkdir("onlyme"), write(f"onlyme/file-{n}", "only me!\n")]
        with content(store.prepare(f"key {n}", parent)) as path:
            assert entries(path) == entries(flat)
            apply(flat, *steps)
            apply(path, *steps)
            assert entries(path) == entries(flat)
        parent = f"layer {n}"
        store.commit(parent, f"key {n}")
    with content(store.view("view", parent)) as path:
        assert entries(path) == entries(flat)
