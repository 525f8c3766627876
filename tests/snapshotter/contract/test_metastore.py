"""
Who may do what when: the cases of containerd's metadata store, and which error wins when several would do.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snapshotter import Info, Kind, Mount, Snapshotter, Usage
from snapshotter.client import Client
from snapshotter.contract.labels import MAX_KEY_SIZE
from snapshotter.errors import (
    AlreadyExistsError,
    Error,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from snapshotter.store import records
from snapshotter.store.operations import MAX_TEXT_SIZE
from snapshotter.testing import settle
from tests.snapshotter.conftest import entries
from tests.snapshotter.serving import serving

Content = Callable[[tuple[Mount, ...]], AbstractContextManager[Path]]

BASE = {
    "committed-1": (Kind.COMMITTED, ""),
    "committed-2": (Kind.COMMITTED, "committed-1"),
    "active-1": (Kind.ACTIVE, ""),
    "active-2": (Kind.ACTIVE, "committed-1"),
    "active-3": (Kind.ACTIVE, "committed-2"),
    "view-1": (Kind.VIEW, ""),
    "view-2": (Kind.VIEW, "committed-2"),
}
TOO_LARGE = "x" * 32_769
TOO_MANY = {str(number): "v" * 4000 for number in range(270)}


@pytest.fixture(params=["library", "rpc"])
def way(request: pytest.FixtureRequest) -> str:
    """
    The contract is the same across a socket.
    """
    return str(request.param)


def populate(store: Snapshotter) -> Snapshotter:
    """
    Make the snapshots of BASE, each with a label of its own.
    """
    for name, (kind, parent) in BASE.items():
        if kind is Kind.COMMITTED:
            store.prepare(f"{name}-tmp", parent)
            store.commit(name, f"{name}-tmp", {"name": name})
        elif kind is Kind.ACTIVE:
            store.prepare(name, parent, {"name": name})
        else:
            store.view(name, parent, {"name": name})
    return store


@pytest.fixture
def populated(store: Snapshotter) -> Snapshotter:
    """
    A store with the snapshots of BASE.
    """
    return populate(store)


def largest_labels(key: str, letter: str) -> dict[str, str]:
    """
    Return labels that with *key* are as large as a snapshot's may be.
    """
    labels = {f"{letter}{number}": letter * 4000 for number in range(100)} | {"last": ""}
    labels |= {f"{letter}{number}": letter * 4000 for number in range(100, 253)}
    labels["last"] = letter * (MAX_TEXT_SIZE - records.text_size(key, labels))
    return labels


def state(store: Snapshotter) -> dict[str, Info]:
    return {info.name: info for info in store.walk()}


# Reading


def test_get_info(populated: Snapshotter) -> None:
    """
    Stat describes each kind, with and without parent.
    """
    for name, (kind, parent) in BASE.items():
        info = populated.stat(name)
        assert info == Info(kind, name, parent, {"name": name}, info.created, info.created)


def test_walk(populated: Snapshotter) -> None:
    """
    Walk gives each snapshot once, as Stat describes it.
    """
    walked = list(populated.walk())
    assert sorted(info.name for info in walked) == sorted(BASE)
    assert all(info == populated.stat(info.name) for info in walked)


def test_walk_of_nothing(store: Snapshotter) -> None:
    """
    An empty store has no snapshots, which is no error; a bad filter is one all the same.
    """
    assert list(store.walk()) == []
    assert list(store.walk("name==x")) == []
    store.cleanup()
    with pytest.raises(InvalidArgumentError, match="filters: parse error"):
        store.walk("name==")


def test_walk_refuses_any_bad_filter(populated: Snapshotter) -> None:
    """
    A bad filter among good ones is an error, with containerd's words.
    """
    with pytest.raises(InvalidArgumentError, match=r"filters: parse error: \[name >\|=\|< x\]: unsupported operator"):
        populated.walk("kind==active", "name=x")


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("key", ["missing", "", "committed", "active-1 ", TOO_LARGE, "\0"])
def test_not_found(store: Snapshotter, fresh: bool, key: str) -> None:
    """
    A key that no snapshot has is not found, in an empty store as well, also if no snapshot could have it.
    """
    if not fresh:
        populate(store)
    before = state(store)
    for call in (store.stat, store.usage, store.mounts, store.remove):
        with pytest.raises(NotFoundError):
            call(key)
    with pytest.raises(NotFoundError):
        store.update(Info(Kind.ACTIVE, key))
    with pytest.raises(NotFoundError):
        store.update(Info(Kind.ACTIVE, key), "parent")
    with pytest.raises(NotFoundError):
        store.commit("new", key)
    assert state(store) == before


def test_mounts(populated: Snapshotter) -> None:
    """
    Mounts answers again what Prepare and View answered; a committed snapshot has none.
    """
    assert populated.mounts("active-2") != populated.mounts("active-3")
    prepared = populated.prepare("a", "committed-1")
    assert prepared == populated.mounts("a")
    assert not any("ro" in mount.options for mount in prepared)
    for parent in ("", "committed-2"):
        viewed = populated.view(f"v {parent}", parent)
        assert viewed == populated.mounts(f"v {parent}")
        assert "ro" in viewed[-1].options
    with pytest.raises(FailedPreconditionError, match="requested snapshot 'committed-1' not active or view"):
        populated.mounts("committed-1")


def test_usage(populated: Snapshotter, content: Content) -> None:
    """
    Usage leaves the parent out; a view takes nothing; what is committed never changes.
    """
    assert populated.usage("view-1") == populated.usage("view-2") == Usage(0, 0)
    with content(populated.prepare("big")) as path:
        (path / "file").write_bytes(b"x" * 1_000_000)
    populated.commit("big layer", "big")
    big = populated.usage("big layer")
    assert big.size >= 1_000_000
    assert big.inodes >= 2
    populated.prepare("small", "big layer")
    assert populated.usage("small").size < 1_000_000
    populated.commit("small layer", "small")
    assert populated.usage("small layer").size < 1_000_000
    assert populated.usage("big layer") == big


# Creating


@pytest.mark.parametrize("create", ["prepare", "view"])
class TestCreate:
    def test_kinds_and_times(self, populated: Snapshotter, create: str) -> None:
        """
        A new snapshot has its kind, parent and labels, and was created and updated now.
        """
        before = datetime.now(UTC)
        getattr(populated, create)("new", "committed-2", {"a": "1", "empty": ""})
        info = populated.stat("new")
        assert before <= info.created <= datetime.now(UTC)
        kind = Kind.ACTIVE if create == "prepare" else Kind.VIEW
        assert info == Info(kind, "new", "committed-2", {"a": "1"}, info.created, info.created)

    @pytest.mark.parametrize(
        ("key", "parent", "error", "text"),
        [
            ("new", "missing", NotFoundError, "missing"),
            ("new", TOO_LARGE, (NotFoundError, InvalidArgumentError), "x"),
            ("new", "active-1", InvalidArgumentError, "parent 'active-1' is not committed snapshot"),
            ("new", "view-2", InvalidArgumentError, "parent 'view-2' is not committed snapshot"),
            ("new", "new", NotFoundError, "new"),
            ("active-1", "", AlreadyExistsError, "snapshot 'active-1'"),
            ("view-1", "committed-1", AlreadyExistsError, "snapshot 'view-1'"),
            ("committed-1", "", AlreadyExistsError, "snapshot 'committed-1'"),
            ("committed-1", "committed-1", AlreadyExistsError, "snapshot 'committed-1'"),
            # The parent is looked at first, then the key.
            ("active-1", "missing", NotFoundError, "missing"),
            ("active-1", "view-1", InvalidArgumentError, "parent 'view-1'"),
            ("active-1", "active-1", InvalidArgumentError, "parent 'active-1'"),
            ("", "", InvalidArgumentError, "the key is empty"),
            (TOO_LARGE, "", InvalidArgumentError, "32769 bytes"),
            ("\ud800", "", InvalidArgumentError, "cannot be encoded"),
        ],
        ids=itertools.count(),
    )
    def test_refused(
        self,
        populated: Snapshotter,
        create: str,
        key: str,
        parent: str,
        error: type[Error] | tuple[type[Error], ...],
        text: str,
    ) -> None:
        """
        Each refusal has containerd's kind, and changes nothing.
        """
        before = state(populated)
        with pytest.raises(error, match=text):
            getattr(populated, create)(key, parent)
        assert state(populated) == before

    @pytest.mark.parametrize("labels", [{"": "x"}, {"k": "v" * 4096}])
    def test_bad_labels(self, populated: Snapshotter, create: str, labels: dict[str, str]) -> None:
        """
        Labels beyond the limits are refused, and the key stays free.
        """
        before = state(populated)
        with pytest.raises(InvalidArgumentError, match="label"):
            getattr(populated, create)("new", "", labels)
        assert state(populated) == before
        getattr(populated, create)("new")

    def test_too_many_labels(self, populated: Snapshotter, create: str) -> None:
        """
        Labels that are legal one by one and too large together are refused, and the key stays free.
        """
        before = state(populated)
        with pytest.raises(InvalidArgumentError, match=r"snapshot 'new' need .* bytes, more than 1048576"):
            getattr(populated, create)("new", "", TOO_MANY)
        assert state(populated) == before
        getattr(populated, create)("new")

    @pytest.mark.parametrize("parent", ["", "committed-1"])
    def test_limit_of_a_snapshot(self, populated: Snapshotter, create: str, parent: str) -> None:
        """
        Key and labels of 1 MiB are stored, and another byte is refused.
        """
        key = "k" * MAX_KEY_SIZE
        labels = largest_labels(key, "v")
        with pytest.raises(InvalidArgumentError, match="need 1048577 bytes, more than 1048576"):
            getattr(populated, create)(key, parent, labels | {"last": labels["last"] + "v"})
        getattr(populated, create)(key, parent, labels)
        assert populated.stat(key).labels == labels
        populated.remove(key)
        assert key not in state(populated)

    @pytest.mark.parametrize(
        "key",
        [
            "/",
            "..",
            "a/../b",
            "/abs/path",
            " ",
            "\n",
            "a\0b",
            "é日本\U0001f600",
            "k" * 255,
            "k" * 3000,
            "extract-1-a sha256:b",
        ],
        ids=itertools.count(),
    )
    def test_any_text_is_a_key(self, open_store: Callable[..., Snapshotter], work: Path, create: str, key: str) -> None:
        """
        Whatever a key says, it names a snapshot, and never becomes a path.
        """
        store = open_store()
        getattr(store, create)(key, "", {key[:99]: key[:99]})
        info = store.stat(key)
        assert (info.name, info.labels) == (key, {key[:99]: key[:99]})
        store.close()
        store = open_store()
        assert list(store.walk()) == [info]
        assert [path.name for path in work.iterdir()] == ["root"]
        store.remove(key)


# Committing


def test_commit(populated: Snapshotter) -> None:
    """
    The key is gone, the name was created now, labels are those of the commit and not the active's, the parent stays.
    """
    before = datetime.now(UTC)
    assert populated.commit("new", "active-3", {"a": "1", "empty": ""}) is None
    info = populated.stat("new")
    assert before <= info.created <= datetime.now(UTC)
    assert info == Info(Kind.COMMITTED, "new", "committed-2", {"a": "1"}, info.created, info.created)
    with pytest.raises(NotFoundError):
        populated.stat("active-3")
    populated.commit("unlabelled", "active-1")
    assert populated.stat("unlabelled").labels == {}
    populated.prepare("active-3", "new")


@pytest.mark.parametrize(
    ("name", "key", "parent", "error", "text"),
    [
        ("new", "missing", "", NotFoundError, "missing"),
        ("committed-1", "active-1", "", AlreadyExistsError, "committed-1"),
        ("active-2", "active-1", "", AlreadyExistsError, "active-2"),
        ("view-1", "active-1", "", AlreadyExistsError, "view-1"),
        ("active-1", "active-1", "", AlreadyExistsError, "active-1"),
        ("new", "committed-1", "", FailedPreconditionError, "snapshot 'committed-1' is not active"),
        ("new", "view-2", "", FailedPreconditionError, "snapshot 'view-2' is not active"),
        ("new", "active-1", "committed-1", InvalidArgumentError, "cannot change parent of active snapshot 'active-1'"),
        ("new", "active-2", "committed-2", InvalidArgumentError, "cannot change parent of active snapshot 'active-2'"),
        ("new", "active-2", "missing", InvalidArgumentError, "cannot change parent of active snapshot 'active-2'"),
        # The key is looked for first, then the name, then the kind, then the parent.
        ("committed-1", "missing", "committed-1", NotFoundError, "missing"),
        ("committed-1", "view-1", "committed-1", AlreadyExistsError, "committed-1"),
        ("new", "view-1", "committed-1", FailedPreconditionError, "is not active"),
        ("", "active-1", "", InvalidArgumentError, "the key is empty"),
        (TOO_LARGE, "active-1", "", InvalidArgumentError, "32769 bytes"),
    ],
    ids=itertools.count(),
)
def test_commit_refused(
    populated: Snapshotter, name: str, key: str, parent: str, error: type[Error], text: str
) -> None:
    """
    Each refusal has containerd's kind, and the snapshot stays as it was.
    """
    before = state(populated)
    with pytest.raises(error, match=text):
        populated.commit(name, key, {"new": "labels"}, parent)
    assert state(populated) == before


def test_commit_bad_labels(populated: Snapshotter) -> None:
    """
    Labels beyond the limits are refused, and the snapshot can still be committed.
    """
    before = state(populated)
    for labels in ({"": "x"}, {"k": "v" * 4096}, TOO_MANY):
        with pytest.raises(InvalidArgumentError):
            populated.commit("new", "active-1", labels)
    assert state(populated) == before
    populated.commit("new", "active-1")


@pytest.mark.parametrize(("key", "parent"), [("active-2", ""), ("active-2", "committed-1"), ("active-1", "")])
def test_commit_with_its_own_parent(populated: Snapshotter, key: str, parent: str) -> None:
    """
    A commit may name the parent that the snapshot has, or none; the parent stays.
    """
    populated.commit("new", key, parent=parent)
    assert populated.stat("new").parent == BASE[key][1]


# Removing


@pytest.mark.parametrize(
    "child", [("committed-1", "committed-2"), ("committed-2", "active-3"), ("committed-2", "view-2")]
)
def test_remove_with_child(populated: Snapshotter, child: tuple[str, str]) -> None:
    """
    A child of any kind keeps its parent, until it is removed.
    """
    parent, key = child
    before = state(populated)
    for _ in range(2):
        with pytest.raises(FailedPreconditionError, match=r"cannot remove snapshot .* with child"):
            populated.remove(parent)
    assert state(populated) == before
    for name in reversed(BASE):
        if populated.stat(name).parent == parent and name != key and populated.stat(name).kind is not Kind.COMMITTED:
            populated.remove(name)
    if populated.stat(key).kind is not Kind.COMMITTED:
        with pytest.raises(FailedPreconditionError):
            populated.remove(parent)
        populated.remove(key)
        populated.remove(parent)


def test_remove_everything(populated: Snapshotter) -> None:
    """
    Children first, all goes; nothing is found afterwards, and the names are free.
    """
    for name in reversed(BASE):
        populated.remove(name)
        with pytest.raises(NotFoundError):
            populated.remove(name)
    assert state(populated) == {}
    populated.cleanup()
    for name in BASE:
        populated.prepare(name)


def test_what_was_removed_is_gone_after_reopening(open_store: Callable[..., Snapshotter]) -> None:
    """
    A removed key stays free, and a new snapshot of that name has none of the old content, across a restart.
    """
    store = open_store()
    store.prepare("key", labels={"old": "1"})
    store.remove("key")
    store.close()
    store = open_store()
    assert state(store) == {}
    store.prepare("key")
    assert store.stat("key").labels == {}


@pytest.mark.parametrize("kind", ["active", "view", "committed"])
def test_reused_key_has_nothing_of_the_old(store: Snapshotter, content: Content, kind: str) -> None:
    """
    A key that was removed and taken again shows the new snapshot's content and labels.
    """
    with content(store.prepare("key", labels={"old": "1"})) as path:
        (path / "old").touch()
    store.commit("name", "key", {"old": "1"})
    if kind != "committed":
        (store.prepare if kind == "active" else store.view)("name 2", "name", {"old": "1"})
        store.remove("name 2")
    store.remove("name")
    for name in ("key", "name", "name 2"):
        with content(store.prepare(name)) as path:
            assert list(path.iterdir()) == []
        assert store.stat(name).labels == {}


# Updating


@pytest.mark.parametrize("name", BASE)
def test_update_keeps_all_but_labels(populated: Snapshotter, name: str) -> None:
    """
    Only labels and Updated move, and Updated does each time.
    """
    before = populated.stat(name)
    given = Info(Kind.COMMITTED, name, "ignored", {"a": "1", "b": "", "name": "x"})
    info = populated.update(given)
    assert info == before._replace(labels={"a": "1", "name": "x"}, updated=info.updated)
    assert info.updated > before.updated
    again = populated.update(given)
    assert again.updated >= info.updated
    assert populated.stat(name) == again


def test_update_refused(populated: Snapshotter) -> None:
    """
    A path that cannot be updated undoes the whole update, and so do labels beyond the limits.
    """
    before = state(populated)
    given = Info(Kind.ACTIVE, "active-1", labels={"a": "1"})
    for path in ("parent", "kind", "name", "", "labels2", "created"):
        with pytest.raises(InvalidArgumentError, match=f"cannot update '{path}' field on snapshot 'active-1'"):
            populated.update(given, "labels.a", path)
    for labels in ({"": "x"}, {"k": "v" * 4096}, TOO_MANY):
        with pytest.raises(InvalidArgumentError):
            populated.update(given._replace(labels=labels))
    assert state(populated) == before


def test_update_survives_reopening(open_store: Callable[..., Snapshotter]) -> None:
    """
    Labels, and both times to the microsecond, are the same after a restart.
    """
    store = open_store()
    store.prepare("key")
    store.commit("name", "key", {"a": "1"})
    info = store.update(Info(Kind.COMMITTED, "name", labels={"a": "2", "é\0": "\n"}))
    store.close()
    assert list(open_store().walk()) == [info]


# Forking


@pytest.mark.parametrize("way", ["library"])
def test_fork(populated: Snapshotter, content: Content) -> None:
    """
    A fork is a new active snapshot with the content of this moment; then each goes its own way.
    """
    with content(populated.mounts("active-2")) as path:
        (path / "file").write_text("1")
    assert populated.fork("active-2", "forked") == populated.mounts("forked")
    info = populated.stat("forked")
    assert info == Info(Kind.ACTIVE, "forked", "committed-1", {"name": "active-2"}, info.created, info.created)
    with content(populated.mounts("forked")) as path:
        assert (path / "file").read_text() == "1"
        (path / "file").write_text("2")
    with content(populated.mounts("active-2")) as path:
        assert (path / "file").read_text() == "1"
    populated.remove("active-2")
    populated.commit("new", "forked")
    with content(populated.view("v", "new")) as path:
        assert (path / "file").read_text() == "2"


@pytest.mark.parametrize("way", ["library"])
@pytest.mark.parametrize(
    ("key", "new_key", "error"),
    [
        ("missing", "new", NotFoundError),
        ("", "new", NotFoundError),
        (TOO_LARGE, "new", NotFoundError),
        ("committed-1", "new", FailedPreconditionError),
        ("view-1", "new", FailedPreconditionError),
        ("active-1", "active-2", AlreadyExistsError),
        ("active-1", "active-1", AlreadyExistsError),
        ("active-1", "committed-1", AlreadyExistsError),
        ("active-1", "", InvalidArgumentError),
        ("active-1", TOO_LARGE, InvalidArgumentError),
    ],
    ids=itertools.count(),
)
def test_fork_refused(populated: Snapshotter, key: str, new_key: str, error: type[Error]) -> None:
    """
    Only active snapshots can be forked, to a free key.
    """
    before = state(populated)
    with pytest.raises(error):
        populated.fork(key, new_key)
    assert state(populated) == before


# Layers stay


def test_committed_layers_stay(store: Snapshotter, content: Content) -> None:
    """
    Changes by children and late writers never show in a committed layer, nor in its other children.
    """
    with content(store.prepare("key")) as path, open(path / "file", "w") as late:
        late.write("first")
        late.flush()
        store.commit("layer", "key")
        late.write(" late")
        late.flush()
    with content(store.view("view", "layer")) as path:
        before = entries(path)
        assert (path / "file").read_text() == "first"
    with content(store.prepare("child", "layer")) as path:
        assert entries(path) == before
        (path / "file").write_text("changed")
    with content(store.prepare("other", "layer")) as path:
        assert entries(path) == before
    with content(store.mounts("view")) as path:
        assert entries(path) == before


# Several at once


def test_change_in_walk(populated: Snapshotter) -> None:
    """
    A walk goes on over the snapshots of its beginning while they are changed and removed.
    """
    seen = []
    for info in populated.walk("kind!=committed"):
        seen.append(info.name)
        populated.update(info._replace(labels={"walked": "yes"}))
        populated.prepare(f"new {info.name}")
        populated.remove(info.name)
    assert sorted(seen) == ["active-1", "active-2", "active-3", "view-1", "view-2"]


def test_one_wins(populated: Snapshotter) -> None:
    """
    Among threads that take one key, or commit to one name, one succeeds, and the others get the reason.
    """
    start = threading.Barrier(8)

    def outcome(call: Callable[..., object], *arguments: str) -> type[Error] | None:
        start.wait()
        try:
            call(*arguments)
        except Error as error:
            return type(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        taken = list(
            pool.map(lambda n: outcome((populated.prepare, populated.view)[n % 2], "key", "committed-1"), range(8))
        )
        for n in range(8):
            populated.prepare(f"to commit {n}")
        committed = list(pool.map(lambda n: outcome(populated.commit, "name", f"to commit {n}"), range(8)))
        removed = list(pool.map(lambda n: outcome(populated.remove, "name"), range(8)))
    assert taken.count(None) == committed.count(None) == removed.count(None) == 1
    assert taken.count(AlreadyExistsError) == committed.count(AlreadyExistsError) == removed.count(NotFoundError) == 7


def test_parent_removed_while_prepared(store: Snapshotter) -> None:
    """
    A Prepare and a concurrent Remove of its parent take effect in either order, and the store stays whole.
    """
    start = threading.Barrier(2)

    def attempt(call: Callable[..., object], *arguments: str) -> type[Error] | None:
        start.wait()
        try:
            call(*arguments)
        except Error as error:
            return type(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            store.prepare("key")
            store.commit("parent", "key")
            prepare = pool.submit(attempt, store.prepare, "child", "parent")
            remove = pool.submit(attempt, store.remove, "parent")
            if prepare.result() is None:
                assert remove.result() is FailedPreconditionError
                store.remove("child")
                store.remove("parent")
            else:
                assert (prepare.result(), remove.result()) == (NotFoundError, None)
            assert state(store) == {}


# Opening and closing


@pytest.mark.parametrize("way", ["library"])
def test_use_after_close(populated: Snapshotter) -> None:
    """
    A closed store refuses every call, and says so.
    """
    info = populated.stat("active-1")
    populated.close()
    for call in (
        lambda: populated.stat("active-1"),
        lambda: populated.usage("active-1"),
        lambda: populated.mounts("active-1"),
        lambda: populated.walk(),
        lambda: populated.prepare("new"),
        lambda: populated.view("new"),
        lambda: populated.commit("new", "active-1"),
        lambda: populated.update(info),
        lambda: populated.fork("active-1", "new"),
        lambda: populated.cleanup(),
        lambda: populated.remove("active-1"),
    ):
        with pytest.raises(FailedPreconditionError, match="closed"):
            call()


@pytest.mark.parametrize("way", ["library"])
def test_walk_outlives_close(populated: Snapshotter) -> None:
    """
    A walk that began before the store was closed ends: it needs nothing of it.
    """
    walk = populated.walk()
    populated.close()
    assert len(list(walk)) == len(BASE)


def test_reopening_changes_nothing(open_store: Callable[..., Snapshotter]) -> None:
    """
    Everything is there after a restart, and rules hold over it.
    """
    store = open_store()
    store.prepare("key")
    store.commit("parent", "key", {"a": "1"})
    store.prepare("active", "parent", {"b": "2"})
    store.view("view", "parent", {"c": "3"})
    before, usage, mounts = state(store), store.usage("parent"), store.mounts("active")
    store.close()
    store = open_store()
    assert state(store) == before
    assert (store.usage("parent"), store.mounts("active")) == (usage, mounts)
    with pytest.raises(FailedPreconditionError, match="with child"):
        store.remove("parent")
    with pytest.raises(AlreadyExistsError):
        store.prepare("view")
    store.commit("next", "active")
    assert store.stat("next").parent == "parent"


def test_clock_set_back(store: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A clock that goes back is no error, and no time of a snapshot precedes an earlier one of it.
    """
    store.prepare("key")
    before = store.update(Info(Kind.ACTIVE, "key", labels={"a": "1"}))
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_001)
    again = store.update(Info(Kind.ACTIVE, "key", labels={"a": "2"}))
    assert again == before._replace(labels={"a": "2"})
    store.commit("name", "key")
    assert store.stat("name").created == store.stat("name").updated == before.updated
    assert store.update(Info(Kind.COMMITTED, "name", labels={"a": "1"})).updated == before.updated
    store.prepare("child", "name")
    child = store.stat("child")
    assert child.created == child.updated == datetime.fromtimestamp(1, UTC)
    monkeypatch.undo()
    assert store.update(child).updated > before.updated


