"""What a diagnosis may spend."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.problem.cost import Ledger

__all__ = ["FULL", "LEAST", "Purse"]

FULL = 220.0  # about what a full answer takes, in gradient-equivalents
LEAST = 30.0  # below this there is nothing to say


@dataclass(frozen=True)
class Purse:
    """A budget in gradient-equivalents and the ledger that shows what is gone; None is no limit.

    Checking that the model can be measured is not on the budget: it is not optional, and next to nothing
    where there are more than a few examples.
    """

    budget: float | None
    ledger: Ledger

    @property
    def left(self) -> float:
        """What may still be spent."""
        if self.budget is None:
            return float("inf")
        return self.budget - self.ledger.gradient_equivalents + self.ledger.checks

    @property
    def tight(self) -> bool:
        """Whether even the small things must be small."""
        return self.budget is not None and self.budget < 60

    def affords(self, cost: float) -> bool:
        """Return whether ``cost`` more may be spent."""
        return cost <= self.left
