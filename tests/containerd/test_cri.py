"""
containerd with the daemon as its default snapshotter, driven through the CRI as a kubelet does.
"""

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snapshotter import Kind
from snapshotter.setup.containerd import installed

from . import images
from .builds import binaries, go_program
from .kubelet import CriError, Kubelet, settings
from .needed import needed
from .processes import PLUGIN, Containerd, Daemon, Process, wait_until
from .registry import Registry

pytestmark = pytest.mark.btrfs

MIB = 1 << 20


def built(name: str) -> Path:
    """
    Return the Go program *name*.
    """
    return needed(go_program, Path(__file__).with_name(name))


@pytest.fixture
def root(filesystem: Path) -> Path:
    """
    Return the root of containerd, on btrfs.
    """
    return filesystem / "containerd"


@pytest.fixture
def store_root(release: Path, root: Path) -> Path:
    """
    Return the path at which old versions of the CRI look for the store, or another path.
    """
    root.mkdir()
    if installed(str(release / "containerd")).reads_exports:
        return root.with_name("store")
    return root / f"io.containerd.snapshotter.v1.{PLUGIN}"


@pytest.fixture
def containerd_options(
    release: Path, root: Path, directory: Path, registry: Registry, runtime_class: str
) -> dict[str, Any]:
    """
    Return the options of a containerd with CRI, on btrfs, with the image of pods in the registry.
    """
    program = images.member("pause", built("pause").read_bytes(), mode=0o755)
    pause = registry.add(images.Image("example.org/pause:1", (images.layer(program),), command=("/pause",)))
    cri = settings(release, directory, pause, needed(binaries, "runc") / "runc")
    return {"root": root, "cri": cri, "runtime_class": runtime_class}


@pytest.fixture
def runtime_class(request: pytest.FixtureRequest) -> str:
    """
    Return the handler of the pods that use the daemon; all do, unless the test has a parameter.
    """
    return getattr(request, "param", "")


@pytest.fixture
def kubelet(containerd: Containerd, daemon: Daemon, directory: Path) -> Iterator[Kubelet]:
    """
    Return a kubelet, and at the end remove everything down to the last subvolume.
    """
    kubelet = Kubelet(built("cri"), containerd, directory / "logs")
    wait_until(kubelet.answers, "containerd to serve the CRI")
    yield kubelet
    kubelet.remove_everything()
    wait_until(lambda: not daemon.snapshots(), "garbage collection to remove every snapshot")
    daemon.check_store()


@pytest.fixture
def image(registry: Registry) -> str:
    """
    Serve an image, and return the reference to pull.
    """
    return registry.add(images.small("example.org/small:1"))


def test_pods(kubelet: Kubelet, daemon: Daemon, image: str) -> None:
    """
    Containers start concurrently, each has a filesystem of its own, and the reported sizes grow.
    """
    kubelet.pull(image)
    with ThreadPoolExecutor(12) as pool:
        pods = list(pool.map(kubelet.run_pod, ("one", "two", "three", "four")))
        containers = list(pool.map(lambda pod: kubelet.start_container(pod, image), 3 * pods))
        writing = "echo {0} > /number; dd if=/dev/zero of=/data bs=1M count={0}; sync -f /data"
        scripts = [writing.format(number) for number in range(len(containers))]
        list(pool.map(kubelet.shell, containers, scripts))
    assert kubelet.running() == set(containers)
    active = [info for info in daemon.snapshots().values() if info.kind is Kind.ACTIVE]
    assert len(active) == len(pods) + len(containers)

    for number, container in enumerate(containers):
        assert kubelet.shell(container, "cat /number /name") == f"{number}\nexample.org/small:1"

        def seen(container: str = container, size: int = number * MIB) -> bool:
            return size <= kubelet.written(container) < size + MIB

        wait_until(seen, f"{number} MiB to be seen")
    kubelet.shell(containers[0], "dd if=/dev/zero of=/data bs=1M count=64; sync -f /data")
    wait_until(lambda: kubelet.written(containers[0]) >= 64 * MIB, "the first container to be seen to grow")

    (filesystem,) = kubelet.call("ImageService/ImageFsInfo")["image_filesystems"]
    assert filesystem["fs_id"]["mountpoint"] == str(daemon.root)
    assert int(filesystem["used_bytes"]["value"]) > 64 * MIB


@pytest.mark.parametrize("first", ["daemon", "containerd"])
def test_restarts(
    kubelet: Kubelet, containerd: Containerd, daemon: Daemon, registry: Registry, image: str, first: str
) -> None:
    """
    Pods and images survive a kill or stop of the daemon and of containerd.

    A containerd that starts without the daemon forgets an image. Pulling it again fetches no layer.
    """
    kubelet.pull(image)
    pod = kubelet.run_pod("long")
    containers = {kubelet.start_container(pod, image)}
    names = kubelet.images()
    fetched = [request for request in registry.requests if "/blobs/" in request]
    orders: list[list[Process]]
    orders = [[daemon], [containerd], [daemon, containerd]] if first == "daemon" else [[containerd, daemon]]
    for order, end in itertools.product(orders, (Process.kill, Process.stop)):
        for process in order:
            end(process)
        for process in order:
            process.start()
        wait_until(kubelet.answers, "containerd to serve the CRI again")
        assert kubelet.running() == containers
        if first == "containerd":
            kubelet.pull(image)
            kubelet.remove_pod(kubelet.run_pod("short").id)  # pulls the image of pods
        assert kubelet.images() == names
        containers.add(kubelet.start_container(pod, image))
        for container in containers:
            assert kubelet.shell(container, "touch /written; cat /name") == "example.org/small:1"
    assert [request for request in registry.requests if "/blobs/" in request] == fetched