# A Commit whose answer was lost

USES: dict[str, Callable[[Snapshotter], object]] = {
    "prepare": lambda store: store.prepare("key"),
    "prepare on the layer": lambda store: store.prepare("key", "name"),
    "view": lambda store: store.view("key"),
    "view of the layer": lambda store: store.view("key", "name"),
    "fork": lambda store: store.fork("other", "key"),
    "commit": lambda store: store.commit("key", "other"),
}


def committed(open_store: Callable[..., Snapshotter]) -> Snapshotter:
    store = open_store()
    store.prepare("key", labels={"a": "1"})
    store.prepare("other")
    store.commit("name", "key", {"a": "1"})
    return store


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("reopened", [False, True])
def test_repeated_commit(*, open_store: Callable[..., Snapshotter], settled: bool, reopened: bool) -> None:
    """
    A repeated Commit of a key under the same name succeeds and changes nothing, also after a restart and an update.
    """
    store = committed(open_store)
    if settled:
        settle(store)
    if reopened:
        store.close()
        store = open_store()
    for _ in range(2):
        before = state(store)
        store.commit("name", "key", {"a": "1"})
        assert state(store) == before
        store.update(Info(Kind.COMMITTED, "name", labels={"a": "2"}))


def test_other_commits(open_store: Callable[..., Snapshotter]) -> None:
    """
    No other Commit is taken for a repeated one: not of another key, under another name, or with another parent.
    """
    store = committed(open_store)
    with pytest.raises(AlreadyExistsError):
        store.commit("name", "other")
    for name, key, parent in (("new", "key", ""), ("name", "missing", ""), ("name", "key", "other")):
        with pytest.raises(NotFoundError):
            store.commit(name, key, parent=parent)
    store.remove("name")
    with pytest.raises(NotFoundError):
        store.commit("name", "key")


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("use", USES)
def test_commit_of_a_key_used_again(*, open_store: Callable[..., Snapshotter], use: str, reopened: bool) -> None:
    """
    Once the key was used again, its Commit is no repetition any more: not while the key is there, nor afterwards.
    """
    store = committed(open_store)
    USES[use](store)
    with pytest.raises(AlreadyExistsError):
        store.commit("name", "key")
    store.remove("key")
    if reopened:
        store.close()
        store = open_store()
    with pytest.raises(NotFoundError):
        store.commit("name", "key")
    assert store.stat("name").labels == {"a": "1"}
    assert store.problems() == []


