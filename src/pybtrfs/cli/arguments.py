"""
Declaration of the arguments of a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import TypeAlias

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """
    Add a group of commands, and return its subparsers.
    """
    return commands.add_parser(name, help=text, allow_abbrev=False).add_subparsers(metavar="COMMAND", required=True)


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int | None], text: str, *operands: str
) -> argparse.ArgumentParser:
    """
    Add the command *name*, and return its parser.

    Args:
        run: Runs the command with its parsed arguments, and returns its exit code or None for 0.
        text: The help text, in lower case.
        operands: Metavars in upper case; a trailing ``+`` means one or more.
    """
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(run=run)
    for operand in operands:
        metavar = operand.rstrip("+")
        parser.add_argument(metavar.lower(), metavar=metavar, nargs="+" if operand != metavar else None)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """
    Add the option ``--json``.
    """
    parser.add_argument("--json", action="store_true", help="print JSON")
