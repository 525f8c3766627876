"""
containerd's snapshotter contract: who may do what when, and in which order it reaches the disk.
"""

import contextlib
import copy
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import starmap
from typing import Self, TypedDict, TypeVar, Unpack

from pybtrfs.mountinfo import MountTable
from snapshotter.contract.labels import apply_fieldpaths, check_key, check_labels
from snapshotter.contract.session import Session
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    Error,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    quoted,
    translating,
)
from snapshotter.events import Event
from snapshotter.model import LOCAL, Info, Kind, Located, Measured, Mount, Problem, Status, Usage, UsageDefinition
from snapshotter.store import records, recovery
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.index import Index, Snapshot, describe
from snapshotter.store.layout import FS, LAYER, SNAPSHOTS, Directory, Place, real_path
from snapshotter.store.ownership import Ownership
from snapshotter.store.records import Commitment, Record, State
from snapshotter.store.recovery import Recovered, Verdict
from snapshotter.store.store import Store
from snapshotter.store.volumes import MountMode, Volumes
from snapshotter.store.worker import Worker
from snapshotter.store.write_errors import WriteErrors

CLEANUP_SECONDS = 5.0  # for destroying and for the space together
# What a record may grow by without its labels: usage, generation, state.
RECORD_RESERVE = 256

_MEND = "`snapshotter doctor --fix` mends what can be known; else remove the snapshot, and what rests on it"
_REMOVE = "remove the snapshot, and what rests on it"
_MOVE = "`snapshotter doctor --fix` mends it, or moves it to the quarantine"
_ADOPT = "make it one with `snapshotter init --adopt`"
_LAYER_COUNTER = -1  # of a measurement that never changes

T = TypeVar("T")


class Options(TypedDict, total=False):
    """
    The options of opening a store; see `Snapshotter`.
    """

    client: str | None
    usage: UsageDefinition
    mount_mode: MountMode
    verify: bool
    volumes: type[Volumes]
    socket: str


