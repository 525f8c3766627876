"""
Docker Engine on containerd, with the daemon as its storage driver.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import images
from .engine import Engine, programs
from .images import Image
from .needed import needed
from .processes import PLUGIN, Containerd, Daemon, Process, wait_until

pytestmark = pytest.mark.btrfs

MIB = 1 << 20

DOCKERFILE = """
FROM {base}
RUN echo first > /first && mkdir -m 1777 /shared && chown 1000:1000 /first
COPY source /copied
RUN rm /name && ln /first /twin && chmod 4711 /copied
ENTRYPOINT ["cat"]
"""


@pytest.fixture
def engine(containerd: Containerd, daemon: Daemon, directory: Path) -> Iterator[Engine]:
    """
    Start Docker Engine, and at the end remove everything down to the last subvolume.
    """
    engine = Engine(needed(programs, "sid"), containerd, daemon, directory)
    written = engine.setup("--write")
    assert written.returncode == 0, written.stderr
    containerd.stop()
    containerd.start()
    try:
        engine.start()
        yield engine
        engine.prune()
        wait_until(lambda: not daemon.snapshots(), "garbage collection to remove every snapshot")
        daemon.check_store()
        assert engine.stop() == 0
    finally:
        engine.kill()
        engine.clear()
        print(engine.log.read_text())


@pytest.fixture
def image(engine: Engine, directory: Path) -> Image:
    """
    Load a small image.
    """
    image = images.small("example.org/small:1")
    assert image.name in engine.docker("load", "--input", image.write(directory / "image.tar"))
    return image


def members(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return {name.removeprefix("./") for name in tar.getnames()}


def test_setup(engine: Engine, containerd: Containerd) -> None:
    """
    ``setup docker`` keeps all settings, and finds nothing missing once the engine runs with its own.
    """
    settings = json.loads(engine.config.read_text())
    assert settings["live-restore"] is True
    assert settings["storage-driver"] == engine.docker("info", "--format", "{{.Driver}}") == PLUGIN
    checked = engine.setup("--check")
    assert (checked.returncode, checked.stdout) == (0, "nothing is missing\n"), checked.stderr
    assert len(list(engine.config.parent.glob("daemon.json.*"))) == 1
    assert len(list(containerd.config.parent.glob("config.toml.*"))) == 1
    again = engine.setup("--write")
    assert (again.returncode, again.stdout) == (0, "")


def test_containers(engine: Engine, daemon: Daemon, image: Image, directory: Path) -> None:
    """
    A container runs, and its changes are shown, measured, committed, exported and saved.
    """
    script = """
        cat /name
        echo changed > /name
        rm /bin/true
        dd if=/dev/zero of=/data bs=1M count=8 2>/dev/null
        sync -f /data
    """
    assert engine.run(image.name, script, "--name", "work") == image.name
    assert set(engine.docker("diff", "work").splitlines()) == {"C /name", "C /bin", "D /bin/true", "A /data"}

    def size() -> int:
        (container,) = json.loads(engine.docker("inspect", "--size", "work"))
        return int(container["SizeRw"])

    wait_until(lambda: 8 * MIB <= size() < 9 * MIB, "8 MiB to be seen")
    assert "(virtual" in engine.docker("ps", "--all", "--size", "--format", "{{.Size}}")
    engine.docker("commit", "work", "example.org/committed:1")
    assert (
        engine.run("example.org/committed:1", "cat /name; ! test -e /bin/true; stat -c %s /data")
        == f"changed\n{8 * MIB}"
    )
    engine.docker("export", "--output", directory / "export.tar", "work")
    exported = members(directory / "export.tar")
    assert {"name", "data", "bin/sh"} <= exported
    assert "bin/true" not in exported
    engine.docker("save", "--output", directory / "saved.tar", "example.org/committed:1")
    engine.docker("rm", "--force", *engine.docker("ps", "--all", "--quiet").split())
    engine.docker("rmi", "example.org/committed:1")
    engine.docker("load", "--input", directory / "saved.tar")
    assert engine.run("example.org/committed:1", "cat /name", "--rm") == "changed"
    rows = [json.loads(line) for line in engine.docker("system", "df", "--format", "json").splitlines()]
    assert {row["Type"]: row["TotalCount"] for row in rows}["Images"] == "2"


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
def test_build(engine: Engine, image: Image, directory: Path, builder: str) -> None:
    """
    Both builders make the same files of a Dockerfile, and build again from their cache.
    """
    context = directory / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=image.name))
    (context / "source").write_text("source")
    for _ in range(2):
        engine.docker("build", "--network", "none", "--tag", "built", context, buildkit=builder == "buildkit")
    script = "stat -c '%n %a %u %h' /first /shared /copied; ls /"
    lines = engine.docker("run", "--rm", "--network", "none", "--entrypoint", "sh", "built", "-ec", script).splitlines()
    assert lines[:3] == ["/first 644 1000 2", "/shared 1777 0 1", "/copied 4711 0 1"]
    assert "twin" in lines[3:]
    assert "name" not in lines[3:]
    assert engine.docker("run", "--rm", "--network", "none", "built", "/copied") == "source"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_restarts(engine: Engine, containerd: Containerd, daemon: Daemon, image: Image, end: str) -> None:
    """
    A container runs through restarts of the daemon, of containerd and of dockerd, and others start after each.
    """
    engine.run(image.name, "touch /running; sleep infinity", "--name", "long", "--detach")
    pid = engine.docker("inspect", "--format", "{{.State.Pid}}", "long")
    orders: list[list[Process]] = [[daemon], [containerd], [engine], [engine, containerd, daemon]]
    for order in orders:
        for process in order:
            getattr(process, end)()
        for process in reversed(order):
            process.start()
        wait_until(
            lambda: engine.succeeds("run", "--rm", "--network", "none", image.name, "true"), "a container to run"
        )
        assert engine.docker("inspect", "--format", "{{.State.Pid}}", "long") == pid
        assert engine.docker("exec", "long", "ls", "/running") == "/running"
