"""Where the words beside the marks of a picture go, so that they cover neither each other nor a mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Box", "place"]

# Offsets of the middle of a text from its mark, in halves of its size: beside, above, below, corners.
_OFFSETS = (
    (1, 1),
    (-1, 1),
    (1, -1),
    (-1, -1),
    (0, 1),
    (0, -1),
    (1, 0),
    (-1, 0),
    (1, 3),
    (-1, 3),
    (1, -3),
    (-1, -3),
)
_CLEAR = 0.025  # of the picture, between a mark and its text


@dataclass(frozen=True)
class Box:
    """A rectangle, in fractions of the picture."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Return the common area."""
        wide = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        high = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(wide, 0.0) * max(high, 0.0)


def place(
    marks: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    drawn: Sequence[tuple[float, float]] = (),
) -> list[Box]:
    """Place a text of each size (width, height) near its mark, all in fractions of the picture.

    One after the other, each where it covers least of the marks, of the texts before it and of the points
    of curves in ``drawn``, and sticks out least.
    """
    taken = [Box(x - 0.015, y - 0.025, 0.03, 0.05) for x, y in marks]
    taken += [Box(x - 0.005, y - 0.01, 0.01, 0.02) for x, y in drawn]
    placed = []
    for (x, y), (width, height) in zip(marks, sizes, strict=True):
        candidates = [_beside(x, y, width, height, *offset) for offset in _OFFSETS]
        best = min(candidates, key=lambda box: sum(map(box.overlap, taken)) + 2 * _outside(box))
        placed.append(best)
        taken.append(best)
    return placed


def _beside(x: float, y: float, width: float, height: float, right: int, up: int) -> Box:
    middle = x + right * (width / 2 + _CLEAR), y + up * (height / 2 + (_CLEAR if abs(up) == 1 else 0))
    return Box(middle[0] - width / 2, middle[1] - height / 2, width, height)


def _outside(box: Box) -> float:
    return box.width * box.height - box.overlap(Box(0.0, 0.0, 1.0, 1.0))
