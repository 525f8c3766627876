"""
References from containerd to a snapshot, read from containerd's own services over its socket.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from grpclib.client import Channel
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from snapshotter.api.containers_grpc import ContainersStub
from snapshotter.api.containers_pb2 import ListContainersRequest
from snapshotter.api.content_grpc import ContentStub
from snapshotter.api.content_pb2 import ListContentRequest
from snapshotter.api.images_grpc import ImagesStub
from snapshotter.api.images_pb2 import ListImagesRequest
from snapshotter.api.leases_grpc import LeasesStub
from snapshotter.api.leases_pb2 import ListRequest, ListResourcesRequest
from snapshotter.api.snapshots_grpc import SnapshotsStub
from snapshotter.api.snapshots_pb2 import StatSnapshotRequest
from snapshotter.errors import InvalidArgumentError, UnavailableError, quoted

GC = "containerd.io/gc."
CONTENT = f"{GC}ref.content"
SNAPSHOT = f"{GC}ref.snapshot."


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
        UnavailableError: containerd does not answer in time, or lacks one of the services.
    """
    namespace, number, name = ([*key.split("/", 2), "", ""])[:3]
    if not (namespace and number.isdecimal() and name):
        raise InvalidArgumentError(f"{quoted(key)} is not a key of containerd")
    try:
        return asyncio.run(asyncio.wait_for(_find(address, snapshotter, namespace, name), timeout))
    except (GRPCError, OSError, ProtocolError, StreamTerminatedError, TimeoutError) as error:
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
        leases = []
        for lease in (await LeasesStub(channel).List(ListRequest(), metadata=metadata)).leases:
            asked = ListResourcesRequest(id=lease.id)
            resources = (await LeasesStub(channel).ListResources(asked, metadata=metadata)).resources
            if any((each.type, each.id) == (f"snapshots/{snapshotter}", name) for each in resources):
                leases.append(lease.id)
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
    Return whether the label *prefix*, or a label that continues *prefix* with a dot or a slash, has *value*.
    """
    return any(
        found == value and (label == prefix or label.startswith((f"{prefix}.", f"{prefix}/")))
        for label, found in labels.items()
    )
