"""
The arguments that commands share, and how a command is declared.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from pybtrfs.size import parse
from snapshotter.contract import Snapshotter
from snapshotter.contract.labels import check_key
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError, StoreHeldError, quoted
from snapshotter.model import LOCAL

if TYPE_CHECKING:
    from snapshotter.client import Client
    from snapshotter.daemon.config import Loaded

Run = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """
    One whose complaint is an InvalidArgumentError.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InvalidArgumentError(f"{message} (see `{self.prog} --help`)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        values = super()._get_values(action, arg_strings)
        if values == [] and action.nargs is None:  # some Pythons take each "--" for the end of the options
            self.error(f"argument {action.metavar}: '--' behind '--' is no value here")
        return values


class Commands:
    """
    The commands of *parser*, or those below one of its commands.

    Args:
        lines: A line of help for each command, by its name.
    """

    def __init__(self, parser: argparse.ArgumentParser, lines: Mapping[str, str], metavar: str = "COMMAND") -> None:
        self._lines = lines
        self._parsers = parser.add_subparsers(metavar=metavar, required=True, parser_class=Parser)

    def add(self, name: str, run: Run | None, *parents: Parser, example: str = "") -> Parser:
        """
        Declare a command that calls *run*; None is for one with commands below it.

        Args:
            parents: Parsers whose arguments it takes, besides ``--root``.
        """
        text = self._lines[name]
        parser = self._parsers.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example: {example}" if example else None,
            parents=[ROOT, *parents],
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
    What can be the key or name of a snapshot.
    """
    try:
        check_key(text)
    except InvalidArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def parent(text: str) -> str:
    """
    The same, or nothing for none.
    """
    return text and key(text)


def size(text: str) -> int:
    """
    A number of bytes, as in ``20G``.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _shared(*flags: str, **options: Any) -> Parser:
    parser = Parser(add_help=False)
    parser.add_argument(*flags, **options)
    return parser


ROOT = _shared("--root", metavar="DIR", default=argparse.SUPPRESS, help="the store; by default $SNAPSHOTTER_ROOT")
JSON = _shared("--json", action="store_true", help="print JSON, as docs/cli.md and schema.json describe it")
BYTES = _shared("--bytes", action="store_true", help="print sizes in bytes")
LABELS = _shared("--label", metavar="KEY=VALUE", type=_label, action="append", default=[], help="may be repeated")
KEY = _shared("key", metavar="KEY", type=key)
KEYS = _shared("keys", metavar="KEY", nargs="+", type=key)


def root(arguments: argparse.Namespace) -> str:
    """
    The store that is meant.
    """
    given: str = getattr(arguments, "root", "") or os.environ.get("SNAPSHOTTER_ROOT", "")
    if not given:
        raise InvalidArgumentError("no store is given: use --root DIR, or set SNAPSHOTTER_ROOT")
    return given


def reading(arguments: argparse.Namespace) -> Snapshotter:
    """
    That store, read without its lock.
    """
    return Snapshotter(root(arguments), read_only=True, client=None)


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """
    Around what cannot be done through a daemon: says so when another process has the store.
    """
    try:
        yield
    except StoreHeldError as error:
        raise StoreHeldError(f"{what} needs the store to itself: {error}") from error


def changing(arguments: argparse.Namespace) -> "Snapshotter | Client":
    """
    That store, as the client that it is bound to: held, or through the daemon that has it.
    """
    return _open(arguments)[0]


def making(arguments: argparse.Namespace) -> "Snapshotter | Client":
    """
    The same for what makes a snapshot.

    Raises:
        FailedPreconditionError: The store is containerd's.
    """
    store, client = _open(arguments)
    if client != LOCAL:
        store.close()
        raise FailedPreconditionError(
            f"the store is that of client {quoted(client)}, and containerd's garbage collection deletes what "
            "containerd did not make: make a second store beside it"
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
        return Client(error.socket, snapshotter=client), client


def daemon_place() -> Parser:
    """
    Return the flags that say where a daemon is.
    """
    parser = Parser(add_help=False)
    parser.add_argument("--config", metavar="FILE", help="the daemon's configuration; by default $SNAPSHOTTER_CONFIG")
    parser.add_argument("--address", metavar="SOCKET", help="the daemon's socket")
    return parser


def daemon_settings() -> Parser:
    """
    Return the flags of all settings of the daemon.
    """
    from snapshotter.daemon import config

    parser = Parser(add_help=False, parents=[daemon_place()])
    for name, setting in config.SETTINGS.items():
        if name not in ("root", "address"):
            parser.add_argument(config.flag(name), metavar="VALUE", dest=name, help=setting.expected)
    return parser


def load_settings(arguments: argparse.Namespace) -> "Loaded":
    """
    Return the settings of the daemon from its configuration file, the environment and the flags.
    """
    from snapshotter.daemon import config

    flags = {name: text for name in config.SETTINGS if (text := getattr(arguments, name, None)) is not None}
    return config.load(arguments.config or os.environ.get("SNAPSHOTTER_CONFIG"), os.environ, flags)
