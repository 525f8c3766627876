"""
The rules for imports.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"

OURS = ("pybtrfs", "snapshotter")
SERVICES = (
    "snapshots",
    "containers",
    "content",
    "images",
    "introspection",
    "leases",
    "namespaces",
    "extension",
    "health",
)

# From the bottom up: a module imports modules of lower floors, and modules before it in its own package.
FLOORS = (
    {"pybtrfs"},
    {"snapshotter.errors", "snapshotter.events", "snapshotter.text"},
    {"snapshotter.model"},
    {"snapshotter.api", "snapshotter.store", "snapshotter.transport"},
    {"snapshotter.contract"},
    {"snapshotter.client", "snapshotter.mounting", "snapshotter.testing"},
    {"snapshotter"},
    {"snapshotter.analysis", "snapshotter.archive", "snapshotter.daemon"},
    {"snapshotter.maintenance", "snapshotter.setup"},
    {"snapshotter.cli"},
    {"snapshotter.__main__"},
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}

# The order inside each package; modules that stand together do not import each other. "" is the package itself.
INSIDE = {
    "pybtrfs": (
        "_btrfs _version _image_template",
        "",
        "_ffi items processes qgroup size",
        "send.stream",
        "kernel sysfs",
        "ioctl.device ioctl.filesystem ioctl.inode ioctl.loop ioctl.quota ioctl.send syscall",
        "ioctl.subvolume",
        "ioctl.tree",
        "ioctl",
        "mountinfo",
        "errors",
        "path",
        "tree_search filesystem inode space testing.real testing.trees",
        "testing.fake",
        "testing",
        "device image subvolume.files subvolume.info",
        "subvolume.changes subvolume.listing",
        "subvolume.emptying",
        "subvolume.deletion",
        "subvolume.creation",
        "subvolume",
        "send.send",
        "send",
        "extent compat pytest_plugin cli",
        "compat.btrfsutil cli.arguments cli.output",
        "cli.image cli.send cli.subvolume cli.usage",
        "cli.main",
        "__main__",
    ),
    "snapshotter.api": (
        "",
        "mount_pb2 descriptor_pb2",
        " ".join(f"{service}_pb2" for service in SERVICES),
        "messages",
    ),
    "snapshotter.store": (
        "",
        "barrier coalesced counters holding_mounts layout nested record_storage usage",
        "devices records volumes",
        "header index lock pieces",
        "store btrfs",
        "ownership recovery worker write_errors",
        "operations",
    ),
    "snapshotter.transport": ("_http2", "", "status library", "channel"),
    "snapshotter.contract": ("filters idmap labels session", "opening", "snapshotter", ""),
    "snapshotter.analysis": (
        "",
        "containerd difference family inventory treemap",
        "references",
        "directories holders rows space",
        "report",
    ),
    "snapshotter.archive": ("", "format", "limits", "packing unpacking", "tar"),
    "snapshotter.daemon": ("", "config log sockets systemd", "metrics rpc", "service", "process"),
    "snapshotter.maintenance": ("", "connection quarantine repair rotation", "doctor"),
    "snapshotter.setup": ("", "containerd docker files image_store rootless unit_files", "rancher"),
    "snapshotter.cli": (
        "codes",
        "arguments confirmation display interruption output progress",
        "protection waiting",
        "used_by",
        "keys",
        "commands",
        "commands.archive commands.commit commands.demo commands.df commands.diff commands.doctor commands.du "
        "commands.events commands.info commands.init commands.label commands.ls commands.mount commands.prepare "
        "commands.report commands.rm commands.serve commands.setup commands.tree commands.why",
        "",
    ),
}

# Values in, values out: these import no module that does I/O, and no module of ours that may.
PURE = {
    "pybtrfs.items",
    "pybtrfs.qgroup",
    "pybtrfs.send.stream",
    "pybtrfs.size",
    "snapshotter.errors",
    "snapshotter.events",
    "snapshotter.contract.filters",
    "snapshotter.text",
    "snapshotter.contract.labels",
    "snapshotter.store.counters",
    "snapshotter.store.records",
    "snapshotter.model",
    "snapshotter.analysis.treemap",
    "snapshotter.archive.format",
}
COMPUTED = PURE | {"pybtrfs._ffi"}  # the compiled module also computes checksums
IO = {"asyncio", "fcntl", "io", "multiprocessing", "os", "pathlib", "select", "shutil", "socket", "tempfile"}
IO |= {"subprocess", "threading", "time"}

ONLY = {  # each key may be imported by these modules alone
    "pybtrfs._btrfs": {"pybtrfs", "pybtrfs._ffi"},
    "prometheus_client": {"snapshotter.daemon.metrics"},
    "snapshotter.transport._http2": {"snapshotter.transport.library"},
    "_cffi_backend": {"snapshotter.transport.library"},
    "google.protobuf": {
        "snapshotter.api.mount_pb2",
        "snapshotter.api.descriptor_pb2",
        *(f"snapshotter.api.{service}_pb2" for service in SERVICES),
        "snapshotter.analysis.references",
        "snapshotter.api.messages",
        "snapshotter.client",
        "snapshotter.daemon.rpc",
        "snapshotter.daemon.service",
        "snapshotter.transport.channel",
    },
    "subprocess": {"snapshotter.setup.containerd"},
}


def package_of(module: str) -> str:
    """
    Return the package that has a place in FLOORS.
    """
    return next(
        (package for package in sorted(FLOOR, key=len, reverse=True) if f"{module}.".startswith(f"{package}.")), ""
    )


def place(module: str) -> int | None:
    """
    Return the place of *module* in the order of its package, or None when it has none.
    """
    package = package_of(module)
    order = INSIDE.get(package, ("",))
    places = [
        number for number, names in enumerate(order) if module.removeprefix(package).lstrip(".") in names.split(" ")
    ]
    return places[0] if len(places) == 1 else None


def exists(module: str) -> bool:
    return module in ("pybtrfs._btrfs", "snapshotter.transport._http2") or any(
        (SRC / module.replace(".", "/")).with_suffix(end).exists() for end in (".py", "")
    )


def imports(module: str, source: str) -> Iterator[str]:
    """
    Yield the modules that *source* imports, wherever in it.
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
                yield name if name.split(".")[0] in OURS and exists(name) else base


