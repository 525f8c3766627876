"""
What may import what.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"

SERVICES = ("snapshots", "containers", "content", "images", "leases", "extension")

# From the bottom up. A module imports only from the layers below its own.
LAYERS = [
    {
        "pybtrfs._btrfs",
        "pybtrfs._image_template",
        "pybtrfs._version",
        "pybtrfs.cli",
        "pybtrfs.cli.output",
        "pybtrfs.compat",
        "pybtrfs.items",
        "pybtrfs.qgroup",
    },
    {"pybtrfs", "pybtrfs.syscall"},
    {"pybtrfs.ioctl", "pybtrfs.mountinfo"},
    {"pybtrfs.errors", "pybtrfs.testing"},
    {"pybtrfs.path"},
    {"pybtrfs.extent", "pybtrfs.filesystem", "pybtrfs.image", "pybtrfs.inode", "pybtrfs.space", "pybtrfs.tree_search"},
    {"pybtrfs.cli.image", "pybtrfs.device", "pybtrfs.subvolume.files", "pybtrfs.subvolume.info"},
    {"pybtrfs.cli.usage", "pybtrfs.subvolume.listing"},
    {"pybtrfs.subvolume.deletion"},
    {"pybtrfs.subvolume.creation"},
    {"pybtrfs.subvolume"},
    {"pybtrfs.cli.subvolume", "pybtrfs.compat.btrfsutil", "pybtrfs.extents", "pybtrfs.pytest_plugin"},
    {"pybtrfs.cli.main"},
    {"pybtrfs.__main__"},
    {
        "snapshotter.analysis",
        "snapshotter.analysis.treemap",
        "snapshotter.api",
        "snapshotter.api.containers_pb2",
        "snapshotter.api.content_pb2",
        "snapshotter.api.descriptor_pb2",
        "snapshotter.api.leases_pb2",
        "snapshotter.api.mount_pb2",
        "snapshotter.archive",
        "snapshotter.archive.format",
        "snapshotter.cli.commands",
        "snapshotter.cli.interruption",
        "snapshotter.daemon",
        "snapshotter.daemon.http2",
        "snapshotter.daemon.systemd",
        "snapshotter.errors",
        "snapshotter.events",
        "snapshotter.maintenance",
        "snapshotter.model",
        "snapshotter.setup",
        "snapshotter.store",
        "snapshotter.store.coalesced",
        "snapshotter.store.record_storage",
        "snapshotter.text",
    },
    {
        "snapshotter.analysis.family",
        "snapshotter.api.containers_grpc",
        "snapshotter.api.content_grpc",
        "snapshotter.api.extension_pb2",
        "snapshotter.api.images_pb2",
        "snapshotter.api.leases_grpc",
        "snapshotter.api.snapshots_pb2",
        "snapshotter.archive.unpacking",
        "snapshotter.cli.codes",
        "snapshotter.cli.display",
        "snapshotter.cli.progress",
        "snapshotter.contract.filters",
        "snapshotter.contract.labels",
        "snapshotter.contract.session",
        "snapshotter.daemon.log",
        "snapshotter.daemon.rpc",
        "snapshotter.daemon.sockets",
        "snapshotter.store.layout",
        "snapshotter.store.usage",
    },
    {
        "snapshotter.api.extension_grpc",
        "snapshotter.api.images_grpc",
        "snapshotter.api.messages",
        "snapshotter.api.snapshots_grpc",
        "snapshotter.cli.commands.events",
        "snapshotter.cli.waiting",
        "snapshotter.mounting",
        "snapshotter.store.lock",
        "snapshotter.store.records",
        "snapshotter.store.volumes",
    },
    {
        "snapshotter.analysis.references",
        "snapshotter.client",
        "snapshotter.daemon.config",
        "snapshotter.store.btrfs",
        "snapshotter.store.header",
        "snapshotter.store.index",
        "snapshotter.testing",
    },
    {"snapshotter.setup.containerd", "snapshotter.setup.unit_files", "snapshotter.store.store"},
    {
        "snapshotter.store.ownership",
        "snapshotter.store.recovery",
        "snapshotter.store.worker",
        "snapshotter.store.write_errors",
    },
    {"snapshotter.contract.snapshotter", "snapshotter.maintenance.repair"},
    {"snapshotter.contract"},
    {
        "snapshotter",
        "snapshotter.analysis.difference",
        "snapshotter.analysis.holders",
        "snapshotter.analysis.inventory",
        "snapshotter.archive.packing",
        "snapshotter.cli.arguments",
        "snapshotter.daemon.metrics",
        "snapshotter.daemon.service",
        "snapshotter.setup.image_store",
    },
    {
        "snapshotter.analysis.directories",
        "snapshotter.analysis.space",
        "snapshotter.archive.tar",
        "snapshotter.cli.commands.commit",
        "snapshotter.cli.commands.demo",
        "snapshotter.cli.commands.setup",
        "snapshotter.cli.output",
        "snapshotter.daemon.process",
        "snapshotter.maintenance.quarantine",
    },
    {
        "snapshotter.analysis.report",
        "snapshotter.cli.commands.diff",
        "snapshotter.cli.commands.du",
        "snapshotter.cli.commands.info",
        "snapshotter.cli.commands.label",
        "snapshotter.cli.commands.mount",
        "snapshotter.cli.commands.prepare",
        "snapshotter.cli.commands.serve",
        "snapshotter.cli.commands.tree",
        "snapshotter.cli.commands.why",
        "snapshotter.maintenance.doctor",
    },
    {
        "snapshotter.cli.commands.archive",
        "snapshotter.cli.commands.df",
        "snapshotter.cli.commands.doctor",
        "snapshotter.cli.commands.ls",
        "snapshotter.cli.commands.report",
        "snapshotter.cli.commands.rm",
    },
    {"snapshotter.cli.commands.init"},
    {"snapshotter.cli"},
    {"snapshotter.__main__"},
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

# Values in, values out: these import no module that does I/O, nor one of ours that may.
PURE = {
    "pybtrfs.items",
    "pybtrfs.qgroup",
    "snapshotter.errors",
    "snapshotter.events",
    "snapshotter.contract.filters",
    "snapshotter.daemon.http2",
    "snapshotter.contract.labels",
    "snapshotter.store.records",
    "snapshotter.model",
    "snapshotter.analysis.treemap",
}
IO = {"asyncio", "fcntl", "io", "multiprocessing", "os", "pathlib", "select", "shutil", "socket", "tempfile"}
IO |= {"subprocess", "threading", "time"}

ONLY = {  # these imports are these modules' alone
    "pybtrfs._btrfs": {"pybtrfs", "pybtrfs.ioctl", "pybtrfs.syscall"},
    "prometheus_client": {"snapshotter.daemon.metrics"},
    "grpclib": {
        *(f"snapshotter.api.{service}_grpc" for service in SERVICES),
        "snapshotter.client",
        "snapshotter.analysis.references",
        "snapshotter.daemon.rpc",
        "snapshotter.daemon.service",
    },
    "hpack": {"snapshotter.daemon.http2"},
    "google.protobuf": {
        "snapshotter.api.mount_pb2",
        "snapshotter.api.descriptor_pb2",
        *(f"snapshotter.api.{service}_{kind}" for service in SERVICES for kind in ("pb2", "grpc")),
        "snapshotter.client",
        "snapshotter.api.messages",
        "snapshotter.daemon.rpc",
        "snapshotter.daemon.service",
    },
    "subprocess": {"snapshotter.setup.containerd"},
}


def imports(module: str, source: str) -> Iterator[str]:
    """
    The modules that *source* imports, wherever in it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in RANK else base


