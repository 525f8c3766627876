"""
Sizes in bytes as text.
"""

import re

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(iB)?", re.IGNORECASE | re.ASCII)


def parse(text: str) -> int:
    """
    Return the number of bytes in *text*, such as ``512M``, ``20GiB`` or ``4096``. Units are powers of 1024.

    Raises:
        ValueError: *text* is not a size.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size, such as 512M or 20G")
    return int(match[1]) << 10 * "_KMGT".index(match[2].upper() or "_")
