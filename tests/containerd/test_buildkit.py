"""
BuildKit with the daemon as the snapshotter of its own worker.
"""

import gzip
import itertools
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import images
from .builds import binaries
from .needed import needed
from .processes import PATIENCE, PLUGIN, Cgroup, Daemon, Process, wait_until
from .registry import Registry

pytestmark = pytest.mark.btrfs

DOCKERFILE = """
FROM {base} AS build
RUN cat /proc/sys/kernel/random/uuid > /uuid
COPY source /source
RUN --mount=type=cache,target=/cache echo run >> /cache/runs && cat /cache/runs > /runs
RUN mkdir -p /made/empty && cat /source/text > /made/text && echo kept > /made/kept && ln /made/kept /made/twin

FROM build AS changed
RUN rm /made/kept && rm -r /source && echo changed > /made/text && chmod 4755 /made/twin

FROM {base}
COPY --from=changed /made /changed
COPY --from=build /made/text /uuid /runs /build/
RUN rm /name && mkdir /name && echo new > /name/file && chmod 600 /name/file && rm -r /var
"""


def built(base: images.Image, text: bytes, uuid: bytes, runs: int) -> dict[str, images.Node]:
    """
    Return the files that the Dockerfile makes of *base* and a source with *text*, at run number *runs*.
    """
    layer = images.layer(
        images.directory("changed"),
        images.directory("changed/empty"),
        images.member("changed/text", b"changed\n"),
        images.member("changed/twin", b"kept\n", mode=0o4755),
        images.directory("build"),
        images.member("build/text", text),
        images.member("build/uuid", uuid),
        images.member("build/runs", b"run\n" * runs),
        images.whiteout("name"),
        images.directory("name"),
        images.member("name/file", b"new\n", mode=0o600),
        images.whiteout("var"),
    )
    return timeless(images.applied([*base.layers, layer]))


def timeless(tree: dict[str, images.Node]) -> dict[str, images.Node]:
    """
    Return *tree* without its root and without times, because a build does not set them.
    """
    del tree["."]
    for node in tree.values():
        node.mtime = None
    return tree


class BuildKit(Process):
    """
    buildkitd, with its own worker and no other.
    """

    def __init__(self, binaries: Path, daemon: Daemon, registry: Registry, directory: Path) -> None:
        address = directory / "buildkitd.sock"
        self._buildctl = [binaries / "buildctl", "--addr", f"unix://{address}"]
        self.cgroup = Cgroup()
        config = directory / "buildkitd.toml"
        config.write_text(f"""
root = "{directory}/buildkit"
[grpc]
  address = ["unix://{address}"]
[otel]
  socketPath = "{directory}/otel.sock"
[cdi]
  disabled = true
[worker.oci]
  defaultCgroupParent = "{self.cgroup.name}"
  networkMode = "host"
[registry."{registry.host}"]
  http = true
""")
        snapshotter = [f"--oci-worker-snapshotter={PLUGIN}", f"--oci-worker-proxy-snapshotter-path={daemon.address}"]
        workers = ["--oci-worker=true", "--containerd-worker=false"]
        super().__init__([binaries / "buildkitd", f"--config={config}", *workers, *snapshotter], address)

    def run(self, *arguments: str) -> None:
        """
        Run ``buildctl``.
        """
        done = subprocess.run(
            [*self._buildctl, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
        )
        assert not done.returncode, done.stderr

    def builds(self, context: Path, output: str) -> bool:
        """
        Return whether a build of the Dockerfile in *context* succeeds.
        """
        try:
            self.build(context, output)
        except AssertionError:
            return False
        return True

    def build(self, context: Path, output: str) -> None:
        """
        Export the result of the Dockerfile in *context*.
        """
        places = [f"--local=context={context}", f"--local=dockerfile={context}", f"--output={output}"]
        self.run("build", "--progress=plain", "--frontend=dockerfile.v0", *places)

    def directory(self, context: Path) -> dict[str, images.Node]:
        """
        Return the files of the exported directory.
        """
        with tempfile.TemporaryDirectory() as directory:
            self.build(context, f"type=local,dest={directory}")
            return timeless(images.found(Path(directory)))

    def image(self, context: Path) -> dict[str, images.Node]:
        """
        Return the files that the layers of the exported image make.
        """
        with tempfile.NamedTemporaryFile() as file:
            self.build(context, f"type=oci,dest={file.name}")
            with tarfile.open(file.name) as archive:
                return timeless(images.applied(_layers(archive)))


def _layers(archive: tarfile.TarFile) -> Iterator[bytes]:
    def read(name: str) -> bytes:
        file = archive.extractfile(name)
        assert file
        return file.read()

    def blob(descriptor: dict[str, Any]) -> bytes:
        return read(f"blobs/{descriptor['digest'].replace(':', '/')}")

    (manifest,) = json.loads(read("index.json"))["manifests"]
    for layer in json.loads(blob(manifest))["layers"]:
        yield gzip.decompress(blob(layer)) if layer["mediaType"].endswith("+gzip") else blob(layer)


@pytest.fixture
def buildkit(daemon: Daemon, registry: Registry, directory: Path) -> Iterator[BuildKit]:
    """
    Start buildkitd.
    """
    process = BuildKit(needed(binaries, "buildkit"), daemon, registry, directory)
    try:
        process.start()
        yield process
    finally:
        process.stop()
        left = process.cgroup.processes()
        process.cgroup.clear()
        print(process.log.read_text())
    assert not left


def test_builds(buildkit: BuildKit, daemon: Daemon, registry: Registry, directory: Path) -> None:
    """
    A build gives the result of its Dockerfile, and reuses earlier builds.

    BuildKit and the daemon are killed or stopped between builds. Pruning leaves no subvolume.
    """
    base = images.small("example.org/small:1")
    context = directory / "context"
    (context / "source").mkdir(parents=True)
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=registry.add(base)))
    (context / "source/text").write_bytes(b"text")
    buildkit.build(context, f"type=local,dest={directory}/first")
    uuid = (directory / "first/build/uuid").read_bytes()
    # By this, doctor knows a store that no containerd has to know.
    assert {key.split("/")[0] for key in daemon.snapshots()} == {"buildkit"}

    def check(text: bytes, runs: int) -> None:
        (context / "source/text").write_bytes(text)
        expected = built(base, text, uuid, runs)
        assert images.differences(expected, buildkit.directory(context)) == []
        assert images.differences(expected, buildkit.image(context)) == []

    check(b"text", 1)
    # BuildKit does not start without the daemon.
    orders: list[list[Process]] = [[daemon], [buildkit], [daemon, buildkit]]
    for number, (end, order) in enumerate(itertools.product((Process.kill, Process.stop), orders), 2):
        for process in order:
            end(process)
        for process in order:
            process.start()
        # A BuildKit whose garbage collection met the dead daemon does not connect again for a second. The unchanged
        # context runs nothing here.
        wait_until(lambda: buildkit.builds(context, f"type=local,dest={directory}/again"), "BuildKit to connect again")
        check(f"text {number}".encode(), number)

    buildkit.run("prune", "--all")
    wait_until(lambda: not daemon.snapshots(), "BuildKit to remove every snapshot")
    daemon.check_store()
