"""
What the daemon is told: by a TOML file, by the environment over it, and by flags over both.
"""

import json
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple, get_args

from snapshotter.errors import InvalidArgumentError
from snapshotter.events import LogFormat, LogLevel
from snapshotter.model import UsageDefinition
from snapshotter.store.volumes import MountMode
from snapshotter.text import printable

VERSION = 1
PREFIX = "SNAPSHOTTER_"
ADDRESS_SIZE = 107  # bytes of a socket's path: the kernel has no room for more


def _setting(text: str, expected: str, valid: Callable[[Any], bool]) -> dict[str, Any]:
    return {"text": text, "expected": expected, "valid": valid}


def _choice(text: str, *choices: Any) -> dict[str, Any]:
    def valid(value: Any) -> bool:
        return any(value == choice and type(value) is type(choice) for choice in choices)  # 1 equals true

    return _setting(text, " or ".join(map(toml, choices)), valid)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value


def _is_address(value: Any) -> bool:
    return _is_path(value) and len(os.fsencode(value)) <= ADDRESS_SIZE


def _is_listener(value: Any) -> bool:
    return value == "" or _is_address(value) or (isinstance(value, str) and bool(re.fullmatch(r".+:[0-9]{1,5}", value)))


def toml(value: Any) -> str:
    """
    A string or a boolean as TOML writes it, which is as JSON does but for one character.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True, slots=True)
class Config:
    """
    The settings of the daemon; each is a key of the file, an environment variable and a flag.
    """

    root: str = field(
        default="/var/lib/btrfs-snapshotter",
        metadata=_setting(
            "The store: a directory on btrfs. Where it is missing or empty, a store is made.",
            "an absolute path",
            _is_path,
        ),
    )
    address: str = field(
        default="/run/btrfs-snapshotter/snapshotter.sock",
        metadata=_setting(
            "The unix socket to serve at. One that systemd hands over takes its place.",
            f"an absolute path of at most {ADDRESS_SIZE} bytes",
            _is_address,
        ),
    )
    usage: UsageDefinition = field(
        default="added",
        metadata=_choice(
            'What Usage answers: "added", the bytes that a snapshot added on disk, or "containerd", the whole size of '
            "each file that differs from the parent's.",
            *get_args(UsageDefinition),
        ),
    )
    mount_mode: MountMode = field(
        default="btrfs",
        metadata=_choice(
            'How snapshots are mounted: "btrfs", the device by subvolid, or "bind", the path of the subvolume.',
            *get_args(MountMode),
        ),
    )
    verify: bool = field(
        default=True,
        metadata=_choice("Whether Commit finds out if the disk took the data.", True, False),
    )
    log_level: LogLevel = field(
        default="info",
        metadata=_choice("What is logged, with all that is worse.", *get_args(LogLevel)),
    )
    log_format: LogFormat = field(
        default="text",
        metadata=_choice("What a line of the log looks like.", *get_args(LogFormat)),
    )
    metrics_address: str = field(
        default="",
        metadata=_setting(
            "Where Prometheus reads metrics: a unix socket, or HOST:PORT; nowhere when empty.",
            'an absolute path, "HOST:PORT" or ""',
            _is_listener,
        ),
    )


SETTINGS: dict[str, Field[Any]] = {setting.name: setting for setting in fields(Config)}


class Loaded(NamedTuple):
    """
    A configuration, and where each of its settings comes from.
    """

    config: Config
    origins: Mapping[str, str]


def flag(name: str) -> str:
    """
    The flag of the setting *name*.
    """
    return "--" + name.replace("_", "-")


def load(file: str | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded:
    """
    Read the TOML *file*, if there is one, and put *environ* and *flags*, as text by the setting's name, over it.

    An empty environment variable is one that is not set.

    Raises:
        InvalidArgumentError: The file cannot be read, has another version or an unknown key; a value is wrong.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")

    def put(name: str, value: Any, origin: str) -> None:
        metadata = SETTINGS[name].metadata
        if not metadata["valid"](value):
            raise InvalidArgumentError(f"{origin}: {name} is {value!r}, and has to be {metadata['expected']}")
        values[name], origins[name] = value, origin

    if file is not None:
        for name, value in _read(file).items():
            put(name, value, file)
    for name in SETTINGS:
        variable = PREFIX + name.upper()
        if text := environ.get(variable):
            put(name, _parsed(name, text), variable)
    for name, text in flags.items():
        put(name, _parsed(name, text), flag(name))
    return Loaded(Config(**values), origins)


def _parsed(name: str, text: str) -> Any:
    if isinstance(SETTINGS[name].default, bool):
        return {"true": True, "false": False}.get(text, text)
    return text


def _read(file: str) -> dict[str, Any]:
    import tomllib  # here and below: what reads no file shall not wait for it

    try:
        with open(file, "rb") as opened:
            values = tomllib.load(opened)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the configuration {file!r}: {error.strerror}") from error
    except ValueError as error:  # of the TOML, or of its UTF-8
        raise InvalidArgumentError(f"{file}: {error}") from error
    version = values.pop("version", None)
    if type(version) is not int or version != VERSION:
        found = "is missing" if version is None else f"is {version!r}"
        raise InvalidArgumentError(f"{file}: version {found}: this release reads `version = {VERSION}`")
    for name in values:
        if name not in SETTINGS:
            import difflib

            [nearest] = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.0)
            raise InvalidArgumentError(f"{file}: there is no setting {name!r}: the nearest is {nearest!r}")
    return values


def default() -> str:
    """
    A file that says what holds without one, with a comment at each setting.
    """
    parts = [f"version = {VERSION}\n"]
    for name, setting in SETTINGS.items():
        comment = textwrap.fill(setting.metadata["text"], 100, initial_indent="# ", subsequent_indent="# ")
        parts.append(f"{comment}\n# It has to be {setting.metadata['expected']}.\n{name} = {toml(setting.default)}\n")
    return "\n".join(parts)


def dump(loaded: Loaded) -> str:
    """
    A file that says what is in force, and where from.
    """
    lines = [
        f"{name} = {toml(getattr(loaded.config, name))}  # {printable(origin)}"
        for name, origin in loaded.origins.items()
    ]
    return "\n".join([f"version = {VERSION}", *lines, ""])
