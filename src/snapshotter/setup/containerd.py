"""
containerd's configuration for a daemon: the drop-in file, advice on further steps, and a check of the result.
"""

import contextlib
import os
import re
import subprocess
import tomllib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, cast

from snapshotter.daemon.config import toml
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError

ConfigVersion = Literal[1, 2, 3, 4]

CLIENTS = ("nerdctl", "k3s", "rke2", "dockerd", "buildkitd")  # programs on which `advice` has something to say

# containerd fails to start if a proxy plugin has the name of a built-in one. The last two names are built into k3s.
BUILT_IN = {"aufs", "blockfile", "btrfs", "devmapper", "erofs", "native", "overlayfs", "windows", "windows-lcow", "zfs"}
BUILT_IN |= {"fuse-overlayfs", "stargz"}

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)
_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_IMPORTS = re.compile(r"^[ \t]*imports[ \t]*=[ \t]*\[", re.MULTILINE)
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")
_CRI = {
    2: ("io.containerd.grpc.v1.cri", "containerd"),
    3: ("io.containerd.cri.v1.images",),
    4: ("io.containerd.cri.v1.images",),
}
_KERNEL = re.compile(r"(\d+)\.(\d+)", re.ASCII)
_REMAP_IDS = "remap-ids"
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
        The newest version of the configuration file that this release reads.
        """
        if self < (2, 0, 0):
            return 2
        return 3 if self < (2, 3, 0) else 4

    @property
    def reads_exports(self) -> bool:
        """
        Whether this release reads ``exports``, which has the root of a proxy plugin.
        """
        return self >= (1, 7, 16) or (1, 6, 32) <= self < (1, 7, 0)


@dataclass(frozen=True, slots=True)
class Plugin:
    """
    The daemon as containerd sees it.

    Args:
        name: The name of the snapshotter for containerd's clients.
        cri: Whether CRI, and so Kubernetes, uses the snapshotter.
        maps_ids: Whether the kernel can map the ids of a mount of btrfs.
        runtime_class: The handler of the RuntimeClass whose pods use the snapshotter, if not all do.
    """

    name: str
    root: str
    address: str
    cri: bool = False
    maps_ids: bool = False
    runtime_class: str = ""

    def __post_init__(self) -> None:
        if self.name in BUILT_IN:
            raise InvalidArgumentError(
                f"{self.name!r} is a built-in snapshotter, and containerd does not start with two of one name: choose "
                "another name with --name"
            )
        if len(self.name) > 76 or not _IDENTIFIER.fullmatch(self.name):
            raise InvalidArgumentError(
                f"{self.name!r} is not a valid name for containerd: use at most 76 letters and digits, with single "
                "dots, dashes or underscores between them"
            )
        for path in (self.root, self.address):
            try:
                path.encode()
            except UnicodeEncodeError as error:
                raise InvalidArgumentError(
                    f"{path!r} is not UTF-8, which containerd's configuration requires"
                ) from error


class Main(NamedTuple):
    """
    containerd's main configuration file.
    """

    path: str
    values: Mapping[str, Any]
    exists: bool = True
    text: str = ""

    @property
    def version(self) -> int:
        version = self.values.get("version", 1)
        return version if isinstance(version, int) else 1

    def section(self, plugin: str) -> Mapping[str, Any]:
        return _table(self.values, "plugins", plugin)

    def imports(self, path: str) -> bool:
        """
        Return whether containerd imports the file *path*.
        """
        directory = os.path.dirname(os.path.abspath(self.path))
        return any(
            isinstance(pattern, str)
            # containerd 1.x resolves relative patterns from its working directory, so they may match elsewhere.
            and (os.path.isabs(pattern) or "*" not in pattern)
            and PurePath(path).match(os.path.join(directory, pattern))
            for pattern in self.values.get("imports", ())
        )


def installed(containerd: str) -> Version:
    """
    Return the version of the program *containerd*, a path or a name in ``$PATH``.

    Raises:
        FailedPreconditionError: The program is missing, fails, or does not print a version.
    """
    said = _run(containerd, "--version")
    found = _VERSION.search(said)
    if not found:
        raise FailedPreconditionError(f"{containerd!r} printed no version, but {said.strip()!r}: use --config-version")
    return Version(*map(int, found.groups()))


def read_main(path: str) -> Main:
    """
    Return containerd's main configuration file; a missing file is like an empty one.

    Raises:
        InvalidArgumentError: The file cannot be read, or is not TOML.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        return Main(path, tomllib.loads(text), text=text)
    except FileNotFoundError:
        return Main(path, {}, exists=False)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read containerd's configuration {path!r}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error


