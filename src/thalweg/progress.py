"""How long work tells how far it is; the bars themselves are drawn in `thalweg.report`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Metered", "Progress", "Silent"]


class Progress(Protocol):
    """Receives what a long computation is doing and how much of it is done."""

    def phase(self, label: str) -> None:
        """Say what begins now, in a few words."""

    def advance(self, done: float, total: float) -> None:
        """Say that ``done`` of ``total`` (any unit, the same throughout) has been done."""


class Metered:
    """Measures the progress of many phases by what they spend together, against what was planned.

    Args:
        progress: who is told.
        spent: returns what has been spent so far.
        planned: about how much it will be in all.
    """

    def __init__(self, progress: Progress, spent: Callable[[], float], planned: float) -> None:
        self._progress, self._spent, self._planned = progress, spent, planned

    def phase(self, label: str) -> None:
        """Pass the label on and say how far the whole work is."""
        self._progress.phase(label)
        self.advance(0.0, 0.0)

    def advance(self, done: float, total: float) -> None:
        """Say how far the whole work is; how far this phase is does not matter."""
        self._progress.advance(min(self._spent(), self._planned), self._planned)


class Silent:
    """Says nothing."""

    def phase(self, label: str) -> None:
        """Ignore the label."""

    def advance(self, done: float, total: float) -> None:
        """Ignore the progress."""
