"""
containerd with the daemon as its snapshotter, driven by ctr.
"""

import itertools
import json
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybtrfs import syscall
from pybtrfs.image import mount as mount_image
from snapshotter import Kind

from . import images
from .images import Image
from .processes import PATIENCE, Containerd, CtrError, Daemon, Process, wait_until
from .registry import Registry

pytestmark = pytest.mark.btrfs


@pytest.fixture(scope="session")
def expected(image: Image) -> dict[str, images.Node]:
    """
    Return the files that the layers of the image make.
    """
    return images.applied(image.layers)


def content(containerd: Containerd, image: Image) -> dict[str, images.Node]:
    """
    Return the files that a container of *image* finds.
    """
    # Not a view, because garbage collection removes the views of ctr.
    containerd.ctr("snapshots", "prepare", "content", image.chain_ids[-1])
    with containerd.mounted("content") as path:
        tree = images.found(path)
    containerd.ctr("snapshots", "rm", "content")
    return tree


@pytest.fixture
def busybox(emptied: Containerd, directory: Path) -> Image:
    """
    Unpack a small image.
    """
    image = images.small("example.org/small:1")
    emptied.ctr("images", "import", image.write(directory / "small.tar"))
    return image


def test_import(
    emptied: Containerd, daemon: Daemon, image: Image, expected: dict[str, images.Node], directory: Path
) -> None:
    """
    An imported image has exactly the files that its layers make.
    """
    emptied.ctr("images", "import", image.write(directory / "image.tar"))
    assert images.differences(expected, content(emptied, image)) == []
    assert sorted(emptied.listed("snapshots")) == sorted(image.chain_ids)
    daemon.check_store()


def test_image_mount(emptied: Containerd, busybox: Image) -> None:
    """
    ctr mounts an image with the files that its layers make, and unmounts it.
    """
    with tempfile.TemporaryDirectory() as target:
        emptied.ctr("images", "mount", busybox.name, target)
        tree = images.found(Path(target))
        emptied.ctr("images", "unmount", "--rm", target)
    assert images.differences(images.applied(busybox.layers), tree) == []
    assert sorted(emptied.listed("snapshots")) == sorted(busybox.chain_ids)


def test_pull(emptied: Containerd, registry: Registry, image: Image, expected: dict[str, images.Node]) -> None:
    """
    An image pulled by ctr or by the transfer service has exactly the files that its layers make.
    """
    reference = registry.add(image)
    pull = ["images", "pull", "--plain-http"]
    for command in [pull, [*pull, "--local"]] if "--local" in emptied.ctr("images", "pull", "--help") else [pull]:
        emptied.ctr(*command, reference)
        assert images.differences(expected, content(emptied, image)) == []
        emptied.remove_everything()
        assert not emptied.listed("snapshots")


def succeeds(call: Callable[..., object], *arguments: str) -> bool:
    try:
        call(*arguments)
    except CtrError:
        return False
    return True


def test_run(emptied: Containerd, daemon: Daemon, busybox: Image) -> None:
    """
    Containers run and write independently, and the files of the image do not change.
    """
    change = f"grep {busybox.name} /name; echo changed > /name; touch /bin/new; test $(stat -c %a:%u /bin/new) = 644:0"
    for container in ("first", "second"):
        emptied.run(busybox.name, container, change)
    emptied.start_container(busybox.name, "third", f"{change}; sleep 1000")
    wait_until(lambda: succeeds(emptied.shell, "third", "grep changed /name"), "the container to write")
    emptied.shell("third", "echo more >> /name")
    emptied.shell("third", "test $(wc -l < /name) = 2")
    emptied.run(busybox.name, "fourth", "! touch /file", "--read-only")
    assert images.differences(images.applied(busybox.layers), content(emptied, busybox)) == []
    daemon.check_store()


