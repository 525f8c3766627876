"""
Declaration of commands, and the arguments that several commands share.
"""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from pybtrfs import tree_search
from pybtrfs.size import parse
from snapshotter.cli.codes import DONE, complain
from snapshotter.contract import Snapshotter
from snapshotter.contract.labels import check_key
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError, StoreHeldError, quoted
from snapshotter.model import LOCAL
from snapshotter.text import nearest

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from snapshotter.client import Client
    from snapshotter.daemon.config import Loaded

Run = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """
    An argument parser that raises InvalidArgumentError instead of exiting.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InvalidArgumentError(f"{message} (see `{self.prog} --help`)")

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        # argparse ignores an error of the file; but help that could not be written is no success.
        if message:
            (file or sys.stderr).write(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and isinstance(value, str) and value not in action.choices:
            known = nearest(value, action.choices)
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}: did you mean {known!r}?")
        super()._check_value(action, value)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        values = super()._get_values(action, arg_strings)
        if values == [] and action.nargs is None:  # some Pythons drop every "--", not only the first
            self.error(f"argument {action.metavar}: '--' is not accepted as a value after '--'")
        return values


class Commands:
    """
    The commands below *parser*.

    Args:
        lines: The line of help of each command, by its name.
    """

    def __init__(self, parser: argparse.ArgumentParser, lines: Mapping[str, str], metavar: str = "COMMAND") -> None:
        self._lines = lines
        self._parsers = parser.add_subparsers(metavar=metavar, required=True, parser_class=Parser)

    def add(self, name: str, run: Run | None, *parents: Parser, example: str = "") -> Parser:
        """
        Declare the command *name*, and return its parser.

        Args:
            run: Called with the parsed arguments, returns the exit code; None if the command has commands below it.
            parents: Parsers of shared arguments; ``--root`` and ``--config`` are always added.
        """
        text = self._lines[name]
        parser = self._parsers.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example: {example}" if example else None,
            parents=[STORE, *parents],
        )
        parser.set_defaults(run=run)
        return parser


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def key(text: str) -> str:
    """
    Return *text* if it is a valid key or name of a snapshot.
    """
    try:
        check_key(text)
    except InvalidArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def parent(text: str) -> str:
    """
    Return *text* if it is a valid key, or empty for a snapshot without parent.
    """
    return text and key(text)


def size(text: str) -> int:
    """
    Return the number of bytes that *text* means, as in ``20G``.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """
    Return the number, not negative, that *text* means.
    """
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def seconds(text: str) -> float:
    """
    Return the positive number of seconds that *text* means.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _shared(*flags: str, **options: Any) -> Parser:
    parser = Parser(add_help=False)
    parser.add_argument(*flags, **options)
    return parser


STORE = _shared(
    "--root",
    metavar="DIR",
    default=argparse.SUPPRESS,
    help="root of the store (default: $SNAPSHOTTER_ROOT, else the root in the configuration, else "
    "/var/lib/btrfs-snapshotter)",
)
STORE.add_argument(
    "--config",
    metavar="FILE",
    default=argparse.SUPPRESS,
    help="configuration (default: $SNAPSHOTTER_CONFIG, else /etc/btrfs-snapshotter/config.toml if it exists)",
)
JSON = _shared("--json", action="store_true", help="print JSON in the format of docs/cli.md and schema.json")
BYTES = _shared("--bytes", action="store_true", help="print sizes in bytes")
NO_TRUNC = _shared("--no-trunc", action="store_true", help="show whole keys and all columns on a narrow terminal")
LABELS = _shared(
    "--label", metavar="KEY=VALUE", type=_label, action="append", default=[], help="set a label, repeatable"
)
TIMEOUT = _shared(
    "--timeout",
    metavar="SECONDS",
    type=seconds,
    default=30.0,
    help="give up if a daemon that has the store does not answer a call for so long (default: 30)",
)
KEY = _shared("key", metavar="KEY", type=key)
KEYS = _shared("keys", metavar="KEY", nargs="+", type=key)


def root(arguments: argparse.Namespace) -> str:
    """
    Return the root directory of the store: of ``--root``, else the environment, else the configuration.

    Only ``serve`` and ``setup`` demand an absolute path.
    """
    given: str | None = getattr(arguments, "root", None)
    if given == "":
        raise InvalidArgumentError("--root '' is empty: give the root of a store")
    return given or os.environ.get("SNAPSHOTTER_ROOT") or load_settings(arguments).config.root


def check_environment() -> None:
    """
    Raise InvalidArgumentError for an unknown variable ``SNAPSHOTTER_...``.
    """
    # Importing the settings would be a good part of the time of most commands.
    if any(name.startswith("SNAPSHOTTER_") and name != "SNAPSHOTTER_ROOT" for name in os.environ):
        from snapshotter.daemon import config

        config.check_variables(os.environ)


def reading(arguments: argparse.Namespace) -> Snapshotter:
    """
    Return the store, opened read-only and without taking its lock.
    """
    return Snapshotter(root(arguments), read_only=True, client=None)


def measuring(arguments: argparse.Namespace) -> Snapshotter:
    """
    Return the store like `reading`, for commands that measure or compare. Say so if they have to walk over all files.
    """
    store = reading(arguments)
    if not tree_search.is_permitted(store.root):
        complain("without CAP_SYS_ADMIN all files are walked over, and a size is that of whole changed files", DONE)
    return store


@contextlib.contextmanager
def exclusive(command: str) -> Iterator[None]:
    """
    Name *command* in the error if another process holds the store, because no daemon can run it.
    """
    try:
        yield
    except StoreHeldError as error:
        raise StoreHeldError(f"{command} needs exclusive access to the store: {error}") from error


def changing(arguments: argparse.Namespace) -> "Snapshotter | Client":
    """
    Return the store for changes, as the client that it is bound to: opened here, or through the daemon that holds it.
    """
    return _open(arguments)[0]


def creating(arguments: argparse.Namespace) -> "Snapshotter | Client":
    """
    Return the store like `changing`, for commands that create snapshots.

    Raises:
        FailedPreconditionError: The store is bound to another client than this command, such as containerd.
    """
    store, client = _open(arguments)
    if client != LOCAL:
        store.close()
        raise FailedPreconditionError(
            f"the store belongs to client {quoted(client)}, and containerd's garbage collection deletes snapshots that "
            "containerd did not create: create another store with `snapshotter init --root DIR`"
        )
    return store


def _open(arguments: argparse.Namespace) -> tuple["Snapshotter | Client", str]:
    try:
        store = Snapshotter(root(arguments), client=None)
        return store, store.client
    except StoreHeldError as error:
        if not error.socket:
            raise
        from snapshotter.client import Client

        client = error.client or LOCAL
        text = f"waiting for the daemon at {error.socket!r}, at most {arguments.timeout:g} s (--timeout)"

        def waiting() -> None:
            complain(text, DONE)

        return Client(error.socket, snapshotter=client, timeout=arguments.timeout, waiting=waiting), client


def daemon_place() -> Parser:
    """
    Return a parser of the flag that locates a daemon.
    """
    parser = Parser(add_help=False)
    parser.add_argument("--address", metavar="SOCKET", help="socket of the daemon")
    return parser


def daemon_settings() -> Parser:
    """
    Return a parser of the flags of all settings of the daemon, but ``--root``.
    """
    from snapshotter.daemon import config

    parser = Parser(add_help=False, parents=[daemon_place()])
    for name, setting in config.SETTINGS.items():
        if name not in ("root", "address"):
            parser.add_argument(config.flag(name), metavar="VALUE", dest=name, help=setting.expected)
    return parser


def load_settings(arguments: argparse.Namespace) -> "Loaded":
    """
    Return the settings of the daemon: flags override the environment, which overrides the configuration file.
    """
    from snapshotter.daemon import config

    flags = {name: text for name in config.SETTINGS if (text := getattr(arguments, name, None)) is not None}
    return config.load(config.find(getattr(arguments, "config", None), os.environ), os.environ, flags)
