"""
The whole contract against a model: a dict of what every snapshot says and holds.
"""

import io
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from snapshotter import Info, Kind, Snapshotter, Usage
from snapshotter.errors import (
    AlreadyExistsError,
    Error,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.testing import DirectoryVolumes

Files = dict[str, bytes]

KEYS = [*"abcdefg", "default/1/a", "../x", " ", "n\0l", 'é\n\\"', "日本", "k" * 700, "extract-1-x sha256:0"]
KEYS += ["\x01" * 1300]  # this key needs pieces
PARENTS = ["", *KEYS]
FEW_LABELS = st.dictionaries(
    st.sampled_from(["a", "b.c", "é/\0", "containerd.io/snapshot.ref"]),
    st.sampled_from(["", "1", "2", "\n é"]),
    max_size=3,
)
# These records need pieces.
MANY_LABELS = st.sampled_from([3, 7, 40]).map(lambda count: {f"b.c{number}": "\n" * 2000 for number in range(count)})
LABELS = st.one_of(FEW_LABELS, FEW_LABELS, FEW_LABELS, MANY_LABELS)
PATHS = st.lists(
    st.sampled_from(["labels", "labels.a", "labels.b.c", "labels.é/\0", "parent", "labels.absent"]), max_size=3
)


@dataclass(eq=False)
class Node:
    """
    The model's knowledge of a snapshot.
    """

    info: Info
    files: Files = field(default_factory=dict)
    usage: Usage | None = None  # of a committed one, once it was asked for
    source: str = ""  # the key that it was committed from, until that is used again


@dataclass
class Term:
    """
    A selector of a filter, with its meaning.
    """

    text: str
    holds: Callable[[Info], bool]


def quoted(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in text) + '"'


TERMS = st.one_of(
    st.sampled_from(Kind).map(lambda kind: Term(f"kind=={kind.lower()}", lambda info: info.kind is kind)),
    st.sampled_from(Kind).map(lambda kind: Term(f"kind!={kind.lower()}", lambda info: info.kind is not kind)),
    st.sampled_from(KEYS).map(lambda key: Term(f"name=={quoted(key)}", lambda info: info.name == key)),
    st.sampled_from(PARENTS).map(lambda key: Term(f"parent=={quoted(key)}", lambda info: info.parent == key)),
    st.sampled_from(PARENTS).map(lambda key: Term(f"parent!={quoted(key)}", lambda info: info.parent != key)),
    st.sampled_from(KEYS).map(
        lambda key: Term(f"name~={quoted('^' + key[0])}", lambda info: info.name[0] == key[0] or key == "../x")
    ),
    st.just(Term("labels.a", lambda info: "a" in info.labels)),
    st.just(Term("labels.a==1", lambda info: info.labels.get("a") == "1")),
    st.just(Term("labels.b.c!=2", lambda info: info.labels.get("b.c") != "2")),
    st.just(Term('labels."é/\\x00"~=/./', lambda info: "é/\0" in info.labels)),
)


def read(path: Path) -> Files:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class Contract(RuleBasedStateMachine):
    """
    Every rule asks the model what has to happen, and the store to do it.
    """

    def __init__(self, root: Path, volumes: Any) -> None:
        super().__init__()
        self.root = root
        # Sources of bind mounts are paths: content is looked at without mounting.
        self.options = {"volumes": volumes, "mount_mode": "bind"}
        self.store = Snapshotter.create(root, **self.options)
        self.nodes: dict[str, Node] = {}
        self.handles: list[tuple[Node, io.FileIO]] = []

    def teardown(self) -> None:
        try:
            for name, node in self.nodes.items():
                if node.info.kind is Kind.COMMITTED:
                    self.look(name)
                else:
                    assert read(self.path(name)) == node.files
        finally:
            for _, handle in self.handles:
                handle.close()
            self.store.close()
            with suppress(OSError):  # btrfs has subvolumes there, for the fixture to remove
                shutil.rmtree(self.root)

    # The model

    def key(self, data: st.DataObject, *kinds: Kind | None) -> str:
        """
        Mostly a key of one of *kinds*, None being a free one, but sometimes any.
        """
        fitting = [key for key in KEYS if self.kind(key) in kinds]
        mostly = fitting and data.draw(st.integers(0, 9)) < 9
        return data.draw(st.sampled_from(fitting if mostly else KEYS), label="key")

    def kind(self, key: str) -> Kind | None:
        return self.nodes[key].info.kind if key in self.nodes else None

    def children(self, name: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.info.parent == name]

    def path(self, key: str) -> Path:
        (mount,) = self.store.mounts(key)
        return Path(mount.source)

    def look(self, name: str) -> None:
        """
        Compare what the committed snapshot *name* holds.
        """
        (mount,) = self.store.view("look", name)
        assert read(Path(mount.source)) == self.nodes[name].files
        self.store.remove("look")

    def attempt(self, expected: type[Error] | None, call: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call, and see the error that the model expects, exactly that kind, or none.
        """
        if expected is None:
            return call(*arguments)
        with pytest.raises(expected) as caught:
            call(*arguments)
        assert caught.type is expected
        return None

    def born(self, key: str, kind: Kind, parent: str, labels: dict[str, str], before: datetime, files: Files) -> None:
        """
        Put a new snapshot into the model, once what the store says of it was checked.
        """
        info = self.store.stat(key)
        assert before <= info.created <= datetime.now(UTC)
        labels = {label: value for label, value in labels.items() if value}
        assert info == Info(kind, key, parent, labels, info.created, info.created)
        for node in self.nodes.values():
            if node.source == key:
                node.source = ""
        self.nodes[key] = Node(info, dict(files))

    # The contract

    @initialize()
    def populate(self) -> None:
        """
        Begin with some of everything: hypothesis leaves out some rules of each example, creating ones too.
        """
        before = datetime.now(UTC)
        for key, name, parent in (("x", "a", ""), ("x", "../x", "a")):
            self.store.prepare(key, parent)
            self.store.commit(name, key)
            self.born(name, Kind.COMMITTED, parent, {}, before, {})
        self.nodes["../x"].source = "x"
        for key, parent in (("b", ""), ("c", "a"), ("k" * 700, "../x")):
            self.store.prepare(key, parent, {"a": "1"})
            self.born(key, Kind.ACTIVE, parent, {"a": "1"}, before, {})
        self.store.view("default/1/a", "../x", {"b.c": "2"})
        self.born("default/1/a", Kind.VIEW, "../x", {"b.c": "2"}, before, {})

    @rule(data=st.data(), labels=LABELS)
    def prepare(self, data: st.DataObject, labels: dict[str, str]) -> None:
        self.create(data, Kind.ACTIVE, labels)

    @rule(data=st.data(), labels=LABELS)
    def view(self, data: st.DataObject, labels: dict[str, str]) -> None:
        self.create(data, Kind.VIEW, labels)

    def create(self, data: st.DataObject, kind: Kind, labels: dict[str, str]) -> None:
        key = data.draw(st.sampled_from(KEYS), label="key")
        parent = (data.draw(st.booleans(), label="has parent") and self.key(data, Kind.COMMITTED)) or ""
        expected: type[Error] | None = None
        if parent and parent not in self.nodes:
            expected = NotFoundError
        elif parent and self.kind(parent) is not Kind.COMMITTED:
            expected = InvalidArgumentError
        elif key in self.nodes:
            expected = AlreadyExistsError
        before = datetime.now(UTC)
        call = self.store.prepare if kind is Kind.ACTIVE else self.store.view
        mounts = self.attempt(expected, call, key, parent, labels)
        if expected is None:
            assert mounts == self.store.mounts(key)
            self.born(key, kind, parent, labels, before, self.nodes[parent].files if parent else {})

    @rule(data=st.data(), labels=LABELS, parent=st.sampled_from(["", "", "own", "own", "any"]))
    def commit(self, data: st.DataObject, labels: dict[str, str], parent: str) -> None:
        key = self.key(data, Kind.ACTIVE)
        name = self.key(data, None)
        node = self.nodes.get(key)
        if parent == "own":
            parent = node.info.parent if node else ""
        elif parent == "any":
            parent = data.draw(st.sampled_from(KEYS), label="parent")
        expected: type[Error] | None = None
        earlier = self.nodes.get(name)
        if node is None and earlier and earlier.source == key and parent in ("", earlier.info.parent):
            self.store.commit(name, key, labels, parent)
            return
        if node is None:
            expected = NotFoundError
        elif name in self.nodes:
            expected = AlreadyExistsError
        elif node.info.kind is not Kind.ACTIVE:
            expected = FailedPreconditionError
        elif parent not in ("", node.info.parent):
            expected = InvalidArgumentError
        before = datetime.now(UTC)
        self.attempt(expected, self.store.commit, name, key, labels, parent)
        if expected is None:
            assert node is not None
            del self.nodes[key]
            self.born(name, Kind.COMMITTED, node.info.parent, labels, before, node.files)
            self.nodes[name].source = key

    @rule(data=st.data(), used=st.booleans())
    def commit_again(self, data: st.DataObject, used: bool) -> None:
        """
        Repeat a commit, whose key was used again or not.
        """
        names = sorted(name for name, node in self.nodes.items() if node.source)
        if names:
            name = data.draw(st.sampled_from(names), label="name")
            key = self.nodes[name].source
            if used:
                self.store.view(key)
                self.store.remove(key)
                self.nodes[name].source = ""
            self.attempt(NotFoundError if used else None, self.store.commit, name, key)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = self.key(data, *Kind)
        expected: type[Error] | None = None
        if key not in self.nodes:
            expected = NotFoundError
        elif self.children(key):
            expected = FailedPreconditionError
        self.attempt(expected, self.store.remove, key)
        if expected is None:
            del self.nodes[key]

    @rule(data=st.data(), labels=LABELS, paths=PATHS, ignored=st.sampled_from(KEYS))
    def update(self, data: st.DataObject, labels: dict[str, str], paths: list[str], ignored: str) -> None:
        key = self.key(data, *Kind)
        expected: type[Error] | None = None
        if key not in self.nodes:
            expected = NotFoundError
        elif "parent" in paths:
            expected = InvalidArgumentError
        given = Info(Kind.VIEW, key, ignored, labels)
        before = datetime.now(UTC)
        info = self.attempt(expected, self.store.update, given, *paths)
        if expected is None:
            node = self.nodes[key]
            left = dict(node.info.labels)
            for path in paths or ["labels"]:
                if path == "labels":
                    left = dict(labels)
                else:
                    label = path[len("labels.") :]
                    left[label] = labels.get(label, "")
            left = {label: value for label, value in left.items() if value}
            assert before <= info.updated <= datetime.now(UTC)
            assert info == node.info._replace(labels=left, updated=info.updated)
            node.info = info

    @rule(data=st.data())
    def usage(self, data: st.DataObject) -> None:
        key = self.key(data, *Kind)
        node = self.nodes.get(key)
        usage = self.attempt(None if node else NotFoundError, self.store.usage, key)
        if node is None:
            return
        if node.info.kind is Kind.VIEW:
            assert usage == Usage(0, 0)
        assert usage.size >= 0
        assert usage.inodes >= 0
        if node.info.kind is Kind.COMMITTED:
            node.usage = node.usage or usage
            assert usage == node.usage

    @rule(data=st.data())
    def mounts(self, data: st.DataObject) -> None:
        key = self.key(data, Kind.ACTIVE, Kind.VIEW)
        expected: type[Error] | None = None
        if key not in self.nodes:
            expected = NotFoundError
        elif self.kind(key) is Kind.COMMITTED:
            expected = FailedPreconditionError
        mounts = self.attempt(expected, self.store.mounts, key)
        if expected is None:
            assert ("ro" in mounts[-1].options) is (self.kind(key) is Kind.VIEW)
            assert read(Path(mounts[-1].source)) == self.nodes[key].files

    @rule(filters=st.lists(st.lists(TERMS, min_size=1, max_size=3), min_size=1, max_size=3))
    def walk(self, filters: list[list[Term]]) -> None:
        found = self.store.walk(*(",".join(term.text for term in terms) for terms in filters))
        assert sorted(info.name for info in found) == sorted(
            key
            for key, node in self.nodes.items()
            if any(all(term.holds(node.info) for term in terms) for terms in filters)
        )

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        key = self.key(data, Kind.ACTIVE)
        new_key = self.key(data, None)
        node = self.nodes.get(key)
        expected: type[Error] | None = None
        if node is None:
            expected = NotFoundError
        elif node.info.kind is not Kind.ACTIVE:
            expected = FailedPreconditionError
        elif new_key in self.nodes:
            expected = AlreadyExistsError
        before = datetime.now(UTC)
        mounts = self.attempt(expected, self.store.fork, key, new_key)
        if expected is None:
            assert node is not None
            assert mounts == self.store.mounts(new_key)
            self.born(new_key, Kind.ACTIVE, node.info.parent, dict(node.info.labels), before, node.files)

    @rule()
    def cleanup(self) -> None:
        self.store.cleanup()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Snapshotter(self.root, **self.options)
        assert self.store.problems() == []

    # The holders of mounts

    @precondition(lambda self: any(node.info.kind is Kind.ACTIVE for node in self.nodes.values()))
    @rule(data=st.data(), name=st.sampled_from(["f", "g", "d/h"]), content=st.binary(max_size=20), keep=st.booleans())
    def write(self, data: st.DataObject, name: str, content: bytes, keep: bool) -> None:
        key = data.draw(st.sampled_from([k for k in sorted(self.nodes) if self.kind(k) is Kind.ACTIVE]), label="key")
        file = self.path(key) / name
        file.parent.mkdir(exist_ok=True)
        handle = io.FileIO(file, "w")
        handle.write(content)
        self.nodes[key].files[name] = content
        if keep:
            self.handles.append((self.nodes[key], handle))
        else:
            handle.close()

    @precondition(lambda self: any(node.info.kind is Kind.ACTIVE and node.files for node in self.nodes.values()))
    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        keys = [k for k in sorted(self.nodes) if self.kind(k) is Kind.ACTIVE and self.nodes[k].files]
        key = data.draw(st.sampled_from(keys), label="key")
        name = data.draw(st.sampled_from(sorted(self.nodes[key].files)), label="name")
        os.unlink(self.path(key) / name)
        del self.nodes[key].files[name]

    @rule()
    def write_late(self) -> None:
        """
        Through descriptors opened before a commit or a removal: shows nowhere.
        """
        for node, handle in self.handles:
            if node not in self.nodes.values():
                handle.write(b"too late")

    @rule(data=st.data())
    def look_at_layer(self, data: st.DataObject) -> None:
        name = self.key(data, Kind.COMMITTED)
        if self.kind(name) is Kind.COMMITTED:
            self.look(name)

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        walked = list(self.store.walk())
        assert {info.name: info for info in walked} == {key: node.info for key, node in self.nodes.items()}
        assert len(walked) == len(self.nodes)


def test_contract(backend: str, work: Path) -> None:
    """
    Whatever is done in whatever order, the store does as the model.
    """
    volumes, examples = (BtrfsVolumes, 20) if backend == "btrfs" else (DirectoryVolumes, 100)
    roots = iter(range(1_000_000))
    run_state_machine_as_test(
        lambda: Contract(work / f"root{next(roots)}", volumes),
        settings=settings(
            max_examples=examples,
            stateful_step_count=100,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
