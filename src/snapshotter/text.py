"""
Text of values for people.
"""

from pybtrfs.size import UNITS


def format_size(count: int) -> str:
    """
    A number of bytes in three or four digits and a unit.
    """
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, 1
    # What would be rounded to 1024.0 is 1.0 of the next.
    while value >= 1023.95 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {UNITS[unit]}"


def printable(text: str) -> str:
    """
    *text* with what a terminal would obey, or could not show, written as escapes; keys come from anywhere.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