def test_repeated_commit_by_rpc(open_store: Callable[..., Snapshotter]) -> None:
    """
    The daemon answers a repeated Commit as the library does.
    """
    store = committed(open_store)
    with serving(store) as server, Client(server.address, snapshotter=store.client) as client:
        client.commit("name", "key", {"a": "1"})
        with pytest.raises(AlreadyExistsError):
            client.commit("name", "other")


# Sizes and texts


def test_largest_label(open_store: Callable[..., Snapshotter]) -> None:
    """
    A label as large as containerd allows has room, also at a commit and an update, and is there for who opens the
    store anew.
    """
    labels = {"k" * 96: "v" * 4000}
    with open_store() as store:
        store.prepare("k", labels=labels)
        store.commit("c", "k", labels)
        store.view("v", "c", labels)
        store.update(Info(Kind.VIEW, "v", labels=labels | {"another": "one"}))
    store = open_store()
    assert store.stat("c").labels == labels
    assert store.stat("v").labels == labels | {"another": "one"}


def test_largest_snapshots(open_store: Callable[..., Snapshotter]) -> None:
    """
    A snapshot at the limit can be committed under a name and with labels at the limit, all others than its own. It can
    be forked and updated, and is the same after a restart.
    """
    key, name, fork = ("k" * MAX_KEY_SIZE, "n" * MAX_KEY_SIZE, "f" * MAX_KEY_SIZE)
    with open_store() as store:
        store.prepare(key, labels=largest_labels(key, "a"))
        store.fork(key, fork)
        with pytest.raises(InvalidArgumentError, match="need 1048577 bytes"):
            labels = largest_labels(name, "b")
            store.commit(name, key, labels | {"last": labels["last"] + "b"})
        store.commit(name, key, largest_labels(name, "b"))
        store.commit(name, key)  # a repeated commit
        store.update(Info(Kind.ACTIVE, fork, labels=largest_labels(fork, "c")))
        store.view("small", name)
        settle(store)
        before = state(store)
    assert before[name].labels == largest_labels(name, "b")
    assert before[fork].labels == largest_labels(fork, "c")
    with open_store() as store:
        assert state(store) == before
        assert store.problems() == []
        store.update(Info(Kind.ACTIVE, fork, labels={"a": "b"}))
        store.prepare(key, name)
        settle(store)
        before = state(store)
    store = open_store()
    assert state(store) == before
    for each in ("small", key, fork, name):
        store.remove(each)
    settle(store)
    assert os.listdir(os.path.join(store.root, "snapshots")) == []