def test_numbers(emptied: Containerd, daemon: Daemon, busybox: Image) -> None:
    """
    The usage of a snapshot includes the writes of its container, and ctr prints the numbers of the store.
    """
    emptied.start_container(busybox.name, "writer", "sleep 1000")
    emptied.shell(
        "writer", "dd if=/dev/urandom of=/noise bs=1M count=8 && touch /a /b && sync && sleep 2"
    )  # a usage may be a second old
    printed = {
        key: (int(size), int(inodes))
        for key, size, inodes in (line.split() for line in emptied.ctr("snapshots", "usage", "-b").splitlines()[1:])
    }
    with daemon.beside() as store:
        # containerd's names for keys are NAMESPACE/NUMBER/KEY in the store.
        measured = {info.name.split("/", 2)[2]: store.usage(info.name) for info in store.walk()}
    assert printed == {key: (usage.size, usage.inodes) for key, usage in measured.items()}
    assert printed.keys() == {"writer", *busybox.chain_ids}
    size, inodes = printed["writer"]
    assert 8 << 20 <= size < 9 << 20
    assert inodes == 4, "the three files and the root directory"
    assert printed[busybox.chain_ids[0]][0] >= images.BUSYBOX.stat().st_size


def test_snapshots(emptied: Containerd, daemon: Daemon, busybox: Image) -> None:
    """
    Snapshots are prepared, mounted, compared, committed, labelled, viewed, shown and removed.
    """
    top = busybox.chain_ids[-1]
    emptied.ctr("snapshots", "prepare", "work", top)
    with emptied.mounted("work") as path:
        (path / "etc/passwd").unlink()
        (path / "etc/new").write_text("text")
    changed = emptied.output("snapshots", "diff", "--media-type", images.LAYER, "work")
    assert {"etc/.wh.passwd", "etc/new"} <= set(images.names(changed))
    emptied.ctr("snapshots", "commit", "done", "work")
    emptied.ctr("snapshots", "label", "done", "containerd.io/snapshot/colour=blue")
    info = json.loads(emptied.ctr("snapshots", "info", "done"))
    assert (info["Kind"], info["Name"], info["Parent"]) == ("Committed", "done", top)
    (stored,) = (info for key, info in daemon.snapshots().items() if key.endswith("/done"))
    assert stored.labels["containerd.io/snapshot/colour"] == "blue"
    emptied.ctr("snapshots", "prepare", "child", "done")
    assert emptied.ctr("snapshots", "tree").splitlines()[-2:] == ["    \\_ done", "      \\_ child"]
    with pytest.raises(CtrError, match="cannot remove snapshot with child"):
        emptied.ctr("snapshots", "rm", "done")
    emptied.collect_garbage()  # now, because a later collection would remove the view, which nothing references
    emptied.ctr("snapshots", "view", "look", "done")
    with emptied.mounted("look") as path:
        assert (path / "etc/new").read_text() == "text"
        with pytest.raises(OSError, match="Read-only file system"):
            (path / "etc/new").write_text("other")
    with pytest.raises(CtrError, match="not active"):
        emptied.ctr("snapshots", "commit", "other", "look")
    for key in ("look", "child", "done"):
        emptied.ctr("snapshots", "rm", key)
    emptied.collect_garbage()
    assert len(daemon.snapshots()) == len(busybox.layers)
    daemon.check_store()


def test_parallel(emptied: Containerd, daemon: Daemon, busybox: Image) -> None:
    """
    Twenty concurrently started containers run, each in its own snapshot.
    """

    def run(number: int) -> None:
        emptied.run(busybox.name, f"c{number}", f"echo {number} > /own; sync; test $(cat /own) = {number}")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(run, range(20)))
    emptied.collect_garbage()
    assert len(daemon.snapshots()) == len(busybox.layers)
    daemon.check_store()


