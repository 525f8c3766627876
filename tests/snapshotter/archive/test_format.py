from hypothesis import example, given
from hypothesis import strategies as st

from snapshotter.archive.format import format_time, parse_time, xattr_header, xattr_name


@given(st.integers(-(10**20), 10**20))
@example(-1)
@example(0)
def test_times(nanoseconds: int) -> None:
    """
    A time is read as it was written, to the nanosecond, before the epoch as well.
    """
    assert parse_time(format_time(nanoseconds)) == nanoseconds


def test_digits() -> None:
    """
    Times of other programs are read with fewer digits, or cut off to nanoseconds.
    """
    assert [parse_time(text) for text in ("1", "1.5", ".25", "-0.5", "1.0000000019")] == [
        1_000_000_000,
        1_500_000_000,
        250_000_000,
        -500_000_000,
        1_000_000_001,
    ]


@given(st.text())
@example("user.a=%3D")
def test_xattr_headers(name: str) -> None:
    """
    An attribute's name is read as it was written, and its header has no "=", which would end the name.
    """
    assert "=" not in xattr_header(name)
    assert xattr_name(xattr_header(name)) == name
