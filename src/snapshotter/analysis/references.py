"""
References from containerd to a snapshot, read from containerd's own services over its socket.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from google.protobuf.message import Message

from snapshotter.analysis.containerd import split
from snapshotter.api import (
    containers_pb2,
    content_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
)
from snapshotter.errors import InvalidArgumentError, UnavailableError, quoted
from snapshotter.transport.channel import CallError, Channel
from snapshotter.transport.status import Status

GC = "containerd.io/gc."
CONTENT = f"{GC}ref.content"
SNAPSHOT = f"{GC}ref.snapshot."

# containerd writes its own row of a snapshot a moment after the store has the snapshot.
ROW_SECONDS = 1.0

T = TypeVar("T")
Reply = TypeVar("Reply", bound=Message)


class NotLoadedError(UnavailableError):
    """
    containerd answers, but has not loaded the snapshotter, so it does not know its snapshots.
    """


@dataclass(frozen=True, slots=True)
class References:
    """
    Everything in containerd that refers to one snapshot.

    Args:
        namespace: The containerd namespace of the snapshot.
        name: The name of the snapshot in the namespace.
        known: Whether containerd knows the snapshot. If not, its next garbage collection removes the snapshot.
        labels: The labels of the snapshot that protect it from garbage collection, for ever or for a time.
        containers: The containers that run on the snapshot.
        images: The images whose top layer is the snapshot.
        leases: The leases that hold the snapshot.
    """

    namespace: str
    name: str
    known: bool
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    leases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """
    References to one snapshot, and the socket of the containerd that has them.
    """

    address: str
    references: References

    def needs(self, snapshotter: str) -> dict[str, str]:
        """
        Return the command of ctr that removes each reference, by the description of the reference.
        """
        at, found = self.references, {}
        for kind, names in (("container", at.containers), ("image", at.images), ("lease", at.leases)):
            for name in names:
                found[f"{kind} {name!r}"] = ctr(self.address, at.namespace, f"{kind}s", "rm", name)
        for name, value in sorted(at.labels.items()):
            found[f"label '{name}={value}'"] = removal(self.address, snapshotter, at.namespace, at.name)
        return found


@dataclass(frozen=True, slots=True)
class User:
    """
    A container that runs on a snapshot, or an image whose top layer is the snapshot.

    Args:
        namespace: The containerd namespace of both.
        snapshot: The name of the snapshot in the namespace.
        id: The id of a container, or the whole name of an image.
        names: Other names that people use for it, the most usual first.
    """

    kind: Literal["container", "image"]
    namespace: str
    snapshot: str
    id: str
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """
        The name to show.
        """
        return self.names[0] if self.names and self.kind == "container" else self.id

    def is_called(self, text: str) -> bool:
        """
        Return whether *text* is the id or one of the names.
        """
        return text == self.id or text in self.names


def ctr(address: str, namespace: str, *command: str) -> str:
    """
    Return a command of ctr for the containerd at *address*, quoted for a shell.
    """
    return shlex.join(["ctr", "--address", address, "--namespace", namespace, *command])


def removal(address: str, snapshotter: str, namespace: str, name: str) -> str:
    """
    Return the command that removes a snapshot in the containerd at *address*.
    """
    return ctr(address, namespace, "snapshots", "--snapshotter", snapshotter, "rm", name)


def find(address: str, snapshotter: str, key: str, timeout: float = 5.0) -> References:
    """
    Ask the containerd at *address* for the references to the snapshot *key*.

    Args:
        address: The path of containerd's socket.
        snapshotter: The name of the snapshotter in containerd, which is the client that the store is bound to.
        key: The key in the store: NAMESPACE/NUMBER/NAME.
        timeout: The limit for the whole call, in seconds.

    Raises:
        InvalidArgumentError: *key* does not have containerd's form.
        NotLoadedError: containerd has not loaded the snapshotter.
        UnavailableError: containerd does not answer in time, or lacks one of the services.
    """
    names = split(key)
    if not names:
        raise InvalidArgumentError(f"{quoted(key)} is not a key of containerd")
    return _run(address, lambda containerd: _find(containerd, snapshotter, *names), timeout)


def find_anywhere(addresses: Sequence[str], snapshotter: str, key: str) -> Answer:
    """
    Ask each containerd at *addresses* like `find`, until one of them knows the snapshot.

    A containerd without the snapshotter is skipped if another containerd has it.
    """
    unknown: Answer | None = None
    failure: UnavailableError | None = None
    for address in addresses:
        try:
            references = find(address, snapshotter, key)
        except UnavailableError as error:
            if not isinstance(error, NotLoadedError) or not failure:
                failure = error
            continue
        if references.known:
            return Answer(address, references)
        unknown = Answer(address, references)
    if failure and not (unknown and isinstance(failure, NotLoadedError)):
        raise failure
    assert unknown
    return unknown


def locate(address: str, snapshotter: str, timeout: float = 5.0) -> str:
    """
    Return the socket at which the containerd at *address* expects the daemon of the snapshotter.

    Raises:
        NotLoadedError: containerd has not loaded the snapshotter.
        UnavailableError: containerd does not answer in time.
    """
    return _run(address, lambda containerd: _locate(containerd, snapshotter), timeout)


def users(address: str, snapshotter: str, timeout: float = 2.0) -> list[User]:
    """
    Return the containers and the images of the containerd at *address* that use snapshots, in all namespaces.

    Like `needed`, the answer needs no running daemon.

    Raises:
        UnavailableError: containerd does not answer in time, or lacks one of the services.
    """

    def ask(containerd: _Containerd) -> list[User]:
        return [user for namespace in containerd.namespaces() for user in _users(containerd, namespace, snapshotter)]

    return _run(address, ask, timeout)


def needed(address: str, snapshotter: str, timeout: float = 30.0) -> dict[tuple[str, str], str]:
    """
    Return the snapshots that an object of the containerd at *address* refers to, by namespace and name.

    Each has the description of such an object: a container, image or lease. containerd asks the daemon for none of
    this, so the answer includes snapshots that the store has lost, and needs no running daemon.

    Raises:
        UnavailableError: containerd does not answer in time, or lacks one of the services.
    """
    return _run(address, lambda containerd: _needed(containerd, snapshotter), timeout)


def occupied(address: str, snapshotter: str, timeout: float = 30.0) -> list[str]:
    """
    Return the namespaces in which the containerd at *address* has snapshots, whether or not the daemon runs.

    A namespace whose snapshots the store has lost may be missing while the daemon runs.

    Raises:
        NotLoadedError: containerd has not loaded the snapshotter.
        UnavailableError: containerd does not answer in time.
    """
    return _run(address, lambda containerd: _occupied(containerd, snapshotter), timeout)


def known(address: str, snapshotter: str, timeout: float = 30.0) -> set[tuple[str, str]]:
    """
    Return the snapshots that the containerd at *address* lists, by namespace and name.

    containerd lists a snapshot only if the daemon has it, too.

    Raises:
        NotLoadedError: containerd has not loaded the snapshotter.
        UnavailableError: containerd or the daemon does not answer in time.
    """
    return _run(address, lambda containerd: _known(containerd, snapshotter), timeout)


class _Containerd:
    """
    Calls to a containerd, all within one time limit.

    Args:
        namespace: The namespace of the calls; empty for calls without one.
    """

    def __init__(self, channel: Channel, deadline: float, namespace: str = "") -> None:
        self.address = channel.address
        self._channel = channel
        self._deadline = deadline
        self._metadata = {"containerd-namespace": namespace} if namespace else {}

    def within(self, namespace: str) -> "_Containerd":
        return _Containerd(self._channel, self._deadline, namespace)

    def call(self, method: str, request: Message, reply: type[Reply]) -> list[Reply]:
        """
        Return the replies of *method*, which stands in the same .proto file as *request*.
        """
        path = f"/{request.DESCRIPTOR.file.package}.{method}"
        return self._channel.call(path, request, reply, deadline=self._deadline, metadata=self._metadata)

    def plugins(self) -> list[introspection_pb2.Plugin]:
        [reply] = self.call(
            "Introspection/Plugins", introspection_pb2.PluginsRequest(), introspection_pb2.PluginsResponse
        )
        return list(reply.plugins)

    def snapshots(self, snapshotter: str) -> list[snapshots_pb2.Info]:
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)
        return [
            info
            for reply in self.call("Snapshots/List", request, snapshots_pb2.ListSnapshotsResponse)
            for info in reply.info
        ]

    def namespaces(self) -> list[str]:
        request = namespaces_pb2.ListNamespacesRequest()
        [reply] = self.call("Namespaces/List", request, namespaces_pb2.ListNamespacesResponse)
        return [namespace.name for namespace in reply.namespaces]

    def containers(self) -> list[containers_pb2.Container]:
        request = containers_pb2.ListContainersRequest()
        replies = self.call("Containers/ListStream", request, containers_pb2.ListContainerMessage)
        return [reply.container for reply in replies]

    def images(self) -> list[images_pb2.Image]:
        [reply] = self.call("Images/List", images_pb2.ListImagesRequest(), images_pb2.ListImagesResponse)
        return list(reply.images)

    def content(self) -> dict[str, Mapping[str, str]]:
        """
        Return the labels of all content by digest.
        """
        replies = self.call("Content/List", content_pb2.ListContentRequest(), content_pb2.ListContentResponse)
        return {info.digest: info.labels for reply in replies for info in reply.info}

    def leased(self, snapshotter: str) -> dict[str, set[str]]:
        """
        Return the names of the snapshots that each lease holds.
        """
        found = {}
        [reply] = self.call("Leases/List", leases_pb2.ListRequest(), leases_pb2.ListResponse)
        for lease in reply.leases:
            request = leases_pb2.ListResourcesRequest(id=lease.id)
            [held] = self.call("Leases/ListResources", request, leases_pb2.ListResourcesResponse)
            found[lease.id] = {each.id for each in held.resources if each.type == f"snapshots/{snapshotter}"}
        return found


def _run(address: str, ask: Callable[[_Containerd], T], timeout: float) -> T:
    try:
        with Channel(address) as channel:
            return ask(_Containerd(channel, time.monotonic() + timeout))
    except CallError as error:
        kind = NotLoadedError if _is_not_loaded(error) else UnavailableError
        raise kind(f"no answer from containerd at {address!r}: {error}") from error
    except OSError as error:
        raise UnavailableError(f"no answer from containerd at {address!r}: {error.strerror or error}") from error


def _find(containerd: _Containerd, snapshotter: str, namespace: str, name: str) -> References:
    containerd = containerd.within(namespace)
    request = snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=name)
    try:
        [reply] = containerd.call("Snapshots/Stat", request, snapshots_pb2.StatSnapshotResponse)
    except CallError as error:
        if error.status is not Status.NOT_FOUND:
            raise
        return References(namespace, name, known=False)
    containers = [
        container.id
        for container in containerd.containers()
        if (container.snapshotter, container.snapshot_key) == (snapshotter, name)
    ]
    leases = [lease for lease, names in containerd.leased(snapshotter).items() if name in names]
    return References(
        namespace,
        name,
        known=True,
        labels={label: value for label, value in reply.info.labels.items() if label.startswith(GC)},
        containers=tuple(sorted(containers)),
        images=tuple(sorted(_images(containerd, f"{SNAPSHOT}{snapshotter}", name))),
        leases=tuple(sorted(leases)),
    )


def _is_not_loaded(error: CallError) -> bool:
    return "snapshotter not loaded" in str(error)


def _locate(containerd: _Containerd, snapshotter: str) -> str:
    for plugin in containerd.plugins():
        if (plugin.type, plugin.id) == ("io.containerd.snapshotter.v1", snapshotter):
            return plugin.exports.get("address", "").removeprefix("unix://")
    raise NotLoadedError(f"containerd at {containerd.address!r} has not loaded the snapshotter {quoted(snapshotter)}")


def _occupied(containerd: _Containerd, snapshotter: str) -> list[str]:
    found = []
    for namespace in containerd.namespaces():
        try:
            infos = containerd.within(namespace).snapshots(snapshotter)
        except CallError as error:
            if _is_not_loaded(error):
                raise
            infos = [snapshots_pb2.Info()]  # containerd asks the daemon only if it has a snapshot
        if infos:
            found.append(namespace)
    return found


def _known(containerd: _Containerd, snapshotter: str) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for namespace in containerd.namespaces():
        found |= {(namespace, info.name) for info in containerd.within(namespace).snapshots(snapshotter)}
    return found


def _needed(containerd: _Containerd, snapshotter: str) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for namespace in containerd.namespaces():
        for lease, names in containerd.within(namespace).leased(snapshotter).items():
            found |= {(namespace, name): f"lease {lease!r}" for name in names}
        for user in _users(containerd, namespace, snapshotter):
            found[namespace, user.snapshot] = f"{user.kind} {user.id!r}"
    return found


def _users(containerd: _Containerd, namespace: str, snapshotter: str) -> Iterator[User]:
    """
    Yield the users of snapshots in *namespace*, images first.
    """
    within = containerd.within(namespace)
    content = within.content()
    for image in within.images():
        names = _familiar(image.name)
        for top in sorted(_referred({image.target.digest}, content, f"{SNAPSHOT}{snapshotter}")):
            yield User("image", namespace, top, image.name, names)
    for container in within.containers():
        if container.snapshotter == snapshotter and container.snapshot_key:
            names = _names(container.labels)
            yield User("container", namespace, container.snapshot_key, container.id, names)


def _names(labels: Mapping[str, str]) -> tuple[str, ...]:
    """
    Return the names in the *labels* of a container by nerdctl or by a kubelet, whose ids are random.
    """
    pod, name = labels.get("io.kubernetes.pod.name", ""), labels.get("io.kubernetes.container.name", "")
    return tuple(filter(None, (labels.get("nerdctl/name"), f"{pod}/{name}" if pod and name else pod, name)))


def _familiar(name: str) -> tuple[str, ...]:
    """
    Return the shorter forms of the *name* of an image that nerdctl and docker accept.
    """
    short = name.removeprefix("docker.io/").removeprefix("library/") if name.startswith("docker.io/") else name
    forms = (short, name.removesuffix(":latest"), short.removesuffix(":latest"))
    return tuple(form for form in dict.fromkeys(forms) if form != name)


def _referred(digests: set[str], content: Mapping[str, Mapping[str, str]], label: str) -> set[str]:
    """
    Return the values of *label* in the content *digests* and in all content below.
    """
    found: set[str] = set()
    seen: set[str] = set()
    while digests:
        seen |= digests
        labels = [pair for digest in digests for pair in content.get(digest, {}).items()]
        found |= {value for name, value in labels if _is(name, label)}
        digests = {value for name, value in labels if _is(name, CONTENT)} - seen
    return found


def _images(containerd: _Containerd, label: str, name: str) -> list[str]:
    """
    Return the images that refer to the snapshot *name*, through the labels of content that containerd follows.
    """
    content = containerd.content()
    holding = {digest for digest, labels in content.items() if _refers(labels, label, name)}
    found: set[str] = set()
    while holding - found:
        found |= holding
        holding = {
            digest for digest, labels in content.items() if any(_refers(labels, CONTENT, child) for child in found)
        }
    return [image.name for image in containerd.images() if image.target.digest in found]


def _refers(labels: Mapping[str, str], prefix: str, value: str) -> bool:
    """
    Return whether the label *prefix*, or a label that continues *prefix*, has *value*.
    """
    return any(found == value and _is(label, prefix) for label, found in labels.items())


def _is(label: str, prefix: str) -> bool:
    """
    Return whether *label* is *prefix*, or continues it with a dot or a slash.
    """
    return label == prefix or label.startswith((f"{prefix}.", f"{prefix}/"))
