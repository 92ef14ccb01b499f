"""How long work tells how far it is; the bars themselves are drawn in `thalweg.report`."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives what a long computation is doing and how much of it is done."""

    def phase(self, label: str) -> None:
        """Say what begins now, in a few words."""

    def advance(self, done: float, total: float) -> None:
        """Say that ``done`` of ``total`` (any unit, the same throughout) has been done."""


class Silent:
    """Says nothing."""

    def phase(self, label: str) -> None:
        """Ignore the label."""

    def advance(self, done: float, total: float) -> None:
        """Ignore the progress."""
