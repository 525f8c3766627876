"""
References from containerd to a snapshot, read from containerd's own services over its socket.
"""

import asyncio
import os
import shlex
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from grpclib.client import Channel
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from snapshotter.api.containers_grpc import ContainersStub
from snapshotter.api.containers_pb2 import ListContainersRequest
from snapshotter.api.content_grpc import ContentStub
from snapshotter.api.content_pb2 import ListContentRequest
from snapshotter.api.images_grpc import ImagesStub
from snapshotter.api.images_pb2 import ListImagesRequest
from snapshotter.api.introspection_grpc import IntrospectionStub
from snapshotter.api.introspection_pb2 import PluginsRequest
from snapshotter.api.leases_grpc import LeasesStub
from snapshotter.api.leases_pb2 import ListRequest, ListResourcesRequest
from snapshotter.api.namespaces_grpc import NamespacesStub
from snapshotter.api.namespaces_pb2 import ListNamespacesRequest
from snapshotter.api.snapshots_grpc import SnapshotsStub
from snapshotter.api.snapshots_pb2 import Info, ListSnapshotsRequest, StatSnapshotRequest
from snapshotter.errors import InvalidArgumentError, UnavailableError, quoted

GC = "containerd.io/gc."
CONTENT = f"{GC}ref.content"
SNAPSHOT = f"{GC}ref.snapshot."

# The second is the socket of both k3s and RKE2.
SOCKETS = ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock")

# containerd writes its own row of a snapshot a moment after the store has the snapshot.
ROW_SECONDS = 1.0

T = TypeVar("T")


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


def sockets(given: str | None) -> list[str]:
    """
    Return the sockets to ask: *given*, else ``$CONTAINERD_ADDRESS``, else every known socket that exists.

    Raises:
        UnavailableError: Nothing is given, and no socket of containerd exists.
    """
    if chosen := given or os.environ.get("CONTAINERD_ADDRESS"):
        return [chosen]
    if found := [path for path in SOCKETS if os.path.exists(path)]:
        return found
    raise UnavailableError(f"there is no socket of containerd at {' or '.join(SOCKETS)}: name it with --containerd")


def split(key: str) -> tuple[str, str] | None:
    """
    Return the namespace and the name in a *key* of containerd, NAMESPACE/NUMBER/NAME; None for another key.
    """
    namespace, number, name = ([*key.split("/", 2), "", ""])[:3]
    return (namespace, name) if namespace and number.isdecimal() and name else None


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
    return _run(address, _find(address, snapshotter, *names), timeout)


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
    return _run(address, _locate(address, snapshotter), timeout)


def needed(address: str, snapshotter: str, timeout: float = 30.0) -> dict[tuple[str, str], str]:
    """
    Return the snapshots that an object of the containerd at *address* refers to, by namespace and name.

    Each has the description of such an object: a container, image or lease. containerd asks the daemon for none of
    this, so the answer includes snapshots that the store has lost, and needs no running daemon.

    Raises:
        UnavailableError: containerd does not answer in time, or lacks one of the services.
    """
    return _run(address, _needed(address, snapshotter), timeout)


def occupied(address: str, snapshotter: str, timeout: float = 30.0) -> list[str]:
    """
    Return the namespaces in which the containerd at *address* has snapshots, whether or not the daemon runs.

    A namespace whose snapshots the store has lost may be missing while the daemon runs.

    Raises:
        NotLoadedError: containerd has not loaded the snapshotter.
        UnavailableError: containerd does not answer in time.
    """
    return _run(address, _occupied(address, snapshotter), timeout)


def known(address: str, snapshotter: str, timeout: float = 30.0) -> set[tuple[str, str]]:
    """
    Return the snapshots that the containerd at *address* lists, by namespace and name.

    containerd lists a snapshot only if the daemon has it, too.

    Raises:
        NotLoadedError: containerd has not loaded the snapshotter.
        UnavailableError: containerd or the daemon does not answer in time.
    """
    return _run(address, _known(address, snapshotter), timeout)


def _run(address: str, call: Coroutine[Any, Any, T], timeout: float) -> T:
    try:
        return asyncio.run(asyncio.wait_for(call, timeout))
    except GRPCError as error:
        why = error.message or error.status.name
        kind = NotLoadedError if _is_not_loaded(error) else UnavailableError
        raise kind(f"no answer from containerd at {address!r}: {why}") from error
    except (OSError, ProtocolError, StreamTerminatedError, TimeoutError) as error:
        why = (error.strerror if isinstance(error, OSError) else str(error)) or "timed out"
        raise UnavailableError(f"no answer from containerd at {address!r}: {why}") from error


