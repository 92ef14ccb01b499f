"""The loss along a direction: measured on a ladder of steps, found on one sample and tested on another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from thalweg.estimates import Estimate, paired_difference
from thalweg.problem.objective import Objective

__all__ = ["OVERFLOW", "LineProbe", "finite", "probe_line"]

# Stands for a loss that is infinite or NaN: higher than any other.
OVERFLOW = 1e30


@dataclass(frozen=True)
class LineProbe:
    """The paired change of the loss along a unit direction.

    Attributes:
        name: of the direction.
        slope: gᵀd, the change per unit step that the gradient explains.
        steps: lengths with their sign (m,), ascending.
        train: change of the training loss at each.
        best_step: the step with the lowest training loss.
        heldout: the change of the held-out loss at ``best_step`` (of the training loss, where there is no
            held-out data).
    """

    name: str
    slope: float
    steps: tuple[float, ...]
    train: tuple[Estimate, ...]
    best_step: float
    heldout: Estimate

    @property
    def best(self) -> Estimate:
        """The change of the training loss at the best step."""
        return self.train[self.steps.index(self.best_step)]

    def beyond_first_order(self) -> list[tuple[float, float]]:
        """Return (step, change that the gradient does not explain) for every step."""
        return [(s, change.value - s * self.slope) for s, change in zip(self.steps, self.train, strict=True)]


def probe_line(
    train: Objective,
    heldout: Objective | None,
    theta: Tensor,
    direction: Tensor,
    lengths: list[float],
    *,
    name: str,
    slope: float,
    both_ways: bool,
) -> LineProbe:
    """Measure the loss at ``theta`` + s·``direction`` for each s in ``lengths``, and −s if ``both_ways``.

    The step is chosen on the training sample and tested on the held-out one, which had no part in it.

    Cost: 1/3 gradient-equivalent a step.
    """
    steps = sorted({*lengths, *(-s for s in lengths)} if both_ways else set(lengths))
    here, counts = train.batch_values(theta)
    changes = []
    for step in steps:
        there, _ = train.batch_values(theta + step * direction)
        changes.append(_known(paired_difference(finite(there), here, counts), train))
    best = steps[int(np.argmin([change.value for change in changes]))]
    if heldout is None:
        tested = changes[steps.index(best)]
    else:
        before, counts = heldout.batch_values(theta)
        after, _ = heldout.batch_values(theta + best * direction)
        tested = _known(paired_difference(finite(after), before, counts), heldout)
    return LineProbe(name, slope, tuple(steps), tuple(changes), best, tested)


def finite(values: list[float]) -> list[float]:
    """Let an overflow far out count as a very high loss."""
    return [value if np.isfinite(value) else OVERFLOW for value in values]


def _known(change: Estimate, objective: Objective) -> Estimate:
    """A plain function is known exactly; a single batch leaves the error unknown."""
    if objective.examples == 1 and change.num_samples < 2:
        return Estimate(change.value, 0.0)
    return change
