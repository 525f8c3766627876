import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.analysis.treemap import Rectangle, squarify

WHOLE = Rectangle(10, 20, 16, 9)
WEIGHTS = st.lists(st.integers(1, 1 << 40), min_size=1, max_size=40).map(lambda weights: sorted(weights, reverse=True))


def area(rectangle: Rectangle) -> float:
    return rectangle.width * rectangle.height


@given(WEIGHTS)
def test_areas(weights: list[int]) -> None:
    """
    Each rectangle has its share of the whole, lies inside it, and overlaps no other.
    """
    rectangles = squarify(weights, WHOLE)
    small = 1e-6
    for weight, one in zip(weights, rectangles, strict=True):
        assert area(one) == pytest.approx(area(WHOLE) * weight / sum(weights), abs=small)
        assert one.left >= WHOLE.left - small
        assert one.left + one.width <= WHOLE.left + WHOLE.width + small
        assert one.top >= WHOLE.top - small
        assert one.top + one.height <= WHOLE.top + WHOLE.height + small
    for one, other in itertools.combinations(rectangles, 2):
        width = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
        height = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
        assert width <= small or height <= small


def test_paper() -> None:
    """
    The example of the paper has the result of the paper.
    """
    found = squarify([6, 6, 4, 3, 2, 2, 1], Rectangle(0, 0, 6, 4))
    assert [tuple(round(side, 2) for side in one) for one in found] == [
        (0, 0, 3, 2),
        (0, 2, 3, 2),
        (3, 0, 1.71, 2.33),
        (4.71, 0, 1.29, 2.33),
        (3, 2.33, 1.2, 1.67),
        (4.2, 2.33, 1.2, 1.67),
        (5.4, 2.33, 0.6, 1.67),
    ]


def test_nothing() -> None:
    """
    Without weights there are no rectangles.
    """
    assert squarify([], WHOLE) == []
