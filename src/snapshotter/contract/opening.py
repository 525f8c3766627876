"""
Opening of a store: from a directory to an open store with its lock, its index and its worker.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TypedDict, get_args

from pybtrfs.mountinfo import MountTable
from snapshotter.contract.session import Session
from snapshotter.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    translating,
)
from snapshotter.events import Event
from snapshotter.model import LOCAL, Info, Kind, Located, Measured, Problem, Usage, UsageDefinition
from snapshotter.store import recovery
from snapshotter.store.index import Index, Snapshot, describe
from snapshotter.store.layout import FS, LAYER, SNAPSHOTS
from snapshotter.store.operations import Operations
from snapshotter.store.ownership import Ownership
from snapshotter.store.records import Record, State
from snapshotter.store.recovery import Recovered, Verdict
from snapshotter.store.store import Store
from snapshotter.store.volumes import MountMode, Volumes
from snapshotter.store.worker import Worker
from snapshotter.store.write_errors import WriteErrors

_REPAIR = "`snapshotter doctor --fix` repairs it if it can; otherwise remove the snapshot and its descendants"
_REMOVE = "remove the snapshot and its descendants"
_KEEP = "replace the disk if it fails; else remove the snapshot and its descendants, then see `snapshotter doctor`"
_CHECK = "replace the disk if it fails; else unmount the filesystem, and look at it with `btrfs check`"
_QUARANTINE = "`snapshotter doctor --fix` repairs it, or moves it to the quarantine"
_ADOPT = "make it a store with `snapshotter init --adopt`"


class Options(TypedDict, total=False):
    """
    Options of opening a store; see `Snapshotter`.
    """

    client: str | None
    usage: UsageDefinition
    mount_mode: MountMode
    verify: bool
    volumes: type[Volumes]
    socket: str


class Opened:
    """
    An open store: its parts, and answers that need no system call.

    The contract's methods work on it, and so do `snapshotter.analysis` and `snapshotter.daemon`, by
    `Snapshotter.opened`. Programs use `Snapshotter`.
    """

    def __init__(
        self,
        root: str,
        *,
        read_only: bool,
        client: str | None,
        usage: UsageDefinition,
        mount_mode: MountMode,
        verify: bool,
        volumes: type[Volumes],
        socket: str,
    ) -> None:
        """
        Open the store at *root*, and finish or undo interrupted operations; see `Snapshotter`.
        """
        started = time.monotonic()
        self.root = root
        self.index = Index()
        self._definition = usage
        self._problems: list[Problem] = []
        with translating(f"open store {root!r}"), contextlib.ExitStack() as stack:
            try:
                self.volumes = volumes(root, mount_mode)
            except FileNotFoundError as error:
                raise NotFoundError(f"store {root!r} does not exist: make it with `snapshotter init`") from error
            stack.callback(self.volumes.close)
            self._store = Store(root, self.volumes)
            stack.callback(self._store.close)
            why_read_only = "it was opened read-only" if read_only else ""
            self.is_copy = self._store.is_copy
            if self.is_copy:
                why_read_only = f"it is a copy of a store: {_ADOPT}"
                self._problems.append(Problem(root, "it is a copy of a store, and can only be read", _ADOPT))
            if not why_read_only:
                stack.callback(self._store.acquire(socket).release)
            self.client = client or self._store.header.client or LOCAL
            self.ownership = Ownership(self._store, self.index)
            self.write_errors = WriteErrors(self._store, self.volumes, verify=verify)
            self.worker = Worker(self._store, self.volumes)
            stack.callback(self.worker.close)
            self.operations = Operations(self._store, self.volumes, self.index, self.worker, self.write_errors)
            self._load(writing=not why_read_only)
            resources = contextlib.ExitStack()
            resources.callback(Event.CLOSED.emit, root=root)
            resources.callback(stack.pop_all().close)
            self.session = Session(root, resources, why_read_only, self._store.is_dead)
        seconds = time.monotonic() - started
        Event.OPENED.emit(root=root, snapshots=len(self.index), seconds=seconds, error=why_read_only)

    def _load(self, *, writing: bool) -> None:
        """
        Fill the index with the snapshots that recovery finds, and hand the rest to the worker.
        """
        by_id: dict[int, Snapshot] = {}
        for item in recovery.survey(self._store, self.volumes):
            if item.verdict is Verdict.ORPHAN:
                self._report(item.name, item.problem)
                if item.id:
                    by_id[item.id] = _lost(item.id, item.problem)
            elif item.record is None:
                for name in item.contents.unexpected:
                    self._report(f"{item.name}/{name}", "it is no subvolume, and keeps a removed snapshot from going")
                if writing:
                    if item.written and item.written.state is State.PREPARING:
                        Event.UNDONE.emit(key=item.written.key, id=item.id)
                    self.worker.destroy(item.id)
            else:
                parent_id = item.record.parent
                if parent_id and parent_id not in by_id:
                    by_id[parent_id] = _lost(parent_id, "its directory is gone")
                parent = by_id[parent_id] if parent_id else None
                snapshot = Snapshot(item.record, parent, item.problem, settled=item.record is item.written)
                if snapshot.quarantine:
                    Event.QUARANTINED.emit(key=snapshot.key, id=snapshot.id, error=snapshot.quarantine)
                self.index.add(snapshot)
                by_id[snapshot.id] = snapshot
                if writing:
                    self._finish(snapshot, item)
        if writing:
            self.operations.record_losses()

    def _finish(self, snapshot: Snapshot, item: Recovered) -> None:
        """
        Finish or undo an interrupted operation on *snapshot*, by the verdict of recovery.
        """
        if item.verdict is not Verdict.QUARANTINED and not snapshot.settled:
            committing = item.written is not None and item.written.state is State.COMMITTING
            event = Event.UNDONE if committing and item.verdict is Verdict.ACTIVE else Event.RECOVERED
            event.emit(key=snapshot.key, id=snapshot.id)
        if item.verdict is Verdict.ACTIVE and (item.contents.layer or not snapshot.settled):
            with contextlib.suppress(OSError), self._store.directory(snapshot.id) as directory:
                self.volumes.destroy(directory, LAYER, MountTable())
        if item.verdict is Verdict.COMMITTED and item.contents.fs:
            self.worker.destroy(snapshot.id, FS)
        self._store.tidy_recovered(snapshot.id)
        if not snapshot.settled or (item.verdict is Verdict.COMMITTED and snapshot.record.usage is None):
            self.operations.settle_later(snapshot)

    def _report(self, name: str, what: str) -> None:
        cure = _CHECK if what.startswith(recovery.UNREADABLE_ENTRY) else _QUARANTINE
        problem = Problem(os.path.join(self.root, SNAPSHOTS, name), what, cure)
        Event.UNKNOWN.emit(path=problem.subject, error=what)
        self._problems.append(problem)

    @property
    def uuid(self) -> str:
        """
        The uuid that the store got when it was made.
        """
        return self._store.header.uuid

    def adopt(self) -> None:
        """
        Make this copy the store, durably; it stays read-only until it is opened again.

        Raises:
            FailedPreconditionError: None of the subvolumes are here.
        """
        with_subvolume = [snapshot for snapshot in self.index.snapshots() if snapshot.kind is not Kind.VIEW]
        if with_subvolume and all(snapshot.quarantine for snapshot in with_subvolume):
            raise FailedPreconditionError(
                f"none of the {len(with_subvolume)} subvolumes are in {self.root!r}: a snapshot of a store holds "
                "its records only; bring the subvolumes too"
            )
        with self._store.acquire():
            self._store.adopt()

    def problems(self) -> list[Problem]:
        """
        Return the problems of the store: quarantined snapshots, orphans and unexpected files.
        """
        quarantined = [
            Problem(snapshot.key, snapshot.quarantine, _cure(snapshot.quarantine))
            for snapshot in self.index.snapshots()
            if snapshot.quarantine
        ]
        return quarantined + self._problems

    def locate(self) -> Iterator[Located]:
        """
        Yield every snapshot of the moment of the call with its place and, if known, its usage, in no order.
        """
        self.session.check()
        above = len(self.root) + 1
        for snapshot in self.index.snapshots():
            problem = ""
            try:
                self.operations.place(snapshot)
            except DataLossError as error:
                problem = str(error)
            path = self.operations.former_place(snapshot).path[above:]
            known = snapshot.known
            yield Located(snapshot.info, path, self.usage_of(known) if known else None, problem)

    def encoded(self, encode: Callable[[Info], bytes], key: str) -> bytes:
        """
        Return the description of the snapshot *key* by *encode*, which is called again only after a change.

        Raises:
            NotFoundError: No snapshot has the key.
        """
        self.session.check()
        snapshot = self.index.get(key)
        return snapshot.encode(encode, snapshot.record)

    def all_encoded(self, encode: Callable[[Info], bytes], *filter_list: str) -> Iterator[bytes]:
        """
        Yield the descriptions that `Snapshotter.walk` yields, by *encode*, which is called again only after a change.
        """
        self.session.check()
        snapshots = self.index.snapshots()
        found = zip(snapshots, [each.record for each in snapshots], strict=True)
        if not filter_list:
            return (snapshot.encode(encode, record) for snapshot, record in found)
        from snapshotter.contract import filters  # slow to import

        match = filters.parse(*filter_list).match
        return (each.encode(encode, record) for each, record in found if match(describe(record, each.parent_key)))

    def known_usage(self, key: str) -> Usage | None:
        """
        Return the usage of the snapshot *key* if it is known without a wait for the disk, else None.

        Raises:
            NotFoundError: No snapshot has the key.
        """
        self.session.check()
        measured = self.operations.known(self.index.get(key))
        return self.usage_of(measured) if measured else None

    def usage_of(self, measured: Measured) -> Usage:
        """
        Return the usage in *measured* by the definition chosen at opening.
        """
        return measured.added if self._definition == "added" else measured.containerd


def make(root: str, volumes: type[Volumes]) -> None:
    """
    Make an empty store at *root*, durably; see `Snapshotter.create`.
    """
    with translating(f"make a store at {root!r}"):
        # A mount point is on another filesystem than the directory it is in.
        if not os.path.exists(root):
            try:
                volumes.make_root(root)
            except FileExistsError:
                pass  # made concurrently
            except FileNotFoundError as error:
                raise NotFoundError(f"{os.path.dirname(root)!r} does not exist: make it first") from error
        opened = volumes(root, "auto")
        try:
            Store.make(root, opened)
        finally:
            opened.close()


def check_options(client: str | None, usage: str, mount_mode: str) -> None:
    """
    Raise InvalidArgumentError if an option of opening has a value that it cannot have.
    """
    if client is not None:
        check_client(client)
    for name, value, choices in (
        ("usage", usage, get_args(UsageDefinition)),
        ("mount_mode", mount_mode, get_args(MountMode)),
    ):
        if value not in choices:
            raise InvalidArgumentError(f"{name} is {' or '.join(map(repr, choices))}, not {value!r}")


def check_client(client: str) -> None:
    """
    Raise InvalidArgumentError if *client* is empty.
    """
    if not client:
        raise InvalidArgumentError("client is empty: name the client whose snapshots these are")


def _cure(problem: str) -> str:
    """
    Return the cure for the *problem* of a quarantined snapshot.
    """
    if problem.startswith(recovery.UNREADABLE):
        return _KEEP
    return _REMOVE if problem == recovery.LOST else _REPAIR


def _lost(snapshot_id: int, why: str) -> Snapshot:
    """
    Return a stand-in for a parent without a record, for its whole children to name.
    """
    return Snapshot(Record(snapshot_id, State.COMMITTED, f"(snapshot {snapshot_id}, which is lost)"), None, why)
