"""
The snapshotter: the rules of containerd's contract for each operation.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import starmap
from typing import Self, TypeVar, Unpack

from snapshotter.contract import idmap
from snapshotter.contract.labels import apply_fieldpaths, check_key, check_labels
from snapshotter.contract.opening import Opened, Options, check_client, check_options, make
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    quoted,
)
from snapshotter.events import Event
from snapshotter.model import LOCAL, IdMap, Info, Kind, Mount, Problem, Status, Usage, UsageDefinition
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.index import Snapshot, describe
from snapshotter.store.layout import real_path
from snapshotter.store.operations import CLEANUP_SECONDS, check_usable
from snapshotter.store.records import Record, State
from snapshotter.store.volumes import MountMode, Volumes

T = TypeVar("T")

_NAMED = 3  # children in a message; a message is small, because gRPC sends it in a header


class Snapshotter:
    """
    The snapshots of one store, by containerd's contract.

    A *key* names an active snapshot or a view, a *name* a committed snapshot, and *parent* the committed snapshot that
    another one begins with. Keys and names share one namespace. The life of a snapshot:

    1. `prepare` makes the active snapshot *key*, a writable copy of *parent*, or empty.
    2. The caller mounts it by the mounts that `prepare` returned, writes, and unmounts it.
    3. `commit` makes it the committed snapshot *name*, which nobody can change any more; *key* is gone.
    4. `prepare` or `view` with *name* as parent begins the next one, any number of times.
    5. `remove` removes a snapshot without children; a parent can go after its last child.

    An image is a chain of committed snapshots, a layer each, and a container runs on an active one::

        with Snapshotter.create(root) as snapshotter:
            with mounted(snapshotter.prepare("extract-1")) as path:  # unpack a layer
                Path(path, "file").write_text("from the image")
            snapshotter.commit("layer-1", "extract-1")
            with mounted(snapshotter.prepare("container", "layer-1")) as path:  # run on it
                Path(path, "file").write_text("changed")
            snapshotter.commit("layer-2", "container")  # keep the changes as the next layer

    Every method may be called from any thread, and several at once. A change is durable when the method returns:
    `prepare`, `view`, `commit`, `update`, `remove` and `fork` survive a power failure from then on. A change that did
    not return has happened as a whole or not at all.

    Privilege: as `BtrfsVolumes`, and access to the store, which has mode 0700.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        read_only: bool = False,
        client: str | None = LOCAL,
        usage: UsageDefinition = "added",
        mount_mode: MountMode = "auto",
        verify: bool = True,
        volumes: type[Volumes] = BtrfsVolumes,
        socket: str = "",
    ) -> None:
        """
        Open the store at *root*, and finish or undo what a crash interrupted.

        A copy of a store, such as a snapshot of it, opens read-only: `why_read_only` says so.

        Args:
            read_only: Change nothing and take no lock; works while another process has the store. The store is read
                once, now.
            client: The owner of the snapshots. The first `prepare` or `view` binds the store to its client, because
                containerd's garbage collection removes every snapshot that containerd does not know. None is the
                client that the store is bound to, else ``"local"``.
            usage: The definition of `usage`. ``"added"`` is the bytes that the snapshot added on disk; ``"containerd"``
                is the whole size of each file that differs from the parent's.
            mount_mode: ``"btrfs"`` mounts the device by ``subvolid``, ``"bind"`` the path of the subvolume. ``"auto"``
                is ``"bind"`` in a user namespace, where btrfs cannot be mounted, else ``"btrfs"``.
            verify: Make `commit` find out whether the disk took the data.
            volumes: The maker of subvolumes; `snapshotter.testing.DirectoryVolumes` needs no btrfs.
            socket: The address at which this process serves the store; shown to others that find the store held.

        Raises:
            NotFoundError: *root* does not exist.
            FailedPreconditionError: *root* is not a store, not on btrfs, or of a newer release.
            InvalidArgumentError: *root* cannot be a path, or an option is wrong.
            StoreHeldError: Another process has the store.
            DataLossError: The store's own record is damaged.
        """
        check_options(client, usage, mount_mode)
        self._opened = Opened(
            real_path(root),
            read_only=read_only,
            client=client,
            usage=usage,
            mount_mode=mount_mode,
            verify=verify,
            volumes=volumes,
            socket=socket,
        )
        self._closes = True
        self.client = self._opened.client

    @classmethod
    def create(cls, root: str | os.PathLike[str], **options: Unpack[Options]) -> Self:
        """
        Make a store at *root*, durably, and open it.

        If *root* does not exist, it becomes a subvolume; an empty directory is used as it is.

        Raises:
            AlreadyExistsError: *root* is a store.
            NotFoundError: The parent directory of *root* does not exist.
            FailedPreconditionError: *root* is not on btrfs, or not empty.
            StoreHeldError: Another process is making the store.
        """
        check_options(options.get("client", LOCAL), options.get("usage", "added"), options.get("mount_mode", "auto"))
        path = real_path(root)
        make(path, options.get("volumes", BtrfsVolumes))
        return cls(path, **options)

    @classmethod
    def adopt(cls, root: str | os.PathLike[str], **options: Unpack[Options]) -> Self:
        """
        Make the copy of a store at *root*, moved here with its subvolumes, a store, and open it.

        Raises:
            FailedPreconditionError: The subvolumes are not here: *root* is a copy of the records alone.
        """
        path = real_path(root)
        with cls(path, read_only=True, **options) as copy:
            copy.opened.adopt()
        return cls(path, **options)

    @classmethod
    def _on(cls, opened: Opened, client: str) -> Self:
        bound = cls.__new__(cls)
        bound._opened = opened
        bound._closes = False
        bound.client = client
        return bound

    def bound_to(self, client: str) -> Self:
        """
        Return the same open store for another client, whose changes are refused while the snapshots are not its own.

        Closing the result does nothing: this object closes the store.

        Raises:
            InvalidArgumentError: *client* is empty.
        """
        check_client(client)
        return self._on(self._opened, client)

    def bind(self, client: str) -> None:
        """
        Make *client* the owner of the snapshots, durably: for a client whose name changed.

        Raises:
            InvalidArgumentError: *client* is empty.
        """
        check_client(client)
        with self._opened.session.changing(f"bind store {self.root!r}"):
            self._opened.ownership.bind(client)
            self.client = client

    def close(self) -> None:
        """
        Release the store when the calls under way have returned and the current destroy is done. The next open does
        the remaining background work. Closing twice is fine.
        """
        if self._closes:
            self._opened.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def root(self) -> str:
        """
        The absolute path of the store, without symbolic links.
        """
        return self._opened.root

    @property
    def opened(self) -> Opened:
        """
        The open store below the contract, for the packages of this distribution.
        """
        return self._opened

    @property
    def why_read_only(self) -> str:
        """
        The reason why the store cannot be changed; empty if it can.
        """
        return self._opened.session.why_read_only

    @property
    def is_copy(self) -> bool:
        """
        Whether the store is a copy, such as a snapshot of a store, which can only be read.
        """
        return self._opened.is_copy

    @property
    def failure(self) -> str:
        """
        The reason why the failed filesystem is not asked any more; empty while it works.
        """
        return self._opened.session.failure

    # -- reading

    def stat(self, key: str) -> Info:
        """
        Return the description of the snapshot *key*, of any kind.

        Raises:
            NotFoundError: No snapshot has the key.
        """
        self._opened.session.check()
        return self._opened.index.get(key).info

    def walk(self, *filter_list: str) -> Iterator[Info]:
        """
        Yield the description of every snapshot that one of the filters matches, in no order; all without a filter.

        The snapshots are those of the moment of the call; the store may change inside the loop.

        Raises:
            InvalidArgumentError: A filter does not parse.
            NotSupportedError: A filter uses ``~=`` and google-re2 is not installed.
        """
        self._opened.session.check()
        # Descriptions are made one at a time, so that a long walk does not hold the GIL.
        infos = starmap(describe, [(each.record, each.parent_key) for each in self._opened.index.snapshots()])
        if not filter_list:
            return infos
        from snapshotter.contract import filters  # slow to import

        return filter(filters.parse(*filter_list).match, infos)

    def usage(self, key: str) -> Usage:
        """
        Measure the snapshot *key* without its parents, by the definition chosen at opening.

        Nested subvolumes are included. The usage of a committed snapshot is exact and measured once. The usage of an
        active snapshot counts the data written back and committed, and is up to a second old. The last 71 seconds of
        a writer that never syncs can be missing. It costs a search of the changes, which is repeated only after a
        change. A view adds nothing.

        Raises:
            NotFoundError: No snapshot has the key.
            DataLossError: The subvolume is gone.
        """
        return self._opened.usage_of(self._reading(key, "measure", self._opened.operations.measure))

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """
        Return the mounts of the active snapshot or view *key*, as `prepare` or `view` did.

        Raises:
            NotFoundError: No snapshot has the key.
            FailedPreconditionError: The snapshot is committed.
            DataLossError: The subvolume is gone.
        """
        return self._reading(key, "mount", self._mounts)

    def subvolume(self, key: str) -> str:
        """
        Return the path of the subvolume with the contents of the snapshot *key*; a view has its parent's, or an empty
        one.

        The path is for reading only: the subvolume belongs to the store, a commit moves it, and a removal destroys it.

        Raises:
            NotFoundError: No snapshot has the key.
            DataLossError: The subvolume is gone.
        """
        self._opened.session.check()
        return self._opened.operations.place(self._opened.index.get(key)).path

    def problems(self) -> list[Problem]:
        """
        Return the problems found at opening: snapshots that cannot be used, and entries without a usable record.
        """
        return self._opened.problems()

    def status(self) -> Status:
        """
        Return the store in numbers, without a look at the disk.
        """
        self._opened.session.check()
        kinds = Counter(snapshot.kind for snapshot in self._opened.index.snapshots())
        return Status({kind: kinds[kind] for kind in Kind}, len(self._opened.worker.pending), len(self.problems()))

    def _reading(self, key: str, doing: str, read: Callable[[Snapshot], T]) -> T:
        """
        Return the result of *read* for the snapshot *key*, without waiting for changes of it.
        """
        self._opened.session.check()
        while True:
            snapshot = self._opened.index.get(key)
            record = snapshot.record
            try:
                with self._opened.session.reading(f"{doing} snapshot {quoted(key)}"):
                    return read(snapshot)
            except DataLossError:
                # Not data loss if a commit or removal destroyed the subvolume while it was being read.
                if self._opened.index.get(key).record is record:
                    raise

    # -- changing

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """
        Make the active snapshot *key*, a writable copy of the committed *parent*, or empty, and return its mounts.

        Steps, and the result of recovery after a stop behind each; see `Operations.create`:

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
        return self._create(State.PREPARING, Event.PREPARED, key, parent, labels)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """
        Make *key* a read-only view of the committed *parent*, or of an empty directory, and return its mounts. Nothing
        is copied.

        Steps, and the result of recovery after a stop behind each; see `Operations.create`:

        1. the directory: removed
        2. its record, "view": a view; then a barrier

        Raises:
            As `prepare`.
        """
        return self._create(State.VIEW, Event.VIEWED, key, parent, labels)

    def _create(
        self, state: State, event: Event, key: str, parent: str, labels: Mapping[str, str] | None
    ) -> tuple[Mount, ...]:
        started = time.monotonic()
        check_key(key)
        labels = check_labels(labels)
        with (
            self._changing(f"create snapshot {quoted(key)}"),
            self._opened.index.change(key, parent=parent) as base,
            self._opened.ownership.making(self.client),
        ):
            if base and base.kind is not Kind.COMMITTED:
                raise InvalidArgumentError(f"parent {quoted(parent)} is not committed snapshot")
            self._check_free(key)
            self._opened.volumes.check_root()
            if base:
                check_usable(base)
            snapshot = self._add(self._opened.operations.create(state, key, base, labels), base)
            event.emit(key=key, id=snapshot.id, parent=parent, seconds=time.monotonic() - started)
            return self._mounts(snapshot)

    def fork(self, key: str, new_key: str) -> tuple[Mount, ...]:
        """
        Make the active snapshot *new_key* a copy of the active *key* as it is now, while it runs, and return its
        mounts.

        Parent and labels are those of *key*. Steps as `prepare` with a parent; see `Operations.fork`.

        Raises:
            NotFoundError: *key* does not exist.
            FailedPreconditionError: *key* is not active, or holds a nested subvolume with content.
            AlreadyExistsError: *new_key* is taken.
            DataLossError: *key* lost its subvolume.
        """
        started = time.monotonic()
        check_key(new_key)
        with self._changing(f"fork snapshot {quoted(key)}"), self._opened.index.change(key, new_key):
            source = self._opened.index.get(key)
            _check_active(source)
            self._check_free(new_key)
            self._opened.volumes.check_root()
            check_usable(source)
            forked = self._add(self._opened.operations.fork(source, new_key), source.parent)
            Event.FORKED.emit(key=new_key, id=forked.id, source=key, seconds=time.monotonic() - started)
            return self._mounts(forked)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """
        Make the active snapshot *key* the committed *name*, with *labels* in place of its own.

        The committed snapshot is a copy of this moment, which nobody can change any more; *key* is gone. The call can
        be repeated when its answer was lost: it changes nothing once *name* was committed from *key*. A new use of
        *key* ends this, also after its removal.

        Steps, and the result of recovery after a stop behind each; see `Operations.freeze`:

        1. the record, "committing", with name and labels: active
        2. a read-only snapshot, the layer, which flushes the data and commits: active, and the layer is destroyed
        3. a sync that reports data the disk refused: as after step 2, and at once if it did
        4. the record, "committing" and verified; then a barrier: committed

        The worker destroys the former subvolume.

        Args:
            parent: Empty, or the parent that *key* has: there is no rebasing.

        Raises:
            NotFoundError: *key* does not exist.
            AlreadyExistsError: *name* is taken.
            FailedPreconditionError: *key* is not active; or it holds a nested subvolume with content, or an active
                swap file.
            InvalidArgumentError: *parent* is not the parent of *key*; *name* or *labels* break a rule.
            DataLossError: The disk may have refused data of the snapshot.
            ResourceExhaustedError: The disk is full.
        """
        started = time.monotonic()
        check_key(name)
        labels = check_labels(labels)
        with self._changing(f"commit snapshot {quoted(key)}"):
            with self._opened.index.change(name, key):
                earlier = self._opened.index.committed_from(key)
                if earlier and earlier.key == name and parent in ("", earlier.parent_key):
                    return
                active = self._opened.index.get(key)
                self._check_free(name)
                _check_active(active)
                if parent and parent != active.parent_key:
                    raise InvalidArgumentError(
                        f"cannot change parent of active snapshot {quoted(key)} on commit: "
                        f"it is {quoted(active.parent_key)}, not {quoted(parent)}"
                    )
                check_usable(active)
                self._opened.write_errors.check(active)
                committed = self._opened.operations.freeze(active, name, labels)
                self._opened.index.update(active, committed, settled=False)
                Event.COMMITTED.emit(key=name, id=active.id, source=key, seconds=time.monotonic() - started)
            self._opened.operations.retire(active)

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """
        Change the labels of the snapshot *info.name* to those of *info*, and return its new description.

        Steps: the record, then a barrier; a stop between them leaves the old labels or the new ones. See
        `Operations.rewrite`.

        Args:
            fieldpaths: ``"labels"`` replaces all labels, as does no path. ``"labels.KEY"`` sets that label, or deletes
                it if *info* has none or an empty one.

        Raises:
            NotFoundError: No snapshot has that name.
            InvalidArgumentError: Another path; the labels break a rule.
        """
        started = time.monotonic()
        with self._changing(f"update snapshot {quoted(info.name)}"), self._opened.index.change(info.name):
            snapshot = self._opened.index.get(info.name)
            labels = apply_fieldpaths(snapshot.info, info, fieldpaths)
            record = self._opened.operations.rewrite(snapshot, labels)
            self._opened.index.update(snapshot, record, settled=True)
            Event.UPDATED.emit(key=info.name, id=snapshot.id, seconds=time.monotonic() - started)
            return snapshot.info

    def remove(self, key: str) -> None:
        """
        Remove the snapshot *key*; its space comes back in the background.

        Steps: the record, "removed", then a barrier; a stop between them leaves the snapshot there, or removed. On a
        disk too full for that its subvolume is destroyed at once. See `Operations.mark_removed`.

        Raises:
            NotFoundError: No snapshot has the key.
            FailedPreconditionError: The snapshot has a child.
        """
        started = time.monotonic()
        with self._changing(f"remove snapshot {quoted(key)}"):
            with self._opened.index.change(key):
                snapshot = self._opened.index.get(key)
                if snapshot.children:
                    children = self._children(snapshot)
                    raise FailedPreconditionError(f"cannot remove snapshot {quoted(key)} with {children}")
                self._opened.operations.mark_removed(snapshot)
                self._opened.index.remove(snapshot)
            Event.REMOVED.emit(key=key, id=snapshot.id, seconds=time.monotonic() - started)
            self._opened.worker.destroy(snapshot.id)

    def cleanup(self) -> None:
        """
        Destroy the remains of removed snapshots, and wait for their space: seconds at most. A subvolume that is mounted
        or otherwise held is not waited for.
        """
        with self._changing("clean up"):
            self._opened.worker.reclaim(CLEANUP_SECONDS)

    @contextmanager
    def _changing(self, doing: str) -> Iterator[None]:
        with self._opened.session.changing(doing):
            self._opened.ownership.check(self.client)
            yield

    def _add(self, record: Record, parent: Snapshot | None) -> Snapshot:
        """
        Add the created snapshot of *record* to the index. The record of an active one is settled later.
        """
        preparing = record.state is State.PREPARING
        snapshot = Snapshot(record.active() if preparing else record, parent, settled=not preparing)
        self._opened.index.add(snapshot)
        if preparing:
            self._opened.operations.settle_later(snapshot)
        return snapshot

    def _mounts(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        if snapshot.kind is Kind.COMMITTED:
            raise FailedPreconditionError(
                f"requested snapshot {quoted(snapshot.key)} not active or view: to look into a layer, mount a view "
                "of it, as `snapshotter view` makes"
            )
        place = self._opened.operations.place(snapshot)
        read_only = snapshot.kind is Kind.VIEW
        return (self._opened.volumes.mount(place, read_only=read_only, id_map=self._id_map(snapshot)),)

    def _id_map(self, snapshot: Snapshot) -> IdMap | None:
        """
        Return the id map for the mounts of *snapshot*.

        A client without the capability ``remap-ids`` sets the labels, too, on a parent whose files it has given to the
        ids of the host. Such a parent needs no map.
        """
        id_map = idmap.read(snapshot.record.labels)
        if id_map and snapshot.parent:
            layer = self._opened.operations.place(snapshot.parent)
            if self._opened.volumes.owner(layer) == id_map.owner:
                return None
        return id_map

    def _children(self, snapshot: Snapshot) -> str:
        """
        Return the children of *snapshot*, for a message.
        """
        names = sorted(each.key for each in self._opened.index.snapshots() if each.parent is snapshot)
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        return f"child {', '.join(map(quoted, names[:_NAMED]))}{more}: remove the children first"

    def _check_free(self, key: str) -> None:
        if key in self._opened.index:
            raise AlreadyExistsError(f"snapshot {quoted(key)} already exists")


def _check_active(snapshot: Snapshot) -> None:
    if snapshot.kind is not Kind.ACTIVE:
        raise FailedPreconditionError(f"snapshot {quoted(snapshot.key)} is not active")
