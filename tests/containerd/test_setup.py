"""
The output of `snapshotter setup containerd`, read by the real containerd.
"""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshotter import Snapshotter
from snapshotter.setup import rancher
from snapshotter.setup.containerd import Plugin, read_main
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.serving import serving

from .images import Image
from .processes import CRI, DISABLED, PLUGIN, SNAPSHOTTER, TRACING, Containerd, Daemon, wait_until
from .registry import Registry

PAUSE = "registry.example/mine/pause:1"
ROOT = f"/var/lib/containerd/io.containerd.snapshotter.v1.{PLUGIN}"  # the path at which old versions look for the store
SETTINGS = {  # existing settings of the CRI
    2: f'[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "{PAUSE}"\n',
    3: f'[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "{PAUSE}"\n',
    4: f'[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "{PAUSE}"\n',
}


class Node:
    """
    The configuration of a containerd, in *directory*, for the daemon at *address*.
    """

    def __init__(self, release: Path, directory: Path, address: Path) -> None:
        self._containerd = release / "containerd"
        self.address = address
        self.main = directory / "config.toml"
        self.drop_in = directory / "conf.d/snapshotter.toml"
        [version] = re.findall(r"^version = (\d)$", self._run("config", "default"), re.MULTILINE)
        self.version = int(version)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([self._containerd, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    def imports(self) -> str:
        return f"imports = [{json.dumps(str(self.drop_in.parent / '*.toml'))}]\n"

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """
        Run ``snapshotter setup containerd``.
        """
        command = [SNAPSHOTTER, "setup", "containerd", "--containerd", self._containerd]
        command += ["--containerd-config", self.main, "--name", PLUGIN, "--address", self.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def write(self, *arguments: str) -> str:
        """
        Write the drop-in, and return the advice of the command.
        """
        done = self.setup("--write", str(self.drop_in), *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def dump(self) -> dict[str, Any]:
        return tomllib.loads(self._run("--config", str(self.main), "config", "dump"))

    def migrate(self) -> None:
        self.main.write_text(self._run("--config", str(self.main), "config", "migrate"))


@pytest.fixture
def node(release: Path, tmp_path: Path) -> Iterator[Node]:
    with (
        serving() as server,
        Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes) as store,
    ):
        server.open(store)
        yield Node(release, tmp_path, Path(server.address))


def test_drop_in(node: Node) -> None:
    """
    The drop-in is in force if the main file imports it, and the main file's settings of the CRI stay.
    """
    node.main.write_text(f"version = {node.version}\n{node.imports()}{SETTINGS[node.version]}")
    # Old versions read the settings of the CRI from a single file, and cannot set the root of a plugin.
    by_hand = node.version == 2
    advice = node.write("--cri", "--root", ROOT)
    assert ("by hand" in advice) is by_hand
    if by_hand:
        [line] = re.findall(r"^ +(snapshotter = .*)$", advice, re.MULTILINE)
        [section] = re.findall(r"^ +(\[plugins.*)$", advice, re.MULTILINE)
        lacks = node.setup("--check", "--cri", "--root", ROOT)
        assert (lacks.returncode, lacks.stdout.count("\n")) == (1, 1), lacks
        with node.main.open("a") as main:
            main.write(f"{section}\n{line}\n")
    check = node.setup("--check", "--cri", "--root", ROOT)
    assert (check.returncode, check.stdout) == (0, "nothing is missing\n"), check
    assert PAUSE in json.dumps(node.dump())


def test_not_imported(node: Node) -> None:
    """
    Without a main file, or without imports in it, the advice has the missing lines, and they are sufficient.
    """
    node.drop_in.parent.mkdir()
    for before in (None, f"version = {node.version}\n"):
        if before:
            node.main.write_text(before)
        advice = node.write("--root", ROOT)
        [line] = re.findall(r"^ +(imports = .*)$", advice, re.MULTILINE)
        check = node.setup("--check", "--root", ROOT)
        assert check.returncode == 1, check
        assert "check that the drop-in is imported" in check.stdout, check
        node.main.write_text(f"version = {node.version}\n{line}\n")
        check = node.setup("--check", "--root", ROOT)
        assert (check.returncode, check.stdout) == (0, "nothing is missing\n"), check
        node.main.unlink()


def test_write(node: Node) -> None:
    """
    Without a file, the drop-in is written beside the main file, which imports it, and keeps all else.
    """
    before = f"version = {node.version}\n{SETTINGS[node.version]}# the end\n"
    node.main.write_text(before)
    done = node.setup("--write", "--root", ROOT)
    assert (done.returncode, "imports" in done.stderr) == (0, False), done.stderr
    assert node.main.read_text().endswith(before)
    [copy] = node.main.parent.glob("config.toml.*")
    assert copy.read_text() == before
    check = node.setup("--check", "--root", ROOT)
    assert (check.returncode, check.stdout) == (0, "nothing is missing\n"), check
    assert PAUSE in json.dumps(node.dump())


def test_old_main_file(node: Node) -> None:
    """
    The advice is to migrate a file of containerd 1.x only if its settings would be lost. Migration keeps them.
    """
    node.main.write_text(f"version = 2\n{node.imports()}{SETTINGS[2]}")
    advice = node.write("--cri")
    loses = node.version == 3
    assert ("config migrate" in advice) is loses
    assert (PAUSE in json.dumps(node.dump())) is not loses
    if loses:
        node.drop_in.unlink()
        node.migrate()
        node.write("--cri")
        assert PAUSE in json.dumps(node.dump())
    if node.version > 2:
        assert node.setup("--check", "--cri").stdout == "nothing is missing\n"


def test_check_reads_a_pipe(node: Node) -> None:
    """
    A dump can be read from standard input, as on a machine without this package.
    """
    node.main.write_text(f"version = {node.version}\n{node.imports()}")
    node.write()
    dump = subprocess.run(
        [node._containerd, "--config", node.main, "config", "dump"], capture_output=True, text=True, check=True
    )
    command = [SNAPSHOTTER, "setup", "containerd", "--name", PLUGIN, "--address", node.address, "--check", "-"]
    check = subprocess.run(command, input=dump.stdout, capture_output=True, text=True)
    assert (check.returncode, check.stdout) == (0, "nothing is missing\n"), check
    check = subprocess.run([*command, "--cri"], input=dump.stdout, capture_output=True, text=True)
    assert check.returncode == 1
    assert ".snapshotter: is " in check.stdout


def test_in_use(release: Path, daemon: Daemon, directory: Path, image: Image, registry: Registry) -> None:
    """
    containerd starts with the drop-in, and pulls and runs with its settings.
    """
    containerd = Containerd(release, daemon, directory)
    node = Node(release, directory, daemon.address)
    disabled = json.dumps(DISABLED + TRACING + CRI)
    node.main.write_text(f"version = {node.version}\ndisabled_plugins = {disabled}\n{node.imports()}")
    node.write("--root", str(daemon.root))
    try:
        containerd.start()
        assert re.search(rf"snapshotter\.v1 +{PLUGIN} .* ok", containerd.ctr("plugins", "ls"))
        name = registry.add(image)
        containerd.ctr("images", "pull", "--plain-http", name)
        containerd.run(name, "c", "true")
        containerd.remove_everything()
        wait_until(lambda: not daemon.snapshots(), "garbage collection to remove every snapshot")
    finally:
        containerd.stop()
        left = containerd.clear()
    assert not left


def test_main_file_of_docker(node: Node) -> None:
    """
    A main file without a version and with the short name of a plugin, as of Docker's packages, takes the drop-in.
    """
    node.main.write_text(f'{node.imports()}disabled_plugins = ["cri"]\n')
    node.write()
    assert PLUGIN in node.dump()["proxy_plugins"]
    if node.version == 2:
        assert "has version 1" in node.write("--cri")
        assert PLUGIN in node.dump()["proxy_plugins"]


@pytest.mark.parametrize("file", ["drop-in", "template"])
def test_rancher(node: Node, file: str) -> None:
    """
    The drop-in and the template for k3s, rendered as k3s does, are in force, and the settings of the CRI stay.
    """
    version = min(node.version, 3)
    drop_ins = node.main.with_name("config-v3.toml.d" if version == 3 else "config.toml.d")
    line = f'imports = ["{drop_ins}/*.toml"]\n' if file == "drop-in" else ""
    base = f"version = {version}\n{line}{SETTINGS[version]}"
    node.main.write_text(base)
    plugin = Plugin(PLUGIN, ROOT, "/run/s.sock")
    path, text = rancher.file_for(plugin, read_main(str(node.main)))
    if file == "drop-in":
        Path(path).parent.mkdir()
        Path(path).write_text(text)
    else:
        node.main.write_text(text.replace('{{ template "base" . }}', base))
    dump = node.dump()
    assert dump["proxy_plugins"][PLUGIN]["address"] == "/run/s.sock"
    assert PAUSE in json.dumps(dump)


@pytest.mark.since(2, 0)
def test_plugin_not_loaded(release: Path, daemon: Daemon, directory: Path) -> None:
    """
    From containerd 2.3 on, the drop-in's entry for unpacking keeps nothing from starting if the plugin is missing.
    """
    containerd = Containerd(release, daemon, directory)
    text = containerd.imported.read_text()
    _, _, rest = text.partition("\n\n[proxy_plugins")
    containerd.imported.write_text(f"version = {tomllib.loads(text)['version']}\n[[{rest.partition('[[')[2]}")
    optional = "optional = true" in text
    assert optional == (tomllib.loads(text)["version"] == 4)
    try:
        containerd.start()
        [transfer] = re.findall(r"transfer\.v1 +local .* (ok|error|skip)", containerd.ctr("plugins", "ls"))
        assert transfer == ("ok" if optional else "error")
    finally:
        containerd.stop()
        containerd.clear()
