"""
Values as text for people.
"""

from collections.abc import Iterable

from pybtrfs.size import UNITS


def format_size(count: int) -> str:
    """
    Return *count* bytes with three or four digits and a unit.
    """
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, 1
    # A value that would be rounded to 1024.0 is 1.0 of the next unit.
    while value >= 1023.95 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {UNITS[unit]}"


def printable(text: str) -> str:
    """
    Return *text* with unprintable characters as escapes, because a key may hold control sequences of a terminal.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """
    Return the name of *known* that is spelled most like *name*.
    """
    import difflib  # here, because only errors need the module

    [found] = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return found