def test_huge_keys_are_not_repeated(store: Snapshotter) -> None:
    """
    Errors repeat the beginning of a key, for they travel in headers; containerd's own keys are shorter, and whole.
    """
    active, base, missing, huge = "a" * 3000, "b" * 3000, "c" * 3000, "d" * 32_768
    chain = "k8s.io/1234567/extract-123456789-AbCd sha256:" + "0" * 64
    store.prepare("k")
    store.commit(base, "k")
    store.prepare(active, base)
    calls: list[Callable[[], object]] = [
        *(lambda key=key: store.stat(key) for key in (missing, huge, huge + "d", chain)),
        *(lambda key=key: store.mounts(key) for key in (missing, base)),
        *(lambda key=key: store.remove(key) for key in (missing, base)),
        *(lambda key=key: store.commit("x", key) for key in (missing, base)),
        lambda: store.commit("x", active, parent=missing),
        lambda: store.commit(base, active),
        lambda: store.usage(missing),
        lambda: store.update(Info(Kind.ACTIVE, missing)),
        lambda: store.update(Info(Kind.ACTIVE, active), "x" * 3000),
        lambda: store.update(Info(Kind.ACTIVE, active), f"labels.{missing}.x", missing),
        *(lambda key=key, parent=parent: store.prepare(key, parent) for key, parent in [(active, ""), ("x", missing)]),
        *(lambda parent=parent: store.view("x", parent) for parent in (missing, active)),
        lambda: store.prepare(huge + "d"),
        lambda: store.prepare(huge, labels=TOO_MANY),
    ]
    for call in calls:
        with pytest.raises(Error) as caught:
            call()
        assert len(str(caught.value)) < 750
    with pytest.raises(NotFoundError, match=chain):
        store.stat(chain)