def violations(module: str, source: str) -> list[str]:
    """
    Return the imports of *source* that *module* must not have.
    """
    if place(module) is None:
        return [f"{module} has no place in INSIDE"]
    found = []
    for name in imports(module, source):
        root = name.split(".")[0]
        if root in OURS and name != module:
            ours, theirs = package_of(module), package_of(name)
            above = (FLOOR[ours], place(module)) <= (FLOOR[theirs], -1 if place(name) is None else place(name))
            if place(name) is None or above or (FLOOR[ours] == FLOOR[theirs] and ours != theirs):
                found.append(f"{module} imports {name}, which is not below it")
        if module in PURE and (name not in COMPUTED and name not in OURS if root in OURS else root in IO):
            found.append(f"{module} is pure but imports {name}")
        found += [f"{module} imports {name}" for only in {name, root} & ONLY.keys() if module not in ONLY[only]]
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SRC.rglob("*.py")):
        yield ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"), path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_imports(module: str, path: Path) -> None:
    """
    Imports point downwards, and only the modules in ONLY touch the kernel, a process or the network.
    """
    assert violations(module, path.read_text()) == []


def test_start_of_the_command() -> None:
    """
    Commands other than serve do not import the modules of the server, because the import is slow.
    """
    ask = (
        "import sys; from snapshotter import cli; print(cli.main(['config', 'default']), *sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    loaded = ran.stderr.split()
    assert loaded[0] == "0"
    assert not {"asyncio", "ctypes", "difflib", "google.protobuf", "socket", "tomllib"} & set(loaded)


def test_start_of_every_command() -> None:
    """
    The start of every command imports no slow module that is only needed later.
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
        ("snapshotter.contract.snapshotter", "from google.protobuf import message", "imports google.protobuf"),
        ("snapshotter.utils", "", "no place"),
        ("snapshotter.cli", "import snapshotter.utils", "not below"),
    ],
)
def test_violations_are_found(module: str, source: str, violation: str) -> None:
    """
    The rules above can fail.
    """
    assert any(violation in found for found in violations(module, source))
