"""
The operations that change a store, and a store for each.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pybtrfs import subvolume
from snapshotter import Info, Kind, Snapshotter
from snapshotter.errors import AlreadyExistsError, Error, NotFoundError
from snapshotter.store.records import State as RecordState

from .workload import STORE, Effect, State, Workload, digest, read_record, snapshot


@dataclass(frozen=True)
class Operation:
    """
    An operation under test.

    Attributes:
        call: Makes the operation.
        effect: Returns the changes of the operation to the given snapshots.
        again: The errors of a second call after a successful one.
    """

    call: Callable[[Snapshotter], object]
    effect: Callable[[dict[str, State]], Effect]
    again: tuple[type[Error], ...]


def _labelled(state: State) -> State:
    return {**state, "labels": {"new": "label"}}


def _committed(state: State) -> State:
    return {**state, "kind": str(Kind.COMMITTED), "labels": {}}


MANY = {f"{number}": f"{number}" * 2000 for number in range(10)}  # for a record of two pieces
OTHER = {**MANY, "1": "new"}

OPERATIONS = {
    "prepare": Operation(
        lambda s: s.prepare("new", "base"),
        lambda there: {"new": snapshot(Kind.ACTIVE, "base", {}, there["base"]["digest"])},
        (AlreadyExistsError,),
    ),
    "prepare empty": Operation(
        lambda s: s.prepare("new", labels={"a": "b"}),
        lambda there: {"new": snapshot(Kind.ACTIVE, "", {"a": "b"}, None)},
        (AlreadyExistsError,),
    ),
    "view": Operation(
        lambda s: s.view("new", "base"),
        lambda there: {"new": snapshot(Kind.VIEW, "base", {}, None)},
        (AlreadyExistsError,),
    ),
    "view of a key that was committed": Operation(
        lambda s: s.view("draft", "base"),
        lambda there: {"draft": snapshot(Kind.VIEW, "base", {}, None)},
        (AlreadyExistsError,),
    ),
    "fork": Operation(lambda s: s.fork("active", "new"), lambda there: {"new": there["active"]}, (AlreadyExistsError,)),
    "commit": Operation(
        lambda s: s.commit("new", "active"),
        lambda there: {"active": None, "new": _committed(there["active"])},
        (),
    ),
    "update": Operation(
        lambda s: s.update(Info(Kind.COMMITTED, "base", labels={"new": "label"})),
        lambda there: {"base": _labelled(there["base"])},
        (),
    ),
    "prepare with many labels": Operation(
        lambda s: s.prepare("new", "base", MANY),
        lambda there: {"new": snapshot(Kind.ACTIVE, "base", MANY, there["base"]["digest"])},
        (AlreadyExistsError,),
    ),
    "commit with many labels": Operation(
        lambda s: s.commit("new", "large", OTHER),
        lambda there: {"large": None, "new": {**_committed(there["large"]), "labels": OTHER}},
        (),
    ),
    "update to many labels": Operation(
        lambda s: s.update(Info(Kind.COMMITTED, "base", labels=MANY)),
        lambda there: {"base": {**there["base"], "labels": MANY}},
        (),
    ),
    "update of many labels": Operation(
        lambda s: s.update(Info(Kind.ACTIVE, "large", labels={"new": "label"})),
        lambda there: {"large": _labelled(there["large"])},
        (),
    ),
    "update of one of many labels": Operation(
        lambda s: s.update(Info(Kind.ACTIVE, "large", labels={"1": "new"}), "labels.1"),
        lambda there: {"large": {**there["large"], "labels": OTHER}},
        (),
    ),
    "remove many labels": Operation(lambda s: s.remove("large"), lambda there: {"large": None}, (NotFoundError,)),
    "remove active": Operation(lambda s: s.remove("active"), lambda there: {"active": None}, (NotFoundError,)),
    "remove view": Operation(lambda s: s.remove("view"), lambda there: {"view": None}, (NotFoundError,)),
    "remove layer": Operation(lambda s: s.remove("lone layer"), lambda there: {"lone layer": None}, (NotFoundError,)),
}


@contextlib.contextmanager
def store(mount: str) -> Iterator[list[str]]:
    """
    Make a store below *mount* for an operation, yield the markers of its content, and delete it at the end.
    """
    root = os.path.join(mount, STORE)
    marks: list[str] = []
    with Snapshotter.create(root, mount_mode="bind") as snapshotter:
        workload = Workload(snapshotter, marks.append)

        def written(key: str, parent: str, labels: Mapping[str, str] = MappingProxyType({})) -> State:
            workload.acknowledged(
                {key: snapshot(Kind.ACTIVE, parent, labels, None)}, lambda: snapshotter.prepare(key, parent, labels)
            )
            (mount,) = snapshotter.mounts(key)
            with open(os.path.join(mount.source, key), "wb") as file:
                file.write(key.encode() * 5000)
            state = snapshot(Kind.ACTIVE, parent, labels, digest(mount.source))
            workload.acknowledged({key: state}, lambda: None)
            return state

        for name, parent in (("base", ""), ("lone layer", "base")):
            layer = _committed(written("draft", parent))
            workload.acknowledged(
                {"draft": None, name: layer},
                lambda name=name: snapshotter.commit(name, "draft"),  # type: ignore[misc]
            )
        written("active", "base")
        written("large", "base", MANY)
        workload.acknowledged({"view": snapshot(Kind.VIEW, "base", {}, None)}, lambda: snapshotter.view("view", "base"))
    try:
        yield marks
    finally:
        subvolume.delete(root, recursive=True)


def wait_settled(root: str) -> None:
    """
    Wait until no record has an operation in flight, because the worker has finished.
    """
    deadline = time.monotonic() + 30
    while any(state in (RecordState.PREPARING, RecordState.COMMITTING, RecordState.REMOVED) for state in _states(root)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"records of {root!r} are not settled")
        time.sleep(0.001)


def _states(root: str) -> Iterator[RecordState]:
    snapshots = os.path.join(root, "snapshots")
    for name in os.listdir(snapshots):
        with contextlib.suppress(FileNotFoundError):
            if record := read_record(os.path.join(snapshots, name)):
                yield record.state