def test_removal(emptied: Containerd, daemon: Daemon, busybox: Image, directory: Path) -> None:
    """
    Removing an image keeps exactly the layers that another image or a container needs.
    """
    other = images.small("example.org/other:1")
    emptied.ctr("images", "import", other.write(directory / "other.tar"))
    assert set(emptied.listed("snapshots")) == {*busybox.chain_ids, *other.chain_ids}
    emptied.ctr("images", "rm", "--sync", busybox.name)
    assert set(emptied.listed("snapshots")) == set(other.chain_ids)
    emptied.start_container(other.name, "user", "sleep 1000")
    emptied.ctr("content", "prune", "references")
    emptied.ctr("images", "rm", "--sync", other.name)
    assert set(emptied.listed("snapshots")) == {"user", *other.chain_ids}
    emptied.shell("user", f"grep {other.name} /name")
    emptied.ctr("tasks", "rm", "--force", "user")
    emptied.ctr("containers", "rm", "user")
    emptied.collect_garbage()
    assert daemon.snapshots() == {}
    daemon.check_store()


def test_lease(emptied: Containerd, daemon: Daemon, busybox: Image) -> None:
    """
    A lease keeps a snapshot and its parents, and its end releases them.
    """
    emptied.ctr("leases", "create", "--id", "keep")
    emptied.prepare_leased("keep", "leased", busybox.chain_ids[-1])
    emptied.ctr("images", "rm", "--sync", busybox.name)
    assert set(emptied.listed("snapshots")) == {"leased", *busybox.chain_ids}
    emptied.ctr("leases", "rm", "--sync", "keep")
    assert daemon.snapshots() == {}
    daemon.check_store()


COUNT = "i=0; while true; do i=$((i + 1)); echo $i >> /log; sleep 0.02; done"


class Counter:
    """
    A container that writes ascending numbers into a file.
    """

    def __init__(self, containerd: Containerd, image: Image) -> None:
        self.pid = containerd.start_container(image.name, "counter", COUNT)

    def numbers(self) -> list[str]:
        try:
            text = Path(f"/proc/{self.pid}/root/log").read_text()
        except FileNotFoundError:
            return []
        return text.split("\n")[:-1]

    def check_going_on(self) -> None:
        """
        Wait for the next numbers, and check that no number is missing.
        """
        count = len(self.numbers())
        wait_until(lambda: len(self.numbers()) > count + 1, "the container to write")
        numbers = self.numbers()
        assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


ORDERS = ["daemon", "containerd", "daemon containerd", "containerd daemon"]


@pytest.mark.parametrize("order", ORDERS)
def test_restart(emptied: Containerd, daemon: Daemon, busybox: Image, order: str) -> None:
    """
    Containers survive kill -9 of either or both sides and restarts in any order, and new containers start.
    """
    sides: list[Process] = [{"daemon": daemon, "containerd": emptied}[name] for name in order.split()]
    counter = Counter(emptied, busybox)
    counter.check_going_on()
    before = daemon.snapshots()
    for side in sides:
        side.kill()
    counter.check_going_on()
    if order == "daemon":
        with pytest.raises(CtrError, match="connection"):
            emptied.run(busybox.name, "early", "true")
    for side in sides:
        side.start()
        counter.check_going_on()
    wait_until(lambda: succeeds(emptied.ctr, "snapshots", "ls"), "containerd to reach the daemon")
    assert daemon.snapshots() == before
    assert emptied.tasks() == {"counter": counter.pid}
    emptied.shell("counter", "grep -x 1 /log; echo more > /more")
    emptied.run(busybox.name, "late", f"grep {busybox.name} /name; echo more > /more")
    daemon.check_store()


@pytest.mark.parametrize("end", ["kill daemon", "stop daemon", "kill containerd"])
def test_end_at_work(emptied: Containerd, daemon: Daemon, busybox: Image, end: str) -> None:
    """
    An end during starts and removals of containers fails only the calls in flight, and leaves nothing.
    """
    done = threading.Semaphore(0)
    attempts = itertools.count()

    def run() -> None:
        def attempt() -> bool:
            return succeeds(emptied.run, busybox.name, f"c{next(attempts)}", "echo more > /more")

        wait_until(attempt, "a container to run")
        done.release()

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run) for _ in range(16)]
        for _ in range(2):
            for _ in range(5):
                assert done.acquire(timeout=PATIENCE)
            match end:
                case "kill daemon":
                    daemon.kill()
                    daemon.start()
                case "stop daemon":
                    assert daemon.stop() == 0
                    daemon.start()
                case "kill containerd":
                    emptied.kill()
                    emptied.start()
        for outcome in runs:
            outcome.result()
    if end == "kill containerd":
        # A killed containerd forgets the shim that it was starting, and the mounts of the shim.
        emptied.clear()


