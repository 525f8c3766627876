"""
Confirmation of a deletion on the terminal.
"""

import sys

from snapshotter.errors import InvalidArgumentError


def agreed(question: str) -> bool:
    """
    Ask *question* on the terminal, and return whether the answer is yes.

    Raises:
        InvalidArgumentError: Standard input is not a terminal.
    """
    if not sys.stdin or not sys.stdin.isatty():
        raise InvalidArgumentError("cannot ask for confirmation, because standard input is not a terminal: give --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
