"""
The arguments that commands share, and how a command is declared.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
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
Parent = argparse.ArgumentParser | Callable[[], argparse.ArgumentParser]
"""A parser whose arguments another one takes, too, or what makes it when that is looked into."""


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


class _Command(Parser):
    """
    One that calls *run*, made once it is looked into: to make those of all commands takes longer than to run most.
    """

    def __init__(self, run: Run | None, **options: Any) -> None:
        self._declared: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = [
            (self._make, (), options),
            (self.set_defaults, (), {"run": run}),
        ]

    def _make(self, *, parents: Sequence[Parent], **options: Any) -> None:
        made = [parent if isinstance(parent, argparse.ArgumentParser) else parent() for parent in parents]
        super().__init__(parents=made, **options)

    def add_argument(self, *flags: Any, **options: Any) -> Any:
        add = super().add_argument
        return self._declared.append((add, flags, options)) if "_declared" in vars(self) else add(*flags, **options)

    def __getattr__(self, name: str) -> Any:
        for method, flags, options in vars(self).pop("_declared", ()):
            method(*flags, **options)
        return object.__getattribute__(self, name)


class Commands:
    """
    The commands of *parser*, or those below one of its commands.
    """

    def __init__(self, parser: argparse.ArgumentParser, metavar: str = "COMMAND") -> None:
        kind: type[argparse.ArgumentParser] = _Command
        parsers = parser.add_subparsers(metavar=metavar, required=True, parser_class=kind)
        self._add: Callable[..., argparse.ArgumentParser] = parsers.add_parser

    def add(
        self, name: str, run: Run | None, text: str, *parents: Parent, example: str = ""
    ) -> argparse.ArgumentParser:
        """
        Declare a command that calls *run*; None is for one with commands below it.

        Args:
            text: What it does, in one line.
            parents: Parsers whose arguments it takes, besides ``--root``.
        """
        return self._add(
            name,
            run=run,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: {example}" if example else None,
            parents=[ROOT, *parents],
        )


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


def _settings(parsed: argparse.Namespace) -> "Loaded":
    from snapshotter.daemon import config

    flags = {name: text for name in config.SETTINGS if (text := getattr(parsed, name, None)) is not None}
    return config.load(parsed.config or os.environ.get("SNAPSHOTTER_CONFIG"), os.environ, flags)
