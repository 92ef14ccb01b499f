"""A place on a loss landscape whose answer can be proved."""

from collections.abc import Callable
from dataclasses import dataclass

from thalweg.problem.problem import Problem


@dataclass(frozen=True)
class Point:
    """One place.

    Attributes:
        name: says what it is.
        make: builds the problem from a seed.
        right: the verdicts that are true there.
    """

    name: str
    make: Callable[[int], Problem]
    right: frozenset[str]


def point(name: str, make: Callable[[int], Problem], *right: str) -> Point:
    return Point(name, make, frozenset(right))