def dumped(containerd: str, main: str) -> str:
    """
    Return the configuration that containerd uses, as TOML: the defaults if the file *main* is missing.
    """
    if not os.path.exists(main):
        return _run(containerd, "config", "default")
    return _run(containerd, "--config", main, "config", "dump")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except FileNotFoundError as error:
        raise FailedPreconditionError(
            f"there is no program {command[0]!r}: give its path with --containerd, or the version of its configuration "
            "with --config-version"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPreconditionError(f"cannot run {command[0]!r}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise FailedPreconditionError(f"`{' '.join(command)}` failed: {said}")
    return done.stdout.decode(errors="replace")


def drop_in_version(newest: ConfigVersion, main: Main) -> ConfigVersion:
    """
    Return the version of a drop-in for a containerd whose newest version of the configuration file is *newest*.

    containerd 1.x applies the version of the drop-in to *main*, too. In version 2 it refuses short names of plugins,
    such as those in the file of Docker's packages, which has version 1.
    """
    return 1 if newest == 2 and main.exists and main.version == 1 else newest


def drop_in_path(plugin: Plugin, main: Main) -> str:
    """
    Return the usual path of the drop-in for *plugin* beside *main*.
    """
    return os.path.join(os.path.dirname(main.path), "conf.d", f"{plugin.name}.toml")


def drop_in(plugin: Plugin, version: ConfigVersion, main: Main) -> str:
    """
    Return the file that declares *plugin* to containerd, for import by *main*, whose settings stay in force.
    """
    parts = [f"version = {version}\n", proxy_section(plugin, version)]
    if version > 2:
        others = [entry for entry in _unpack_config(main.values) if entry.get("snapshotter") != plugin.name]
        # An entry here removes containerd's default entry for overlayfs, so repeat it.
        others = others or [{"platform": "linux", "snapshotter": "overlayfs"}]
        # Without the daemon's plugin, an entry that is not optional keeps CRI from starting.
        ours: dict[str, str | bool] = {"platform": "linux", "snapshotter": plugin.name}
        if version > 3:
            ours["optional"] = True
        for entry in [*others, ours]:
            lines = [f"  {name} = {toml(value)}\n" for name, value in entry.items()]
            parts.append(f"[[plugins.{toml(_TRANSFER)}.unpack_config]]\n" + "".join(lines))
    if plugin.cri and not _by_hand(version, main):
        parts.append(_cri_section(plugin, version))
    if plugin.runtime_class:
        parts.append(_runtime_sections(plugin, version))
    return "\n".join(parts)


def proxy_section(plugin: Plugin, version: ConfigVersion) -> str:
    """
    Return the section that declares *plugin*.
    """
    name = toml(plugin.name)
    capabilities = f'  capabilities = ["{_REMAP_IDS}"]\n' if _remaps(plugin, version) else ""
    return (
        f"[proxy_plugins.{name}]\n"
        f'  type = "snapshot"\n'
        f"  address = {toml(plugin.address)}\n"
        f"{capabilities}"
        f"  [proxy_plugins.{name}.exports]\n"
        f"    root = {toml(plugin.root)}\n"
    )


def kernel_maps_ids(release: str) -> bool:
    """
    Return whether the kernel *release*, such as ``"6.1.0-18-amd64"``, can map the ids of a mount of btrfs.

    The version decides, because at setup there may be no btrfs to try.
    """
    version = _KERNEL.match(release)
    return version is not None and (int(version[1]), int(version[2])) >= (5, 15)


def _remaps(plugin: Plugin, version: int) -> bool:
    return plugin.maps_ids and version > 2  # containerd 1.x maps no ids


def importing(main: Main, path: str, version: ConfigVersion) -> str:
    """
    Return the text of *main* with an import of the drop-in *path*; all else stays as it is.

    Raises:
        FailedPreconditionError: The imports of *main* have a form that cannot be extended.
    """
    if main.imports(path):
        return main.text
    if not main.exists:
        return f"version = {version}\nimports = [{toml(path)}]\n"
    if "imports" in main.values:
        text = _IMPORTS.sub(lambda begin: f"{begin[0]}{toml(path)}, ", main.text, count=1)
    else:
        text = f"imports = [{toml(path)}]\n{main.text}"
    with contextlib.suppress(ValueError):
        if tomllib.loads(text) == {**main.values, "imports": [path, *main.values.get("imports", ())]}:
            return text
    raise FailedPreconditionError(f"cannot extend the imports of {main.path!r}: add {toml(path)} to them by hand")


def _cri_section(plugin: Plugin, version: ConfigVersion) -> str:
    path = ".".join(["plugins", *map(toml, _CRI[version])])
    return f"[{path}]\n  snapshotter = {toml(plugin.name)}\n"


def _runtime_sections(plugin: Plugin, version: ConfigVersion) -> str:
    if version < 3:
        raise FailedPreconditionError("a RuntimeClass with a snapshotter of its own needs containerd 2")
    name = toml(plugin.runtime_class)
    return (
        f'[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}]\n'
        f'  runtime_type = "io.containerd.runc.v2"\n'
        f"  snapshotter = {toml(plugin.name)}\n"
        "\n"
        f'[plugins."io.containerd.cri.v1.images".runtime_platforms.{name}]\n'
        f"  snapshotter = {toml(plugin.name)}\n"
    )


def _by_hand(version: ConfigVersion, main: Main) -> bool:
    # In containerd 1.x an imported file replaces the section of a plugin instead of merging it.
    return version == 1 or (version == 2 and bool(main.section(_CRI[2][0])))


def advice(
    plugin: Plugin,
    version: ConfigVersion,
    release: Version | None,
    main: Main,
    path: str,
    programs: Container[str] = (),
) -> list[str]:
    """
    Return the steps that remain once the drop-in is at *path*.

    Args:
        release: The release of containerd; None if unknown.
        programs: The programs on this machine.
    """
    lines = []
    directory = os.path.dirname(path)
    imports = f"imports = [{toml(os.path.join(directory, '*.toml'))}]"
    if not main.exists:
        lines.append(f"create {main.path}:\n    version = {version}\n    {imports}")
    elif not main.imports(path):
        lines.append(f"add to {main.path}, above its first section:\n    {imports}")
    if main.exists and version == 3 and main.version < 3:
        lines.append(
            f"{main.path} has version {main.version}, and containerd before 2.3 loses its CRI settings when it imports "
            f"a newer version. Migrate it first:\n    containerd --config {main.path} config migrate"
        )
    section = _cri_section(plugin, version).replace("\n", "\n    ").rstrip() if version > 1 else ""
    if plugin.cri and version == 1:
        lines.append(
            f'{main.path} has version 1, in which CRI cannot be configured here. Add "version = 2" to it, write the '
            f'names of disabled plugins in full ("{_CRI[2][0]}" for "cri"), and repeat this command'
        )
    elif plugin.cri and _by_hand(version, main):
        lines.append(
            f"{main.path} has CRI settings, which a drop-in would replace. Add this line by hand:\n    {section}"
        )
    elif not plugin.cri and not plugin.runtime_class and section:
        lines.append(f"Kubernetes keeps its present snapshotter; with --cri it uses this one:\n    {section}")
    if version <= 2 and (release is None or not release.reads_exports):
        lines.append(
            "containerd before 1.6.32, and 1.7 before 1.7.16, ignores exports: kubelet then sees the disk usage only "
            f"if the root is {_guessed_root(plugin, main.values)}"
        )
    lines.append("restart containerd, then check its configuration:\n    snapshotter setup containerd --check")
    clients = " and ".join(["ctr", *(["nerdctl"] if "nerdctl" in programs else [])])
    lines.append(f"{clients}: --snapshotter {plugin.name}, or CONTAINERD_SNAPSHOTTER={plugin.name}")
    for program, other in (("k3s", "containerd --for k3s"), ("rke2", "containerd --for rke2"), ("dockerd", "docker")):
        if program in programs:
            lines.append(f"{program} has settings of its own:\n    snapshotter setup {other}")
    if "buildkitd" in programs:
        lines.append(
            "BuildKit without containerd needs its own daemon, with its own root and socket:\n"
            f"    buildkitd --containerd-worker=false --oci-worker=true --oci-worker-snapshotter={plugin.name} "
            "--oci-worker-proxy-snapshotter-path=SOCKET"
        )
    return lines


def missing(plugin: Plugin, dump: str) -> list[str]:
    """
    Return a line for each setting that *plugin* needs and *dump*, an output of ``containerd config dump``, lacks.

    Raises:
        InvalidArgumentError: *dump* is not an output of ``containerd config dump``.
    """
    try:
        values = tomllib.loads(dump)
        version = values["version"]
        cri = _CRI[min(version, 4)]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(f"the input is not an output of `containerd config dump`: {error!r}") from error
    return [
        *_lacks_plugin(plugin, values, version),
        *_lacks_unpacking(plugin, values, version),
        *_lacks_cri(plugin, values, cri),
        *_lacks_runtime(plugin, values),
    ]


def _lacks_plugin(plugin: Plugin, values: Mapping[str, Any], version: int) -> Iterator[str]:
    entry = _table(values, "proxy_plugins", plugin.name)
    where = f"proxy_plugins.{plugin.name}"
    if not entry:
        yield f"{where}: missing; check that the drop-in is imported"
        return
    if entry.get("type") not in ("snapshot", "io.containerd.snapshotter.v1"):
        yield f"{where}.type: is {entry.get('type')!r}, has to be 'snapshot'"
    if entry.get("address") != plugin.address:
        yield f"{where}.address: is {entry.get('address')!r}, but the daemon's is {plugin.address!r}"
    root = _table(entry, "exports").get("root", _guessed_root(plugin, values))
    if plugin.cri and root != plugin.root:
        yield f"{where}.exports.root: kubelet measures disk usage at {root!r}, but the root is {plugin.root!r}"
    capabilities = entry.get("capabilities", ())
    supported = {_REMAP_IDS} if _remaps(plugin, version) else set()
    for capability in capabilities:
        if capability not in supported:
            yield f"{where}.capabilities: this snapshotter does not support {capability!r} here"
    for capability in supported.difference(capabilities):
        yield f"{where}.capabilities: lacks {capability!r}, so a container with a user namespace copies its image"


def _lacks_unpacking(plugin: Plugin, values: Mapping[str, Any], version: int) -> Iterator[str]:
    if version < 3:
        return
    names = [entry.get("snapshotter") for entry in _unpack_config(values)]
    where = f"plugins.{toml(_TRANSFER)}.unpack_config"
    for name in (plugin.name, "overlayfs"):
        if name not in names and (names or name == plugin.name):
            yield f"{where}: no entry for {name!r}, so images cannot be pulled for it"


def _lacks_cri(plugin: Plugin, values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if not plugin.cri:
        return
    disabled = values.get("disabled_plugins", ())
    if {"cri", *path} & set(disabled):
        yield f"disabled_plugins: {', '.join(map(repr, disabled))} disables CRI"
    elif (name := _table(values, "plugins", *path).get("snapshotter")) != plugin.name:
        yield f"plugins.{'.'.join(map(toml, path))}.snapshotter: is {name!r}, has to be {plugin.name!r}"


def _lacks_runtime(plugin: Plugin, values: Mapping[str, Any]) -> Iterator[str]:
    if not plugin.runtime_class:
        return
    for path in (
        ("io.containerd.cri.v1.runtime", "containerd", "runtimes", plugin.runtime_class),
        ("io.containerd.cri.v1.images", "runtime_platforms", plugin.runtime_class),
    ):
        if (name := _table(values, "plugins", *path).get("snapshotter")) != plugin.name:
            yield f"plugins.{'.'.join(map(toml, path))}.snapshotter: is {name!r}, has to be {plugin.name!r}"


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
    Return the table at *path*, or an empty table if it is missing.
    """
    for name in path:
        found = values.get(name)
        values = cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}
    return values
