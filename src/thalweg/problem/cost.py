"""Counting what a measurement costs, in gradient-equivalents."""

from __future__ import annotations

import time
from dataclasses import dataclass

from thalweg.records import Cost

__all__ = ["FORWARD", "GRADIENT", "HVP_KEPT", "HVP_REBUILT", "Ledger"]

# One gradient-equivalent is a forward and a backward pass, counted as three forward passes
# (the backward pass takes twice the products of the forward pass). A Hessian–vector product is the
# backward pass through forward and backward pass: two gradients more, if their graph is kept.
GRADIENT = 1.0
FORWARD = 1.0 / 3.0
HVP_KEPT = 2.0
HVP_REBUILT = 3.0


@dataclass
class Ledger:
    """What has been spent so far. A gradient-equivalent is relative to ``num_examples``.

    ``checks`` is the part that went into checking that the model can be measured at all: a few gradients
    of a few examples, which is much of the whole only where there are no more.
    """

    num_examples: int
    gradient_equivalents: float = 0.0
    num_hvps: int = 0
    checks: float = 0.0

    def spend(self, units: float, examples: int) -> None:
        """Enter ``units`` of work on ``examples`` examples."""
        self.gradient_equivalents += units * examples / max(self.num_examples, 1)

    def cost(self, begun: float) -> Cost:
        """Return what was spent since ``begun``, a reading of `time.perf_counter`."""
        return Cost(
            gradient_equivalents=round(self.gradient_equivalents, 1),
            num_hvps=self.num_hvps,
            seconds=round(time.perf_counter() - begun, 2),
        )

    def for_checks(self) -> Ledger:
        """Return a ledger whose expenses are entered here, and whose products are not counted as such."""
        return _ForChecks(self.num_examples, whole=self)


@dataclass
class _ForChecks(Ledger):
    whole: Ledger | None = None

    def spend(self, units: float, examples: int) -> None:
        assert self.whole is not None
        before = self.whole.gradient_equivalents
        self.whole.spend(units, examples)
        self.whole.checks += self.whole.gradient_equivalents - before
