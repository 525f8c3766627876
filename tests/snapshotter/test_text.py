"""
Texts of values.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.text import format_size, printable


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 64, "16.0 EiB"),
        (1 << 74, "16384.0 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    """
    Sizes have a number below 1024 and its unit.
    """
    assert format_size(count) == text


@given(st.text())
def test_printable(text: str) -> None:
    """
    Nothing is left that moves a cursor, breaks a line or cannot be shown.
    """
    assert printable(text).isprintable()