def violations(module: str, source: str) -> list[str]:
    """
    What *source* imports that *module* must not.
    """
    if module not in RANK:
        return [f"{module} has no place in LAYERS"]
    found = []
    for name in imports(module, source):
        package = name.split(".")[0]
        ours = package in ("pybtrfs", "snapshotter")
        if ours and RANK.get(name, len(LAYERS)) >= RANK[module]:
            found.append(f"{module} imports {name}, which is not below it")
        if module in PURE and (name not in PURE and name not in ("pybtrfs", "snapshotter") if ours else package in IO):
            found.append(f"{module} is pure but imports {name}")
        for only in {name, package} & ONLY.keys():
            if module not in ONLY[only]:
                found.append(f"{module} imports {name}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SRC.rglob("*.py")):
        yield ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"), path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_imports(module: str, path: Path) -> None:
    """
    Imports point downwards, and what touches the kernel, a process or the network stays where it belongs.
    """
    assert violations(module, path.read_text()) == []


def test_start_of_the_command() -> None:
    """
    What is needed for serving alone is not imported by other commands, which would wait for it.
    """
    ask = (
        "import sys; from snapshotter import cli; print(cli.main(['config', 'default']), *sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    loaded = ran.stderr.split()
    assert loaded[0] == "0"
    assert not {"asyncio", "difflib", "google.protobuf", "grpclib", "socket", "tomllib"} & set(loaded)


def test_start_of_every_command() -> None:
    """
    What every command begins with imports nothing that takes long and can wait.
    """
    ask = "import sys; from snapshotter import cli; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert not {"dataclasses", "inspect", "logging", "subprocess", "snapshotter.analysis.inventory"} & set(
        ran.stdout.split()
    )


@pytest.mark.parametrize(
    ("module", "source", "violation"),
    [
        ("pybtrfs.subvolume", "import snapshotter.errors", "not below"),
        ("pybtrfs.ioctl", "def later():\n    from pybtrfs import subvolume", "not below"),
        ("pybtrfs.ioctl", "from . import subvolume", "not below"),
        ("pybtrfs.subvolume", "from pybtrfs._btrfs import lib", "imports pybtrfs._btrfs"),
        ("snapshotter.store.records", "from snapshotter.store.volumes import Volumes", "not below"),
        ("snapshotter.store.volumes", "from snapshotter.store import records", "not below"),
        ("snapshotter.contract.filters", "import os.path", "pure"),
        ("pybtrfs.items", "from pathlib import Path", "pure"),
        ("snapshotter.cli", "import subprocess", "imports subprocess"),
        ("snapshotter.contract.snapshotter", "from grpclib.client import Channel", "imports grpclib"),
        ("snapshotter.utils", "", "no place"),
        ("snapshotter.cli", "import snapshotter.utils", "not below"),
    ],
)
def test_violations_are_found(module: str, source: str, violation: str) -> None:
    """
    The rules above can fail.
    """
    assert any(violation in found for found in violations(module, source))