def test_away(kubelet: Kubelet, daemon: Daemon, image: str) -> None:
    """
    Without the daemon, containers keep running and can be removed, and new containers fail until it is back.
    """
    kubelet.pull(image)
    pod = kubelet.run_pod("first")
    removed, kept = [kubelet.start_container(pod, image) for _ in range(2)]
    daemon.kill()
    kubelet.remove_container(removed)
    with pytest.raises(CriError, match=r"(?i)unavailable"):
        kubelet.create_container(pod, image)
    with pytest.raises(CriError, match=r"(?i)unavailable"):
        kubelet.run_pod("second")
    assert kubelet.shell(kept, "cat /name") == "example.org/small:1"
    daemon.start()

    wait_until(kubelet.answers, "containerd to reach the daemon again")
    kubelet.start_container(kubelet.run_pod("second"), image)


@pytest.mark.since(2, 3)
def test_user_namespace(kubelet: Kubelet, daemon: Daemon, registry: Registry, image: str) -> None:
    """
    A pod with a user namespace sees the owners of its images, also in an image volume, and nothing is copied.
    """
    secret = images.member("secret", b"readable by root alone", mode=0o600)
    owned = images.member("owned", b"", owner=(1000, 1000))
    twin = images.link("twin", owned)
    volume = registry.add(images.Image("example.org/volume:1", (images.layer(secret, owned, twin),)))
    for reference in (image, volume):
        kubelet.pull(reference)
    layers = {name for name, info in daemon.snapshots().items() if info.kind is Kind.COMMITTED}
    pod = kubelet.run_pod("mapped", host_users=False)
    container = kubelet.start_container(pod, image, volume=volume)
    assert kubelet.shell(container, "cat /volume/secret; stat -c %u:%g /volume/twin /name") == (
        "readable by root alone1000:1000\n0:0\n"
    )
    assert kubelet.shell(container, "cat /proc/self/uid_map").split() == ["0", "100000", "65536"]
    kubelet.shell(container, "touch /new; chown 7:8 /new; ! touch /volume/new")
    after = {name for name, info in daemon.snapshots().items() if info.kind is Kind.COMMITTED}
    assert len(after - layers) == 1  # of the pod's own image, which was not pulled before
    (subvolume,) = (path for path in daemon.root.glob("snapshots/*/fs/new"))
    assert (subvolume.stat().st_uid, subvolume.stat().st_gid) == (7, 8)


def test_from_another_snapshotter(
    kubelet: Kubelet, containerd: Containerd, daemon: Daemon, registry: Registry, image: str
) -> None:
    """
    A pod on overlayfs runs on below the change to this snapshotter, and its image is unpacked again without a pull.
    """
    files = (containerd.config, containerd.imported)
    ours = [file.read_text() for file in files]
    containerd.stop()
    for file, text in zip(files, ours, strict=True):
        former = re.sub(rf'(images"\]\n  snapshotter|containerd\.snapshotter) = "{PLUGIN}"', r'\1 = "overlayfs"', text)
        file.write_text(former)
    containerd.start()
    wait_until(kubelet.answers, "containerd to serve the CRI")
    kubelet.pull(image)
    pod = kubelet.run_pod("former")
    container = kubelet.start_container(pod, image)
    kubelet.shell(container, "echo kept > /kept")
    assert daemon.snapshots() == {}
    fetched = [request for request in registry.requests if "/blobs/" in request]
    containerd.stop()
    for file, text in zip(files, ours, strict=True):
        file.write_text(text)
    containerd.start()
    wait_until(kubelet.answers, "containerd to serve the CRI again")
    assert kubelet.running() == {container}
    assert kubelet.shell(container, "cat /kept") == "kept\n"
    later = kubelet.start_container(kubelet.run_pod("later"), image)
    assert kubelet.shell(later, "cat /name") == "example.org/small:1"
    assert daemon.snapshots() != {}
    assert [request for request in registry.requests if "/blobs/" in request] == fetched


@pytest.mark.since(2, 0)
@pytest.mark.parametrize("runtime_class", ["on-btrfs"], indirect=True)
def test_runtime_class(kubelet: Kubelet, daemon: Daemon, image: str, runtime_class: str) -> None:
    """
    Pods of the RuntimeClass use the daemon, all others containerd's default. CRI does not measure those of the class.
    """
    kubelet.pull(image)
    other = kubelet.start_container(kubelet.run_pod("other"), image)
    assert daemon.snapshots() == {}
    kubelet.pull(image, runtime_class)
    container = kubelet.start_container(kubelet.run_pod("chosen", handler=runtime_class), image)
    active = [info for info in daemon.snapshots().values() if info.kind is Kind.ACTIVE]
    assert len(active) == 2  # the pod and the container
    for each in (container, other):
        assert kubelet.shell(each, "touch /new; cat /name") == "example.org/small:1"
    assert [path.name for path in daemon.root.glob("snapshots/*/fs/new")] == ["new"]
    assert kubelet.written(container) == 0
    filesystems = kubelet.call("ImageService/ImageFsInfo")["image_filesystems"]
    assert str(daemon.root) not in [each["fs_id"]["mountpoint"] for each in filesystems]
