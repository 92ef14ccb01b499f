"""What one optimiser went through in a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from thalweg.studies.setting import Point, Run
from thalweg.studies.statistics import spread, typical_best

__all__ = ["NEAR", "Method"]

NEAR = 0.1  # of a loss: what counts as close to the best


@dataclass(frozen=True, kw_only=True)
class Method:
    """One optimiser on one problem.

    Attributes:
        name: of the optimiser.
        refused: why it cannot train the problem; None where it can.
        alone: why its nets were trained one by one; None where they were trained at once.
        whole: whether each of its steps takes all the data.
        default: its own learning rate; None where it has none.
        rates: the grid; (None,) where it has no rate.
        chosen: which of them the validation data chose.
        tuning: the runs that chose.
        runs: the runs that are reported, at all rates.
        seconds: of a gradient-equivalent of one net alone.
    """

    name: str
    refused: str | None
    alone: str | None
    whole: bool
    default: float | None
    rates: tuple[float | None, ...]
    chosen: int
    tuning: tuple[Run, ...]
    runs: tuple[Run, ...]
    seconds: float

    @property
    def rate(self) -> float | None:
        """The chosen learning rate."""
        return self.rates[self.chosen]

    @property
    def edge(self) -> str | None:
        """At which end of the grid the chosen rate lies: "lower", "upper", or None."""
        if len(self.rates) < 2 or self.chosen not in {0, len(self.rates) - 1}:
            return None
        if _is_flat(self.validation):
            return None
        return "upper" if self.chosen else "lower"

    @cached_property
    def reported(self) -> tuple[Run, ...]:
        """The runs at the chosen rate, by seed."""
        return tuple(run for run in self.runs if run.lr == self.rate)

    @property
    def failures(self) -> int:
        """How many of them failed."""
        return sum(run.failed for run in self.reported)

    @cached_property
    def validation(self) -> tuple[float, ...]:
        """The median validation loss at each rate."""
        return tuple(
            spread([run.last("validation") for run in self.tuning if run.lr == rate]).median
            for rate in self.rates
        )

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """The median held-out loss at each rate."""
        return tuple(
            spread([run.last("test") for run in self.runs if run.lr == rate]).median for rate in self.rates
        )

    def typical(self, tries: int) -> float:
        """Return the held-out loss to be had with ``tries`` rates of the grid tried at random."""
        return typical_best(self.losses, tries)

    def cost_to(self, goal: float) -> float | None:
        """Return the median cost at which the held-out loss reaches ``goal``; None where it does not."""
        found = spread([_first(run.points, goal) for run in self.reported]).median
        return found if math.isfinite(found) else None

    def shrinking(self, epochs: float) -> str | None:
        """Say how the factor on the gradient changed since the first epoch, where the method has one."""
        ratios = []
        for run in self.reported:
            early = next((p.scale for p in run.points if p.cost >= 1 and math.isfinite(p.scale)), None)
            if early and not run.failed and math.isfinite(run.points[-1].scale):
                ratios.append(run.points[-1].scale / early)
        if not ratios or self.name not in {"adagrad", "rmsprop"}:
            return None
        middle = spread(ratios).median
        text = f"at the end a gradient moves a weight {middle:.2g} times as far as after the first epoch"
        if self.name == "adagrad":
            text += f": a sum of squares only grows (1/√t would be {epochs**-0.5:.2g})"
        else:
            text += ": its mean of squares forgets, and follows the gradients instead"
        return text


def _first(points: tuple[Point, ...], goal: float) -> float:
    """Return the cost at which the held-out loss first reaches ``goal``, between two points linearly."""
    before = None
    for point in points:
        if point.test <= goal:
            if before is None or not before.test > point.test:
                return point.cost
            share = (before.test - goal) / (before.test - point.test)
            return before.cost + share * (point.cost - before.cost)
        before = point
    return math.inf


def _is_flat(values: tuple[float, ...]) -> bool:
    """Whether the rate makes no difference, as with a line search."""
    finite = [v for v in values if math.isfinite(v)]
    return len(finite) == len(values) and max(finite) <= min(finite) + NEAR * abs(min(finite))
