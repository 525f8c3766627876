"""
The daemon's configuration: a TOML file, overridden by environment variables, overridden by flags.
"""

import contextlib
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from snapshotter.errors import InvalidArgumentError
from snapshotter.events import LogFormat, LogLevel
from snapshotter.model import UsageDefinition
from snapshotter.store.volumes import MountMode
from snapshotter.text import nearest, printable

VERSION = 1
FILE = "/etc/btrfs-snapshotter/config.toml"
PREFIX = "SNAPSHOTTER_"
FILE_VARIABLE = f"{PREFIX}CONFIG"
ADDRESS_SIZE = 107  # bytes: the kernel's limit for the path of a socket


@dataclass(frozen=True, slots=True)
class Config:
    """
    The values of all settings; `SETTINGS` describes each.
    """

    root: str = "/var/lib/btrfs-snapshotter"
    address: str = "/run/btrfs-snapshotter/snapshotter.sock"
    usage: UsageDefinition = "added"
    mount_mode: MountMode = "auto"
    verify: bool = True
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    metrics_address: str = ""


class Setting(NamedTuple):
    """
    A setting: a key of the file, an environment variable and a flag.

    Args:
        text: The meaning of the setting.
        expected: The valid values, in words.
        valid: Returns whether a value is valid.
        parse: Returns the value for the text of a variable or a flag; the text itself if it has none.
    """

    text: str
    expected: str
    valid: Callable[[Any], bool]
    parse: Callable[[str], Any] = str


class Loaded(NamedTuple):
    """
    A configuration, and the origin of each of its settings: a file, a variable, a flag or ``"default"``.
    """

    config: Config
    origins: Mapping[str, str]


def find(given: str | None, environ: Mapping[str, str]) -> str | None:
    """
    Return the configuration file: *given*, else the file that *environ* names, else `FILE`; None if `FILE` is missing.
    """
    if given is not None:
        return given
    if named := environ.get(FILE_VARIABLE):
        return named
    with contextlib.suppress(FileNotFoundError):
        os.stat(FILE)
        return FILE
    return None


def check_variables(names: Iterable[str]) -> None:
    """
    Check that each of *names* that begins with `PREFIX` is the variable of a setting or of the file.

    Raises:
        InvalidArgumentError: A variable is unknown.
    """
    known = {FILE_VARIABLE, *map(_variable, SETTINGS)}
    for name in names:
        if name.startswith(PREFIX) and name not in known:
            raise InvalidArgumentError(
                f"unknown environment variable {name!r}: did you mean {nearest(name, known)!r}? If not, unset it"
            )


def load(file: str | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded:
    """
    Return the configuration of the TOML *file*, if any, overridden by *environ* and then by *flags*.

    *flags* has a text for each setting given, by name. An empty environment variable counts as unset.

    Raises:
        InvalidArgumentError: The file cannot be read, or has another version or an unknown key; a value is invalid.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")

    def put(name: str, value: Any, origin: str) -> None:
        setting = SETTINGS[name]
        if not setting.valid(value):
            raise InvalidArgumentError(f"{origin}: {name} is {value!r}, but must be {setting.expected}")
        values[name], origins[name] = value, origin

    if file is not None:
        for name, value in _read(file).items():
            put(name, value, file)
    for name, setting in SETTINGS.items():
        variable = _variable(name)
        if text := environ.get(variable):
            put(name, setting.parse(text), variable)
    for name, text in flags.items():
        put(name, SETTINGS[name].parse(text), flag(name))
    return Loaded(Config(**values), origins)


def _read(file: str) -> dict[str, Any]:
    import tomllib  # here, because most starts read no file

    try:
        with open(file, "rb") as opened:
            values = tomllib.load(opened)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the configuration {file!r}: {error.strerror}") from error
    except ValueError as error:  # invalid TOML or UTF-8
        raise InvalidArgumentError(f"{file}: {error}") from error
    version = values.pop("version", None)
    if type(version) is not int or version != VERSION:
        found = "is missing" if version is None else f"is {version!r}"
        raise InvalidArgumentError(f"{file}: version {found}: this release reads `version = {VERSION}`")
    for name in values:
        if name not in SETTINGS:
            raise InvalidArgumentError(f"{file}: unknown setting {name!r}: did you mean {nearest(name, SETTINGS)!r}?")
    return values


def flag(name: str) -> str:
    """
    Return the flag of the setting *name*.
    """
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def default() -> str:
    """
    Return a file with the default of each setting, below a comment that explains it.
    """
    parts = [f"version = {VERSION}\n"]
    for name, setting in SETTINGS.items():
        comment = textwrap.fill(setting.text, 100, initial_indent="# ", subsequent_indent="# ")
        parts.append(f"{comment}\n# Valid: {setting.expected}.\n{name} = {toml(getattr(DEFAULTS, name))}\n")
    return "\n".join(parts)


def dump(loaded: Loaded) -> str:
    """
    Return a file with the value of each setting in force, and its origin in a comment.
    """
    lines = [
        f"{name} = {toml(getattr(loaded.config, name))}  # {printable(origin)}"
        for name, origin in loaded.origins.items()
    ]
    return "\n".join([f"version = {VERSION}", *lines, ""])


def toml(value: Any) -> str:
    """
    Return a string or a boolean as TOML, which differs from JSON in one character.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- the settings


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value


def _is_address(value: Any) -> bool:
    return _is_path(value) and len(os.fsencode(value)) <= ADDRESS_SIZE


def _is_listener(value: Any) -> bool:
    return value == "" or _is_address(value) or (isinstance(value, str) and bool(re.fullmatch(r".+:[0-9]{1,5}", value)))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _parse_bool(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text, text)


def _choice(text: str, choices: tuple[str, ...]) -> Setting:
    return Setting(text, " or ".join(map(toml, choices)), lambda value: value in choices)


DEFAULTS = Config()

SETTINGS = {
    "root": Setting(
        "The store: a directory on btrfs. If it is missing or empty, a store is created.",
        "an absolute path",
        _is_path,
    ),
    "address": Setting(
        "The unix socket to serve at. A socket from systemd takes its place.",
        f"an absolute path of at most {ADDRESS_SIZE} bytes",
        _is_address,
    ),
    "usage": _choice(
        'The answer of Usage: "added", the bytes that a snapshot added on disk, or "containerd", the whole size of '
        "each file that differs from the parent's.",
        get_args(UsageDefinition),
    ),
    "mount_mode": _choice(
        'The mounts of snapshots: "btrfs", the device with subvolid, or "bind", the path of the subvolume. "auto" is '
        '"bind" in a user namespace, else "btrfs".',
        get_args(MountMode),
    ),
    "verify": Setting(
        "Whether Commit checks that the disk took the data.",
        "true or false",
        _is_bool,
        _parse_bool,
    ),
    "log_level": _choice(
        "The lowest level to log.",
        get_args(LogLevel),
    ),
    "log_format": _choice(
        "The format of the log's lines.",
        get_args(LogFormat),
    ),
    "metrics_address": Setting(
        "The address at which Prometheus reads metrics: a unix socket, or HOST:PORT; empty for no metrics.",
        'an absolute path, "HOST:PORT" or ""',
        _is_listener,
    ),
}