class Snapshotter:
    """
    The snapshots of one store.

    Its methods may be called from any thread, and several at once. What changes the store is durable when it returns:
    `prepare`, `view`, `commit`, `update`, `remove` and `fork` survive a power failure from then on, and one that did
    not return has happened whole or not at all.

    Privilege: that of `BtrfsVolumes`, and access to the store, which is 0700.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        read_only: bool = False,
        client: str | None = LOCAL,
        usage: UsageDefinition = "added",
        mount_mode: MountMode = "btrfs",
        verify: bool = True,
        volumes: type[Volumes] = BtrfsVolumes,
        socket: str = "",
    ) -> None:
        """
        Open the store at *root*, and finish or undo what a crash interrupted.

        A copy of a store, such as a snapshot of it, opens for reading only: `why_read_only` says so.

        Args:
            read_only: Change nothing and take no lock, beside whoever has the store; it is read once, now.
            client: Whose snapshots these are. The first `prepare` or `view` binds the store to it, since containerd's
                garbage collection removes every snapshot of its snapshotter that it does not know. None is whoever
                the store is bound to, else ``"local"``.
            usage: What `usage` gives: ``"added"``, the bytes that the snapshot added on disk, or ``"containerd"``, the
                whole size of each file that differs from the parent's.
            mount_mode: ``"btrfs"`` mounts the device by ``subvolid``, ``"bind"`` the path of the subvolume.
            verify: Have `commit` find out whether the disk took the data.
            volumes: What makes the subvolumes; `snapshotter.testing.DirectoryVolumes` needs no btrfs.
            socket: Where this process serves the store; its lock says so to whoever finds it held.

        Raises:
            NotFoundError: *root* does not exist.
            FailedPreconditionError: *root* is not a store, not on btrfs, or a newer release's.
            InvalidArgumentError: *root* cannot be a path, or an option is wrong.
            StoreHeldError: Another process has the store.
            DataLossError: The store's own record is damaged.
        """
        _check_options(client, usage, mount_mode)
        started = time.monotonic()
        self.root = real_path(root)
        self._definition = usage
        self._index = Index()
        self._problems: list[Problem] = []
        with translating(f"open store {self.root!r}"), contextlib.ExitStack() as stack:
            try:
                self._volumes = volumes(self.root, mount_mode)
            except FileNotFoundError as error:
                raise NotFoundError(f"store {self.root!r} does not exist: make it with `snapshotter init`") from error
            stack.callback(self._volumes.close)
            self._store = Store(self.root, self._volumes)
            stack.callback(self._store.close)
            why_read_only = "it was opened read-only" if read_only else ""
            self._is_copy = self._store.is_copy
            if self._is_copy:
                why_read_only = f"it is a copy of a store: {_ADOPT}"
                self._problems.append(Problem(self.root, "it is a copy of a store, and can only be read", _ADOPT))
            if not why_read_only:
                stack.callback(self._store.acquire(socket).release)
            self.client = client or self._store.header.client or LOCAL
            self._ownership = Ownership(self._store, self._index)
            self._write_errors = WriteErrors(self._store, self._volumes, verify=verify)
            self._worker = Worker(self._store, self._volumes)
            stack.callback(self._worker.close)
            self._load(writing=not why_read_only)
            resources = contextlib.ExitStack()
            resources.callback(Event.CLOSED.emit, root=self.root)
            resources.callback(stack.pop_all().close)
            self._session = Session(self.root, resources, why_read_only)
        seconds = time.monotonic() - started
        Event.OPENED.emit(root=self.root, snapshots=len(self._index), seconds=seconds, error=why_read_only)

    @classmethod
    def create(cls, root: str | os.PathLike[str], **options: Unpack[Options]) -> Self:
        """
        Make a store at *root*, durably, and open it.

        A *root* that does not exist is made, as a subvolume; an empty directory is used as it is.

        Raises:
            AlreadyExistsError: *root* is a store.
            NotFoundError: The directory that *root* would be in does not exist.
            FailedPreconditionError: *root* is not on btrfs, or not empty.
            StoreHeldError: Another process is making it.
        """
        _check_options(options.get("client", LOCAL), options.get("usage", "added"), options.get("mount_mode", "btrfs"))
        path = real_path(root)
        volumes = options.get("volumes", BtrfsVolumes)
        with translating(f"make a store at {path!r}"):
            # A mount point is on another filesystem than the directory it is in.
            if not os.path.exists(path):
                try:
                    volumes.make_root(path)
                except FileExistsError:
                    pass  # somebody else was faster
                except FileNotFoundError as error:
                    raise NotFoundError(f"{os.path.dirname(path)!r} does not exist: make it first") from error
            opened = volumes(path, "btrfs")
            try:
                Store.make(path, opened)
            finally:
                opened.close()
        return cls(path, **options)

    @classmethod
    def adopt(cls, root: str | os.PathLike[str], **options: Unpack[Options]) -> Self:
        """
        Make a store of one that was moved here with its subvolumes, and open it.

        Raises:
            FailedPreconditionError: Its subvolumes are not here: it is a copy of the records alone.
        """
        path = real_path(root)
        with cls(path, read_only=True, **options) as copy:
            with_subvolume = [snapshot for snapshot in copy._index.snapshots() if snapshot.kind is not Kind.VIEW]
            if with_subvolume and all(snapshot.quarantine for snapshot in with_subvolume):
                raise FailedPreconditionError(
                    f"none of the {len(with_subvolume)} subvolumes are in {path!r}: a snapshot of a store holds "
                    "its records only; bring the subvolumes too"
                )
            with copy._store.acquire():
                copy._store.adopt()
        return cls(path, **options)

    def bound_to(self, client: str) -> Self:
        """
        The same open store for another client: what it changes is refused while the snapshots are somebody else's.

        Raises:
            InvalidArgumentError: *client* is empty.
        """
        _check_client(client)
        bound = copy.copy(self)
        bound.client = client
        return bound

    def bind(self, client: str) -> None:
        """
        Make the snapshots those of *client*, whosever they were: for one that got another name. Durable.

        Raises:
            InvalidArgumentError: *client* is empty.
        """
        _check_client(client)
        with self._session.changing(f"bind store {self.root!r}"):
            self._ownership.bind(client)
            self.client = client

    def close(self) -> None:
        """
        Release the store, once the calls under way have returned and the destroy in hand is done; the next open does
        the rest. Closing twice is fine.
        """
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def why_read_only(self) -> str:
        """
        Why this store cannot be changed; empty when it can.
        """
        return self._session.why_read_only

    @property
    def is_copy(self) -> bool:
        """
        Whether this is a copy of a store, such as a snapshot of it, which can only be read.
        """
        return self._is_copy

    @property
    def failure(self) -> str:
        """
        Why the filesystem is not asked any more, having failed; empty while it works.
        """
        return self._session.failure

    # -- reading

    def stat(self, key: str) -> Info:
        """
        Describe the snapshot *key*, of any kind.

        Raises:
            NotFoundError: No snapshot has the key.
        """
        self._session.check()
        return self._index.get(key).info

    def walk(self, *filter_list: str) -> Iterator[Info]:
        """
        Describe every snapshot that one of the filters matches, in no order; all of them without a filter.

        They are those of the moment of the call; changing the store on the way is fine.

        Raises:
            InvalidArgumentError: A filter does not parse.
            NotSupportedError: A filter uses ``~=`` and google-re2 is not installed.
        """
        self._session.check()
        # A description is made when it is asked for, so that many of them hold up nobody.
        infos = starmap(describe, [(each.record, each.parent_key) for each in self._index.snapshots()])
        if not filter_list:
            return infos
        from snapshotter.contract import filters  # slow to import

        return filter(filters.parse(*filter_list).match, infos)

    def usage(self, key: str) -> Usage:
        """
        Measure the snapshot *key* without its parents, by the definition chosen at opening.

        Of a committed one it is exact and measured once. Of an active one it counts what has been written back, and
        costs a search of what changed, again only once the filesystem has committed a change: after 30 seconds, or a
        sync. A view adds nothing.

        Raises:
            NotFoundError: No snapshot has the key.
            DataLossError: Its subvolume is gone.
        """
        measured = self._reading(key, "measure", self._measure)
        return self.usage_of(measured)

    def known_usage(self, key: str) -> Usage | None:
        """
        What `usage` says, where no system call is needed to know; None elsewhere.

        Raises:
            NotFoundError: No snapshot has the key.
        """
        self._session.check()
        measured = self._index.get(key).known
        return self.usage_of(measured) if measured else None

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """
        How to mount the active snapshot or view *key*: what `prepare` or `view` returned.

        Raises:
            NotFoundError: No snapshot has the key.
            FailedPreconditionError: It is committed.
            DataLossError: Its subvolume is gone.
        """
        return self._reading(key, "mount", self._mounts)

    def subvolume(self, key: str) -> str:
        """
        The path of the subvolume with what the snapshot *key* holds: of a view its parent's, or an empty one.

        It is the store's, to look at; a commit moves it, and a removal destroys it.

        Raises:
            NotFoundError: No snapshot has the key.
            DataLossError: Its subvolume is gone.
        """
        self._session.check()
        return self._subvolume(self._index.get(key)).path

    def locate(self) -> Iterator[Located]:
        """
        Every snapshot of the moment of the call, in no order, with what `subvolume` and `known_usage` say of it.
        """
        self._session.check()
        above = len(self.root) + 1
        for snapshot in self._index.snapshots():
            path = problem = ""
            try:
                path = self._subvolume(snapshot).path[above:]
            except DataLossError as error:
                problem = str(error)
            known = snapshot.known
            yield Located(snapshot.info, path, self.usage_of(known) if known else None, problem)

    def usage_of(self, measured: Measured) -> Usage:
        """
        What of a measurement `usage` gives, by the definition chosen at opening.
        """
        return measured.added if self._definition == "added" else measured.containerd

    def _reading(self, key: str, doing: str, read: Callable[[Snapshot], T]) -> T:
        """
        What *read* finds of the snapshot *key*; it waits for no change, and is judged on what it was read of.
        """
        self._session.check()
        while True:
            snapshot = self._index.get(key)
            record = snapshot.record
            try:
                with self._session.reading(f"{doing} snapshot {quoted(key)}"):
                    return read(snapshot)
            except DataLossError:
                # It is no loss when a commit or a removal took the subvolume from under the reading.
                if self._index.get(key).record is record:
                    raise

    def problems(self) -> list[Problem]:
        """
        What is wrong with the store: snapshots that cannot be used, and what no record accounts for.
        """
        quarantined = [
            Problem(snapshot.key, snapshot.quarantine, _REMOVE if snapshot.quarantine == recovery.LOST else _MEND)
            for snapshot in self._index.snapshots()
            if snapshot.quarantine
        ]
        return quarantined + self._problems

    def status(self) -> Status:
        """
        Count what the store holds, without a look at the disk.
        """
        self._session.check()
        kinds = Counter(snapshot.kind for snapshot in self._index.snapshots())
        return Status({kind: kinds[kind] for kind in Kind}, len(self._worker.pending), len(self.problems()))

    # -- changing

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """
        Make the active snapshot *key*, a writable copy of the committed *parent*, or empty.

        Steps, and what recovery does after a stop behind each:

        1. the directory: removed
        2. its record, "preparing": removed
        3. with a parent, a snapshot of its layer, which commits: active.
           Without, an empty subvolume: active if it reached the disk; then a barrier.

        Raises:
            NotFoundError: *parent* does not exist.
            InvalidArgumentError: *parent* is not committed; *key* or *labels* break a rule.
            AlreadyExistsError: *key* is taken.
            ResourceExhaustedError: The disk is full.
            DataLossError: *parent* lost its layer.
        """

        def make(snapshot_id: int, record: bytes, base: Snapshot | None) -> None:
            if base is None:
                with self._store.make_directory(snapshot_id, record) as directory:
                    self._volumes.create(directory)
                    self._volumes.barrier(directory.fd)
            else:
                layer = self._store.subvolume(base.id, LAYER)
                self._volumes.snapshot(layer, self._store.place(snapshot_id), record)

        return self._create(State.PREPARING, key, parent, labels, make)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """
        Make *key* a read-only view of the committed *parent*, or of an empty directory; nothing is copied.

        Steps, and what recovery does after a stop behind each:

        1. the directory: removed
        2. its record, "view": a view; then a barrier

        Raises:
            As `prepare`.
        """

        def make(snapshot_id: int, record: bytes, base: Snapshot | None) -> None:
            with self._store.make_directory(snapshot_id, record) as directory:
                self._volumes.barrier(directory.fd)

        return self._create(State.VIEW, key, parent, labels, make)

    def fork(self, key: str, new_key: str) -> tuple[Mount, ...]:
        """
        Make the active snapshot *new_key* a copy of the active *key* as it is now, while it runs.

        Parent and labels are those of *key*. Steps as those of `prepare` with a parent.

        Raises:
            NotFoundError: *key* does not exist.
            FailedPreconditionError: *key* is not active, or holds a nested subvolume with content.
            AlreadyExistsError: *new_key* is taken.
            DataLossError: *key* lost its subvolume.
        """
        started = time.monotonic()
        check_key(new_key)
        with self._changing(f"fork snapshot {quoted(key)}"), self._index.change(key, new_key):
            source = self._index.get(key)
            self._check_active(source)
            self._check_free(new_key)
            _check_whole(source)
            with self._store.directory(source.id) as directory:
                base_transid = self._base_transid(source, directory)

            def make(snapshot_id: int, record: bytes) -> None:
                with self._store.make_directory(snapshot_id, record) as directory:
                    self._volumes.fork(self._store.subvolume(source.id, FS), directory)

            now = time.time_ns()
            draft = source.record._replace(
                state=State.PREPARING,
                key=new_key,
                created=now,
                updated=now,
                base_transid=base_transid,
                suspect=self._write_errors.is_suspect(source),
            )
            forked = self._make(draft, source.parent, make)
            Event.FORKED.emit(key=new_key, id=forked.id, source=key, seconds=time.monotonic() - started)
            return self._mounts(forked)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """
        Make the active snapshot *key* the committed *name*, with *labels* in place of its own.

        What is committed is a copy of this moment, which nobody can change any more; *key* is gone.

        Steps, and what recovery does after a stop behind each:

        1. the record, "committing", with name and labels: active
        2. a read-only snapshot, the layer, which flushes the data and commits: active, and the layer is destroyed
        3. a sync that tells of data the disk refused: likewise, now if it did
        4. the record, "committing" and verified; then a barrier: committed

        The worker destroys the former subvolume.

        Args:
            parent: Empty, or the parent that *key* has: there is no rebasing.

        Raises:
            NotFoundError: *key* does not exist.
            AlreadyExistsError: *name* is taken.
            FailedPreconditionError: *key* is not active; or it holds a nested subvolume with content, or an active
                swap file.
            InvalidArgumentError: *parent* is another one; *name* or *labels* break a rule.
            DataLossError: The disk may have refused data of the snapshot.
            ResourceExhaustedError: The disk is full.
        """
        started = time.monotonic()
        check_key(name)
        labels = check_labels(labels)
        with self._changing(f"commit snapshot {quoted(key)}"):
            with self._index.change(name, key):
                active = self._index.get(key)
                self._check_free(name)
                self._check_active(active)
                if parent and parent != active.parent_key:
                    raise InvalidArgumentError(
                        f"cannot change parent of active snapshot {quoted(key)} on commit: "
                        f"it is {quoted(active.parent_key)}, not {quoted(parent)}"
                    )
                _check_whole(active)
                self._write_errors.check(active)
                commitment = Commitment(name, labels, time.time_ns())
                committed = self._with_space(lambda: self._freeze(active, commitment))
                self._index.update(active, committed, settled=False)
                Event.COMMITTED.emit(key=name, id=active.id, source=key, seconds=time.monotonic() - started)
            # Later, for the kernel locks the directory until it has dropped the files it caches, 0.1 s for 20,000.
            self._worker.destroy(active.id, FS, later=True)
            self._worker.submit(lambda: self._settle(active))

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """
        Change the labels of the snapshot *info.name* to those of *info*, and return its new description.

        Steps: the record, then a barrier; a stop between them leaves the old labels or the new ones.

        Args:
            fieldpaths: ``"labels"`` replaces them all, as does no path; ``"labels.KEY"`` sets that one, or deletes it
                when *info* has none or an empty one.

        Raises:
            NotFoundError: No snapshot has that name.
            InvalidArgumentError: Another path; the labels break a rule.
        """
        started = time.monotonic()
        with self._changing(f"update snapshot {quoted(info.name)}"), self._index.change(info.name):
            snapshot = self._index.get(info.name)
            labels = apply_fieldpaths(snapshot.info, info, fieldpaths)
            record = snapshot.record._replace(labels=labels, updated=time.time_ns())
            data = self._encode(record)
            with self._store.directory(snapshot.id) as directory:
                try:
                    self._store.write(directory, data)
                    self._volumes.barrier(directory.fd)
                except BaseException:
                    self._restore(directory, snapshot)
                    raise
            self._index.update(snapshot, record, settled=True)
            Event.UPDATED.emit(key=info.name, id=snapshot.id, seconds=time.monotonic() - started)
            return snapshot.info

    def remove(self, key: str) -> None:
        """
        Remove the snapshot *key*; its space comes back in the background.

        Steps: the record, "removed", then a barrier; a stop between them leaves it there, or removed. On a disk too
        full for that its subvolume is destroyed at once.

        Raises:
            NotFoundError: No snapshot has the key.
            FailedPreconditionError: Another snapshot rests on it, or it cannot be removed now; never anything else,
                since any other error would end containerd's garbage collection.
        """
        started = time.monotonic()
        try:
            with self._changing(f"remove snapshot {quoted(key)}"):
                with self._index.change(key):
                    snapshot = self._index.get(key)
                    if snapshot.children:
                        raise FailedPreconditionError(f"cannot remove snapshot {quoted(key)} with child")
                    with contextlib.suppress(FileNotFoundError), self._store.directory(snapshot.id) as directory:
                        self._mark_removed(snapshot, directory)
                    self._index.remove(snapshot)
                Event.REMOVED.emit(key=key, id=snapshot.id, seconds=time.monotonic() - started)
                self._worker.destroy(snapshot.id)
        except (UnavailableError, ResourceExhaustedError, DataLossError) as error:
            raise FailedPreconditionError(str(error)) from error

    def cleanup(self) -> None:
        """
        Destroy what is left of removed snapshots, and have their space given back: seconds at most. What is mounted,
        or otherwise held, is not waited for.
        """
        with self._changing("clean up"):
            self._worker.reclaim(CLEANUP_SECONDS)

    # -- opening

    def _load(self, *, writing: bool) -> None:
        """
        Fill the index from what recovery finds; hand what it leaves over to the worker.
        """
        by_id: dict[int, Snapshot] = {}
        for item in recovery.survey(self._store, self._volumes):
            if item.verdict is Verdict.ORPHAN:
                self._report(item.name, item.problem)
                if item.id:
                    by_id[item.id] = _lost(item.id, item.problem)
            elif item.record is None:
                for stranger in item.contents.unexpected:
                    self._report(
                        f"{item.name}/{stranger}", "it is no subvolume, and keeps a removed snapshot from going"
                    )
                if writing:
                    if item.written and item.written.state is State.PREPARING:
                        Event.UNDONE.emit(key=item.written.key, id=item.id)
                    self._worker.destroy(item.id)
            else:
                parent_id = item.record.parent
                if parent_id and parent_id not in by_id:
                    by_id[parent_id] = _lost(parent_id, "its directory is gone")
                parent = by_id[parent_id] if parent_id else None
                quarantine = item.problem
                snapshot = Snapshot(item.record, parent, quarantine, settled=item.record is item.written)
                if quarantine:
                    Event.QUARANTINED.emit(key=snapshot.key, id=snapshot.id, error=quarantine)
                self._index.add(snapshot)
                by_id[snapshot.id] = snapshot
                if writing:
                    self._finish(snapshot, item)

    def _finish(self, snapshot: Snapshot, item: Recovered) -> None:
        if item.verdict is not Verdict.QUARANTINED and not snapshot.settled:
            committing = item.written is not None and item.written.state is State.COMMITTING
            event = Event.UNDONE if committing and item.verdict is Verdict.ACTIVE else Event.RECOVERED
            event.emit(key=snapshot.key, id=snapshot.id)
        if item.verdict is Verdict.ACTIVE and (item.contents.layer or not snapshot.settled):
            with contextlib.suppress(OSError), self._store.directory(snapshot.id) as directory:
                self._volumes.destroy(directory, LAYER, MountTable())
        if item.verdict is Verdict.COMMITTED and item.contents.fs:
            self._worker.destroy(snapshot.id, FS)
        if not snapshot.settled or (item.verdict is Verdict.COMMITTED and snapshot.record.usage is None):
            self._worker.submit(lambda: self._settle(snapshot))

    def _report(self, name: str, what: str) -> None:
        problem = Problem(os.path.join(self.root, SNAPSHOTS, name), what, _MOVE)
        Event.UNKNOWN.emit(path=problem.subject, error=what)
        self._problems.append(problem)

    @contextlib.contextmanager
    def _changing(self, doing: str) -> Iterator[None]:
        with self._session.changing(doing):
            self._ownership.check(self.client)
            yield

    # -- creating

    def _create(
        self,
        state: State,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None,
        make: Callable[[int, bytes, Snapshot | None], None],
    ) -> tuple[Mount, ...]:
        started = time.monotonic()
        check_key(key)
        labels = check_labels(labels)
        with (
            self._changing(f"create snapshot {quoted(key)}"),
            self._index.change(key, parent=parent) as base,
            self._ownership.making(self.client),
        ):
            if base and base.kind is not Kind.COMMITTED:
                raise InvalidArgumentError(f"parent {quoted(parent)} is not committed snapshot")
            self._check_free(key)
            if base:
                _check_whole(base)
            now = time.time_ns()
            draft = Record(
                0,
                state,
                key,
                base.id if base else None,
                labels,
                now,
                now,
                write_errors=self._volumes.write_errors(recent=True),
            )
            snapshot = self._make(draft, base, lambda snapshot_id, record: make(snapshot_id, record, base))
            event = Event.VIEWED if state is State.VIEW else Event.PREPARED
            event.emit(key=key, id=snapshot.id, parent=parent, seconds=time.monotonic() - started)
            return self._mounts(snapshot)

    def _make(self, draft: Record, parent: Snapshot | None, make: Callable[[int, bytes], None]) -> Snapshot:
        """
        Make a new snapshot by *make*, of an id and a record; all of it or nothing.
        """

        def attempt() -> Record:
            record = draft._replace(id=self._store.take_id())
            data = self._encode(record)
            try:
                make(record.id, data)
            except FileExistsError:
                return attempt()  # somebody else's, and left alone
            except BaseException:
                self._discard(record.id)
                raise
            return record

        record = self._with_space(attempt)
        preparing = record.state is State.PREPARING
        snapshot = Snapshot(record.active() if preparing else record, parent, settled=not preparing)
        self._index.add(snapshot)
        if preparing:
            self._worker.submit(lambda: self._settle(snapshot))
        return snapshot

    def _discard(self, snapshot_id: int) -> None:
        """
        Undo what was made of a snapshot that nobody was told of.
        """
        with contextlib.suppress(OSError), self._store.directory(snapshot_id) as directory:
            self._write(directory, Record(snapshot_id, State.REMOVED, ""))
        self._worker.destroy(snapshot_id)

    def _with_space(self, attempt: Callable[[], T]) -> T:
        """
        *attempt*, once more if the disk was full, with the space that whatever was deleted has to give back.
        """
        try:
            return attempt()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        self._worker.reclaim(CLEANUP_SECONDS, always=True)
        return attempt()

    def _encode(self, record: Record) -> bytes:
        data = records.encode(record)
        limit = self._volumes.record_limit - RECORD_RESERVE
        if len(data) > limit:
            raise InvalidArgumentError(
                f"key and labels of snapshot {quoted(record.key)} need {len(data)} bytes, "
                f"and a record has room for {limit}"
            )
        return data

    # -- committing and removing

    def _freeze(self, active: Snapshot, commitment: Commitment) -> Record:
        with self._store.directory(active.id) as directory:
            committing = active.record._replace(
                state=State.COMMITTING,
                base_transid=self._base_transid(active, directory),
                commitment=commitment,
            )
            data = self._encode(committing)
            try:
                self._store.write(directory, data)
                self._volumes.freeze(directory)
                self._write_errors.verify(active)
                verified = committing._replace(commitment=commitment._replace(verified=True))
                self._write(directory, verified)
                self._volumes.barrier(directory.fd)
            except BaseException:
                # The layer goes first: with it, a verified "committing" would be a commit.
                with contextlib.suppress(OSError):
                    self._volumes.destroy(directory, LAYER, MountTable())
                self._restore(directory, active)
                raise
        return committing.committed()

    def _base_transid(self, active: Snapshot, directory: Directory) -> int:
        if active.record.base_transid is not None:
            return active.record.base_transid
        return self._volumes.base_transid(directory) if active.parent else 0

    def _restore(self, directory: Directory, snapshot: Snapshot) -> None:
        """
        Write the record of before a change that failed; recovery copes where this fails too.
        """
        with contextlib.suppress(OSError):
            self._write(directory, snapshot.record)

    def _mark_removed(self, snapshot: Snapshot, directory: Directory) -> None:
        try:
            # With its parent, beside which `snapshotter.analysis.space` measures what is left of it.
            self._write(directory, Record(snapshot.id, State.REMOVED, "", snapshot.record.parent))
            self._volumes.barrier(directory.fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._restore(directory, snapshot)
                raise
            self._worker.destroy_now(snapshot.id)
            self._volumes.barrier(directory.fd)

    def _settle(self, snapshot: Snapshot) -> None:
        """
        Bring the record of a snapshot up to date, in the background and without a barrier.
        """
        try:
            usage = self._measure(snapshot) if snapshot.kind is Kind.COMMITTED else None
            key = snapshot.key
            with self._index.change(key):
                if key not in self._index or self._index.get(key) is not snapshot:
                    return
                record = snapshot.record._replace(usage=usage)
                if not snapshot.settled or record != snapshot.record:
                    with self._store.directory(snapshot.id) as directory:
                        self._write(directory, record)
                    self._index.update(snapshot, record, settled=True)
        except (OSError, Error) as error:
            Event.UNSETTLED.emit(key=snapshot.key, id=snapshot.id, error=str(error))

    def _write(self, directory: Directory, record: Record) -> None:
        self._store.write(directory, records.encode(record))

    # -- asking

    def _measure(self, snapshot: Snapshot) -> Measured:
        if snapshot.known:
            return snapshot.known
        _check_whole(snapshot)
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(self._store.directory(snapshot.id))
            committed = snapshot.kind is Kind.COMMITTED
            counter = _LAYER_COUNTER if committed else self._volumes.change_counter(directory)
            if snapshot.measured and snapshot.measured[0] == counter:
                return snapshot.measured[1]
            parent = stack.enter_context(self._store.directory(snapshot.parent.id)) if snapshot.parent else None
            base_transid = self._base_transid(snapshot, directory)
            measured = self._volumes.measure(directory, LAYER if committed else FS, base_transid, parent)
            snapshot.measured = (counter, measured)
            return measured

    def _mounts(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        if snapshot.kind is Kind.COMMITTED:
            raise FailedPreconditionError(f"requested snapshot {quoted(snapshot.key)} not active or view")
        return (self._volumes.mount(self._subvolume(snapshot), read_only=snapshot.kind is Kind.VIEW),)

    def _subvolume(self, snapshot: Snapshot) -> Place:
        _check_whole(snapshot)
        if snapshot.kind is Kind.ACTIVE:
            return self._store.subvolume(snapshot.id, FS)
        layer = snapshot.parent if snapshot.kind is Kind.VIEW else snapshot
        if layer is None:
            return self._store.empty
        _check_whole(layer)
        return self._store.subvolume(layer.id, LAYER)

    def _check_free(self, key: str) -> None:
        if key in self._index:
            raise AlreadyExistsError(f"snapshot {quoted(key)} already exists")

    @staticmethod
    def _check_active(snapshot: Snapshot) -> None:
        if snapshot.kind is not Kind.ACTIVE:
            raise FailedPreconditionError(f"snapshot {quoted(snapshot.key)} is not active")


def _lost(snapshot_id: int, why: str) -> Snapshot:
    """
    The parent to name for whole children of a snapshot of which no record is left.
    """
    return Snapshot(Record(snapshot_id, State.COMMITTED, f"(snapshot {snapshot_id}, which is lost)"), None, why)


def _check_whole(snapshot: Snapshot) -> None:
    if snapshot.quarantine:
        raise DataLossError(f"snapshot {quoted(snapshot.key)} cannot be used: {snapshot.quarantine}")


def _check_options(client: str | None, usage: str, mount_mode: str) -> None:
    if client is not None:
        _check_client(client)
    for name, value, choices in (
        ("usage", usage, ("added", "containerd")),
        ("mount_mode", mount_mode, ("btrfs", "bind")),
    ):
        if value not in choices:
            raise InvalidArgumentError(f"{name} is {' or '.join(map(repr, choices))}, not {value!r}")


def _check_client(client: str) -> None:
    if not client:
        raise InvalidArgumentError("client is empty")