def test_kill_at_import(
    emptied: Containerd, daemon: Daemon, image: Image, expected: dict[str, images.Node], directory: Path
) -> None:
    """
    If a kill of the daemon interrupts an import after the first layer, a second import completes the image.
    """

    def committed() -> int:
        return sum(info.kind is Kind.COMMITTED for info in daemon.snapshots().values())

    command = ("images", "import", str(image.write(directory / "image.tar")))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(succeeds, emptied.ctr, *command)
        wait_until(committed, "the first layer")
        daemon.kill()
        assert committed() < len(image.layers)
        daemon.start()
    wait_until(lambda: succeeds(emptied.ctr, *command), "containerd to reach the daemon")
    assert images.differences(expected, content(emptied, image)) == []


def test_bind_mounts(
    emptied: Containerd,
    daemon: Daemon,
    image: Image,
    expected: dict[str, images.Node],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    With bind mounts, an image has the same files, and containers run.
    """
    monkeypatch.setenv("SNAPSHOTTER_MOUNT_MODE", "bind")
    daemon.stop()
    daemon.start()
    command = ("images", "import", str(image.write(directory / "image.tar")))
    wait_until(lambda: succeeds(emptied.ctr, *command), "containerd to reach the daemon")
    assert images.differences(expected, content(emptied, image)) == []
    emptied.ctr("snapshots", "prepare", "work", image.chain_ids[-1])
    assert "-t bind" in emptied.ctr("snapshots", "mounts", "/mnt", "work")
    emptied.ctr("snapshots", "rm", "work")
    emptied.run(image.name, "writer", "test -u /kinds/setuid; echo more > /changed/content")
    emptied.run(image.name, "reader", "! touch /file", "--read-only")


def test_user_namespace(emptied: Containerd, daemon: Daemon, busybox: Image) -> None:
    """
    A container in a user namespace has a copy of the image, owned by the root of the namespace.
    """
    flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"]
    emptied.run(busybox.name, "mapped", "test $(stat -c %u:%g /name) = 0:0; echo more > /name", *flags)


@pytest.mark.since(2, 0)
def test_mapped_ids(emptied: Containerd, daemon: Daemon, image: Image, directory: Path) -> None:
    """
    A container with mapped ids sees the owners of the image, copies nothing, and its diff has the owners of the image.
    """
    emptied.ctr("images", "import", image.write(directory / "image.tar"))
    layers = len(daemon.snapshots())
    flags = ["--remap-labels", "--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"]
    script = """
        test $(stat -c %u:%g:%h /changed/attributes) = 1000:1000:1
        test -u /kinds/setuid
        echo more > /new
        chown 7:8 /new
        chmod 4755 /new
    """
    emptied.ctr("run", "--null-io", *flags, image.name, "mapped", "sh", "-ec", script)
    assert len(daemon.snapshots()) == layers + 1
    tree = images.applied([emptied.output("snapshots", "diff", "mapped")])
    assert tree["new"].owner == (7, 8)
    assert [path for path in tree if path.startswith(("kinds", "changed"))] == []
    (active,) = (info for info in daemon.snapshots().values() if info.kind is Kind.ACTIVE)
    assert active.labels["containerd.io/snapshot/uidmapping"] == "0:100000:65536"


def test_reboot(emptied: Containerd, daemon: Daemon, busybox: Image, filesystem: Path) -> None:
    """
    After a stop of everything, an unmount and a new mount, all snapshots are there, and containers run.
    """
    before = daemon.snapshots()
    assert emptied.stop() == 0
    assert daemon.stop() == 0
    syscall.umount2(filesystem)
    mount_image(filesystem.with_name("image"), filesystem)
    daemon.start()
    emptied.start()
    assert daemon.snapshots() == before
    emptied.run(busybox.name, "late", f"grep {busybox.name} /name")
