"""
What containerd has to be told of a daemon: a file for its configuration, and what that file cannot say.
"""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, cast

from snapshotter.daemon.config import toml
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError

ConfigVersion = Literal[2, 3, 4]

DROP_INS = "/etc/containerd/conf.d"

# containerd does not start with a second one of a name; the last two are k3s's.
BUILT_IN = {"aufs", "blockfile", "btrfs", "devmapper", "erofs", "native", "overlayfs", "windows", "windows-lcow", "zfs"}
BUILT_IN |= {"fuse-overlayfs", "stargz"}

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)
_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")
_CRI = {
    2: ("io.containerd.grpc.v1.cri", "containerd"),
    3: ("io.containerd.cri.v1.images",),
    4: ("io.containerd.cri.v1.images",),
}
_TRANSFER = "io.containerd.transfer.v1.local"


class Version(NamedTuple):
    """
    A release of containerd.
    """

    major: int
    minor: int
    patch: int

    @property
    def config(self) -> ConfigVersion:
        """
        The newest version of the configuration that it reads.
        """
        if self < (2, 0, 0):
            return 2
        return 3 if self < (2, 3, 0) else 4

    @property
    def reads_exports(self) -> bool:
        """
        Whether it can be told where the root of a proxy plugin is.
        """
        return self >= (1, 7, 16) or (1, 6, 32) <= self < (1, 7, 0)


@dataclass(frozen=True, slots=True)
class Plugin:
    """
    The daemon as containerd sees it.

    Args:
        name: What clients call the snapshotter.
        cri: Whether it is to be that of Kubernetes' containers.
    """

    name: str
    root: str
    address: str
    cri: bool = False

    def __post_init__(self) -> None:
        if self.name in BUILT_IN:
            raise InvalidArgumentError(
                f"{self.name!r} is a snapshotter of containerd's own, which does not start with two of one name: "
                "choose another one"
            )
        if len(self.name) > 76 or not _IDENTIFIER.fullmatch(self.name):
            raise InvalidArgumentError(
                f"{self.name!r} is no name for containerd: letters and digits, with single dots, dashes or underscores "
                "between them, 76 at most"
            )
        for path in (self.root, self.address):
            try:
                path.encode()
            except UnicodeEncodeError as error:
                raise InvalidArgumentError(f"{path!r} is not UTF-8, as containerd's configuration has to be") from error


class Main(NamedTuple):
    """
    containerd's own configuration file, as far as there is one.
    """

    path: str
    values: Mapping[str, Any]
    exists: bool = True

    @property
    def version(self) -> int:
        version = self.values.get("version", 1)
        return version if isinstance(version, int) else 1

    def section(self, plugin: str) -> Mapping[str, Any]:
        return _table(self.values, "plugins", plugin)

    def imports(self, path: str) -> bool:
        """
        Whether it reads the file *path*, too.
        """
        directory = os.path.dirname(os.path.abspath(self.path))
        return any(
            isinstance(pattern, str)
            # containerd 1.x takes the relative ones with a star from wherever it was started.
            and (os.path.isabs(pattern) or "*" not in pattern)
            and PurePath(path).match(os.path.join(directory, pattern))
            for pattern in self.values.get("imports", ())
        )


def installed(containerd: str) -> Version:
    """
    The version of the program *containerd*, a path or a name in ``$PATH``.
    """
    said = _run(containerd, "--version")
    found = _VERSION.search(said)
    if not found:
        raise FailedPreconditionError(f"{containerd!r} does not tell its version: {said.strip()!r}")
    return Version(*map(int, found.groups()))


def read_main(path: str) -> Main:
    """
    Raises:
        InvalidArgumentError: The file cannot be read, or is no TOML.
    """
    try:
        with open(path, "rb") as file:
            return Main(path, tomllib.load(file))
    except FileNotFoundError:
        return Main(path, {}, exists=False)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read containerd's configuration {path!r}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error


