"""
Layout of a treemap: rectangles whose areas are proportional to weights.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    """
    A rectangle, in any unit.
    """

    left: float
    top: float
    width: float
    height: float


def squarify(weights: Sequence[float], whole: Rectangle) -> list[Rectangle]:
    """
    Divide *whole* into one rectangle for each weight, as nearly square as possible.

    The algorithm is that of Bruls, Huizing and van Wijk ("Squarified Treemaps", 2000).

    Args:
        weights: Positive numbers, best in descending order.
    """
    rectangles: list[Rectangle] = []
    left, top, width, height = whole
    while len(rectangles) < len(weights):
        start = len(rectangles)
        scale = width * height / sum(weights[start:])
        side = min(width, height)
        end = start + 1
        while end < len(weights) and _worst(weights[start : end + 1], scale, side) <= _worst(
            weights[start:end], scale, side
        ):
            end += 1
        row = weights[start:end]
        depth = sum(row) * scale / side
        at = 0.0
        for weight in row:
            length = weight * scale / depth
            if width < height:
                rectangles.append(Rectangle(left + at, top, length, depth))
            else:
                rectangles.append(Rectangle(left, top + at, depth, length))
            at += length
        if width < height:
            top, height = top + depth, height - depth
        else:
            left, width = left + depth, width - depth
    return rectangles


def _worst(row: Sequence[float], scale: float, side: float) -> float:
    """
    Return the worst aspect ratio of a *row* of weights laid along *side*, at least 1; 1 is a square.
    """
    depth = sum(row) * scale / side
    return max(max(weight * scale / depth**2, depth**2 / (weight * scale)) for weight in (min(row), max(row)))