async def _find(address: str, snapshotter: str, namespace: str, name: str) -> References:
    metadata = {"containerd-namespace": namespace}
    async with Channel(path=address) as channel:
        try:
            request = StatSnapshotRequest(snapshotter=snapshotter, key=name)
            info = (await SnapshotsStub(channel).Stat(request, metadata=metadata)).info
        except GRPCError as error:
            if error.status.name != "NOT_FOUND":
                raise
            return References(namespace, name, known=False)
        containers = [
            message.container.id
            for message in await ContainersStub(channel).ListStream(ListContainersRequest(), metadata=metadata)
            if (message.container.snapshotter, message.container.snapshot_key) == (snapshotter, name)
        ]
        leased = await _leased(channel, metadata, snapshotter)
        leases = [lease for lease, names in leased.items() if name in names]
        images = await _images(channel, metadata, f"{SNAPSHOT}{snapshotter}", name)
        labels = {label: value for label, value in info.labels.items() if label.startswith(GC)}
        return References(
            namespace,
            name,
            known=True,
            labels=labels,
            containers=tuple(sorted(containers)),
            images=tuple(sorted(images)),
            leases=tuple(sorted(leases)),
        )


def _is_not_loaded(error: GRPCError) -> bool:
    return "snapshotter not loaded" in (error.message or "")


async def _locate(address: str, snapshotter: str) -> str:
    async with Channel(path=address) as channel:
        for plugin in (await IntrospectionStub(channel).Plugins(PluginsRequest())).plugins:
            if (plugin.type, plugin.id) == ("io.containerd.snapshotter.v1", snapshotter):
                return plugin.exports.get("address", "").removeprefix("unix://")
    raise NotLoadedError(f"containerd at {address!r} has not loaded the snapshotter {quoted(snapshotter)}")


async def _namespaces(channel: Channel) -> list[str]:
    return [each.name for each in (await NamespacesStub(channel).List(ListNamespacesRequest())).namespaces]


async def _occupied(address: str, snapshotter: str) -> list[str]:
    found = []
    async with Channel(path=address) as channel:
        for namespace in await _namespaces(channel):
            try:
                infos = await _list(channel, snapshotter, namespace)
            except GRPCError as error:
                if _is_not_loaded(error):
                    raise
                infos = [Info()]  # containerd asks the daemon only if it has a snapshot
            if infos:
                found.append(namespace)
    return found


async def _list(channel: Channel, snapshotter: str, namespace: str) -> list[Info]:
    request, metadata = ListSnapshotsRequest(snapshotter=snapshotter), {"containerd-namespace": namespace}
    return [info for reply in await SnapshotsStub(channel).List(request, metadata=metadata) for info in reply.info]


async def _known(address: str, snapshotter: str) -> set[tuple[str, str]]:
    async with Channel(path=address) as channel:
        found: set[tuple[str, str]] = set()
        for namespace in await _namespaces(channel):
            found |= {(namespace, info.name) for info in await _list(channel, snapshotter, namespace)}
        return found


async def _needed(address: str, snapshotter: str) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    label = f"{SNAPSHOT}{snapshotter}"
    async with Channel(path=address) as channel:
        for namespace in await _namespaces(channel):
            metadata = {"containerd-namespace": namespace}
            for lease, names in (await _leased(channel, metadata, snapshotter)).items():
                found |= {(namespace, name): f"lease {lease!r}" for name in names}
            replies = await ContentStub(channel).List(ListContentRequest(), metadata=metadata)
            content = {info.digest: info.labels for reply in replies for info in reply.info}
            for image in (await ImagesStub(channel).List(ListImagesRequest(), metadata=metadata)).images:
                tops = _referred({image.target.digest}, content, label)
                found |= {(namespace, name): f"image {image.name!r}" for name in tops}
            for message in await ContainersStub(channel).ListStream(ListContainersRequest(), metadata=metadata):
                if message.container.snapshotter == snapshotter and message.container.snapshot_key:
                    found[namespace, message.container.snapshot_key] = f"container {message.container.id!r}"
    return found


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


async def _leased(channel: Channel, metadata: Mapping[str, str], snapshotter: str) -> dict[str, set[str]]:
    """
    Return the names of the snapshots that each lease holds.
    """
    found = {}
    for lease in (await LeasesStub(channel).List(ListRequest(), metadata=metadata)).leases:
        asked = ListResourcesRequest(id=lease.id)
        resources = (await LeasesStub(channel).ListResources(asked, metadata=metadata)).resources
        found[lease.id] = {each.id for each in resources if each.type == f"snapshots/{snapshotter}"}
    return found


async def _images(channel: Channel, metadata: Mapping[str, str], label: str, name: str) -> list[str]:
    """
    Return the images that refer to the snapshot *name*, through the labels of content that containerd follows.
    """
    replies = await ContentStub(channel).List(ListContentRequest(), metadata=metadata)
    content = {info.digest: info.labels for reply in replies for info in reply.info}
    holding = {digest for digest, labels in content.items() if _refers(labels, label, name)}
    found: set[str] = set()
    while holding - found:
        found |= holding
        holding = {
            digest for digest, labels in content.items() if any(_refers(labels, CONTENT, child) for child in found)
        }
    images = (await ImagesStub(channel).List(ListImagesRequest(), metadata=metadata)).images
    return [image.name for image in images if image.target.digest in found]


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