def dumped(containerd: str, main: str) -> str:
    """
    What containerd makes of its configuration; of none, where the file *main* is missing.
    """
    if not os.path.exists(main):
        return _run(containerd, "config", "default")
    return _run(containerd, "--config", main, "config", "dump")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except FileNotFoundError as error:
        raise FailedPreconditionError(
            f"there is no {command[0]!r}: name it with --containerd, or its configuration's version with "
            "--config-version"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPreconditionError(f"cannot run {command[0]!r}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise FailedPreconditionError(f"`{' '.join(command)}` failed: {said}")
    return done.stdout.decode(errors="replace")


def drop_in(plugin: Plugin, version: ConfigVersion, main: Main) -> str:
    """
    The file that makes containerd know *plugin*: it can be imported by *main*, whose settings it keeps.
    """
    parts = [
        f"version = {version}\n",
        # No capabilities: remap-ids and rebase are not true here.
        f"[proxy_plugins.{toml(plugin.name)}]\n"
        f'  type = "snapshot"\n'
        f"  address = {toml(plugin.address)}\n"
        f"  [proxy_plugins.{toml(plugin.name)}.exports]\n"
        f"    root = {toml(plugin.root)}\n",
    ]
    if version > 2:
        others = [entry for entry in _unpack_config(main.values) if entry.get("snapshotter") != plugin.name]
        # With any entry of ours, containerd's own default for overlayfs is gone.
        others = others or [{"platform": "linux", "snapshotter": "overlayfs"}]
        for entry in [*others, {"platform": "linux", "snapshotter": plugin.name}]:
            lines = [f"  {name} = {toml(value)}\n" for name, value in entry.items()]
            parts.append(f"[[plugins.{toml(_TRANSFER)}.unpack_config]]\n" + "".join(lines))
    if plugin.cri and not _by_hand(version, main):
        parts.append(_cri_section(plugin, version))
    return "\n".join(parts)


def _cri_section(plugin: Plugin, version: ConfigVersion) -> str:
    path = ".".join(["plugins", *map(toml, _CRI[version])])
    return f"[{path}]\n  snapshotter = {toml(plugin.name)}\n"


def _by_hand(version: ConfigVersion, main: Main) -> bool:
    # containerd 1.x has a file that is imported replace the sections of a plugin, not merge them.
    return version == 2 and bool(main.section(_CRI[2][0]))


def advice(plugin: Plugin, version: ConfigVersion, release: Version | None, main: Main, path: str) -> list[str]:
    """
    What is to be done beside having the drop-in at *path*.
    """
    lines = []
    directory = os.path.dirname(path)
    imports = f"imports = [{toml(os.path.join(directory, '*.toml'))}]"
    if not main.exists:
        lines.append(f"make {main.path}:\n    version = {version}\n    {imports}")
    elif not main.imports(path):
        lines.append(f"add to {main.path}, above its first section:\n    {imports}")
    if main.exists and version > 2 and main.version < 3:
        lines.append(
            f"{main.path} is of version {main.version}, and containerd before 2.3 forgets its settings of CRI when it "
            f"imports newer ones. Migrate it first:\n    containerd --config {main.path} config migrate"
        )
    if plugin.cri and _by_hand(version, main):
        section = _cri_section(plugin, version).replace("\n", "\n    ").rstrip()
        lines.append(
            f"{main.path} has settings of CRI, which a drop-in would replace. Add the line by hand:\n    {section}"
        )
    if not plugin.cri:
        section = _cri_section(plugin, version).replace("\n", "\n    ").rstrip()
        lines.append(f"Kubernetes goes on with the snapshotter it has; with --cri it uses this one:\n    {section}")
    if version == 2 and (release is None or not release.reads_exports):
        lines.append(
            "containerd before 1.6.32, and 1.7 before 1.7.16, does not read exports: there kubelet sees the disk's "
            f"usage only if the root is {_guessed_root(plugin, main.values)}"
        )
    lines.append("restart containerd, then see what it makes of it:\n    snapshotter setup containerd --check")
    lines.append(f"ctr and nerdctl: --snapshotter {plugin.name}, or CONTAINERD_SNAPSHOTTER={plugin.name}")
    lines.append(
        'k3s: put the file, without its version and unpack_config, behind `{{ template "base" . }}` in\n'
        "    /var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl\n"
        f"and `snapshotter: {plugin.name}` in /etc/rancher/k3s/config.yaml"
    )
    lines.append(
        "BuildKit without containerd needs a daemon with a root and a socket of its own:\n"
        f"    buildkitd --containerd-worker=false --oci-worker=true --oci-worker-snapshotter={plugin.name} "
        "--oci-worker-proxy-snapshotter-path=SOCKET"
    )
    return lines


def missing(plugin: Plugin, dump: str) -> list[str]:
    """
    What containerd's configuration, as ``containerd config dump`` has it, lacks for *plugin*.

    Raises:
        InvalidArgumentError: It is no such dump.
    """
    try:
        values = tomllib.loads(dump)
        version = values["version"]
        cri = _CRI[min(version, 4)]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(f"this is no output of `containerd config dump`: {error!r}") from error
    return [
        *_lacks_plugin(plugin, values),
        *_lacks_unpacking(plugin, values, version),
        *_lacks_cri(plugin, values, cri),
    ]


def _lacks_plugin(plugin: Plugin, values: Mapping[str, Any]) -> Iterator[str]:
    entry = _table(values, "proxy_plugins", plugin.name)
    where = f"proxy_plugins.{plugin.name}"
    if not entry:
        yield f"{where}: there is none; is the drop-in imported?"
        return
    if entry.get("type") not in ("snapshot", "io.containerd.snapshotter.v1"):
        yield f"{where}.type: it is {entry.get('type')!r}, not 'snapshot'"
    if entry.get("address") != plugin.address:
        yield f"{where}.address: it is {entry.get('address')!r}, and the daemon's {plugin.address!r}"
    root = _table(entry, "exports").get("root", _guessed_root(plugin, values))
    if root != plugin.root:
        yield f"{where}.exports.root: kubelet looks for the disk's usage at {root!r}, and the root is {plugin.root!r}"
    for capability in entry.get("capabilities", ()):
        yield f"{where}.capabilities: {capability!r} is not true of this snapshotter"


def _lacks_unpacking(plugin: Plugin, values: Mapping[str, Any], version: int) -> Iterator[str]:
    if version < 3:
        return
    names = [entry.get("snapshotter") for entry in _unpack_config(values)]
    where = f"plugins.{toml(_TRANSFER)}.unpack_config"
    for name in (plugin.name, "overlayfs"):
        if name not in names and (names or name == plugin.name):
            yield f"{where}: there is none for {name!r}, so nothing can be pulled for it"


def _lacks_cri(plugin: Plugin, values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if not plugin.cri:
        return
    disabled = values.get("disabled_plugins", ())
    if {"cri", *path} & set(disabled):
        yield f"disabled_plugins: {', '.join(map(repr, disabled))} has CRI in it"
    elif (name := _table(values, "plugins", *path).get("snapshotter")) != plugin.name:
        yield f"plugins.{'.'.join(map(toml, path))}.snapshotter: it is {name!r}, not {plugin.name!r}"


def _unpack_config(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = _table(values, "plugins", _TRANSFER).get("unpack_config", [])
    if not isinstance(entries, list):
        return []
    return [
        {name: value for name, value in entry.items() if _BARE.fullmatch(name) and isinstance(value, str | bool)}
        for entry in entries
    ]


def _guessed_root(plugin: Plugin, values: Mapping[str, Any]) -> str:
    return os.path.join(str(values.get("root") or "/var/lib/containerd"), f"io.containerd.snapshotter.v1.{plugin.name}")


def _table(values: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """
    The table at *path*; an empty one where there is none.
    """
    for name in path:
        found = values.get(name)
        values = cast(Mapping[str, Any], found) if isinstance(found, dict) else {}
    return values
