"""
Sizes as people write them.
"""

import pytest

from pybtrfs import size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("20g", 20 << 30),
        ("20GiB", 20 << 30),
        ("1kib", 1024),
        ("2T", 2 << 40),
    ],
)
def test_parse(text: str, count: int) -> None:
    """
    A number stands alone or with a binary unit, in either case.
    """
    assert size.parse(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1GB", "1 G", "1P", "\uff11", "9" * 16])
def test_anything_else_is_refused(text: str) -> None:
    """
    Text that is not a size is named in the error.
    """
    with pytest.raises(ValueError, match="is not a size, such as 512M or 20G") as caught:
        size.parse(text)
    assert repr(text) in str(caught.value)
